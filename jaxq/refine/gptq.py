"""The weights of each dot rounded one input after the other, each making up for the errors of those before it.

The squared error of a dot's results, over the rows x of the examples, is (w - q)' H (w - q) for each output channel,
with H the sum of x x'. GPTQ (arXiv 2210.17323) rounds the weight of one input, and moves those of the inputs that are
not yet rounded so that this error is least: where R'R = H^-1 and R is upper triangular, by

    w[j] -= (w[i] - q[i]) / R[i, i] * R[i, j]        for j > i

Inputs come in the order of their share in the results, the largest H[i, i] first. A dot reads what the dots before it
make by now, and its weights are first moved so that their results are nearest to those in float (GPTAQ, arXiv
2504.02692):

    argmin |X w' - X_float w|^2 + d |w' - w|^2

d, which is also added to H's diagonal, is a tenth of its mean: calibration has few rows, and what H says of the
others is uncertain. For weights of 8 bits it is too much so: what they lose by being moved is more than the rounding
takes from them, and they are left alone. Scales stay as they were chosen; by the squared error of the weights, unless
they were. The results' means are fitted with them: what was added to the biases of these layers no longer is.
"""

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxq import numerics
from jaxq.graph.node import Node
from jaxq.refine.readers import Values, qtype_read, weighted
from jaxq.refine.rounding import Rounding
from jaxq.refine.state import Samples, State

# d over the mean of H's diagonal.
_DAMPING = 0.1

# The inputs that are not yet rounded are moved once for so many.
_BLOCK = 128


def refine(state: State, samples: Samples) -> State:
    """The state with the weights of its dots in 4 bits rounded so; for K inputs a few float64 (K, K) are held."""
    exact = samples.values(state.graph)
    dots = (node for node in weighted(state) if node.op == "dot")
    nodes = [node for node in dots if state.config.for_weights(node.name).weight_bits == 4]
    if not nodes:
        return state
    names = {node.name for node in nodes}
    state = state.choose(biases={name: b for name, b in state.choices.biases.items() if name not in names})
    with tqdm(total=len(nodes), desc="rounding", unit="layer", disable=None) as bar:

        def visit(state: State, node: Node, given: Values, _held: Values) -> State:
            rounded = _rounded(state, node, given, exact)
            bar.update()
            return state.choose(weights={**state.choices.weights, node.name: rounded})

        return samples.walk(state, names, visit)


def _rounded(state: State, node: Node, given: Values, exact: Values) -> tuple[np.ndarray, np.ndarray]:
    """The dot's levels and scales, as `Choices.weights` holds them."""
    rounding = Rounding.of(state, node, "mse")
    weight = np.asarray(node.operand("weight").value, np.float64)
    name, depth = node.operand("x").name, weight.shape[1]
    wanted = exact[name].reshape(-1, depth).astype(np.float64)
    x = _as_read(state, node, given[name]).reshape(-1, depth).astype(np.float64)
    hessian = x.T @ x
    hessian[np.diag_indices(depth)] += max(_DAMPING * np.trace(hessian) / depth, np.finfo(np.float32).tiny)
    target = weight + np.linalg.solve(hessian, x.T @ (wanted - x) @ weight.T).T
    levels = in_order(target, rounding.unit.astype(np.float64), hessian, rounding.bounds)
    return levels.astype(np.int8), rounding.scale


def _as_read(state: State, node: Node, x: np.ndarray) -> np.ndarray:
    """The values that the dot's integers stand for; floats and bytes are what they are."""
    qtype = qtype_read(state, node)
    if qtype is None:
        return x
    lowest, highest = numerics.BOUNDS[qtype.dtype]
    given = (jnp.asarray(a, jnp.float32) for a in (x, qtype.scale, qtype.zero_point))
    return np.asarray(numerics.fake_quantize(*given, lowest=lowest, highest=highest))


def in_order(weight: np.ndarray, unit: np.ndarray, hessian: np.ndarray, bounds: tuple[int, int]) -> np.ndarray:
    """The levels (N, K), within the bounds, of a float64 weight (N, K), whose levels are `unit` apart (it broadcasts).

    Args:
      hessian: H, float64 (K, K), positive definite.
    """
    order = np.argsort(-np.diag(hessian), kind="stable")
    left, unit = (np.ascontiguousarray(a[:, order].T) for a in (weight, np.broadcast_to(unit, weight.shape)))
    root = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)])).T
    levels = np.empty_like(left)
    depth = len(order)
    for start in range(0, depth, _BLOCK):
        stop = min(start + _BLOCK, depth)
        errors = np.empty_like(left[start:stop])
        for i in range(start, stop):
            levels[i] = numerics.nearest_levels(left[i], unit[i], bounds)
            errors[i - start] = (left[i] - levels[i] * unit[i]) / root[i, i]
            left[i + 1 : stop] -= np.outer(root[i, i + 1 : stop], errors[i - start])
        left[stop:] -= root[start:stop, stop:].T @ errors
    return levels[np.argsort(order)].T
