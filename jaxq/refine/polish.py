"""The rounding of each convolution's and dot's weights, and the scale of what it reads, found by gradients.

To the nearest level is not the best way to round a weight where the errors of many add up. AdaRound (arXiv 2004.10568)
lets each go down or up,

    q = floor(w / s) + h(v),    h(v) = clip(1.2 * sigmoid(v) - 0.1, 0, 1)

and finds v by gradients of the squared error of the layer's results on the examples, with a term that takes every h to
0 or 1 in the end. The scale of the layer's input, where no other layer reads it, learns along (LSQ, arXiv 1902.08153).
No labels are needed. A layer reads what the layers before it make by now, and so makes up for their errors too. It
keeps what was found if it errs less by it on examples that were held back.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxq import numerics
from jaxq.errors import UnsupportedError
from jaxq.graph.node import Node, QType
from jaxq.passes.simulate import float_function
from jaxq.refine.readers import Reader, Values, qtype_read, weighted
from jaxq.refine.rounding import Rounding
from jaxq.refine.state import Samples, State

# Steps for each layer; a step sees so many of the examples, but of those whose results have many rows (pixels, tokens)
# no more than have so many together.
_STEPS, _EXAMPLES, _ROWS = 400, 8, 4096

_LEARNING_RATE = 0.02
_SCALE_RATE = 1e-3

# How much the term that takes h to 0 or 1 weighs beside the relative error, and the power in it, from first to last. In
# the first fifth of the steps there is no such term.
_WEIGHT, _POWERS, _FREE = 0.5, (20.0, 2.0), 0.2


def refine(state: State, samples: Samples) -> State:
    """The state with polished weights.

    Raises:
      UnsupportedError: optax is not installed.
    """
    exact, exact_held = samples.values(state.graph), samples.held_values(state.graph)
    nodes = weighted(state)
    with tqdm(total=len(nodes), desc="polishing", unit="layer", disable=None) as bar:

        def visit(state: State, node: Node, given: Values, given_held: Values) -> State:
            state = _polished(state, node, (given, exact), (given_held, exact_held))
            bar.update()
            return state

        return samples.walk(state, {node.name for node in nodes}, visit)


# The values that a layer reads, as the layers before it make them by now; and the float values.
_Pair = tuple[Values, Values]


def _polished(state: State, node: Node, fit: _Pair, held: _Pair) -> State:
    found = _trained(state, node, fit)
    judge = Reader(state, node, *held)
    before = judge.error(qtype_read(state, node), state.weight(node))
    after = judge.error(qtype_read(found, node), found.weight(node))
    state = found if after < before else state
    return state.with_layers({**state.layers, node.name: (before, min(before, after))})


def _trained(state: State, node: Node, fit: _Pair) -> State:
    """The state with the layer's weights, and perhaps the scale of its input, as training finds them."""
    qtype = qtype_read(state, node)
    problem = Rounding.of(state, node)
    learns_scale = qtype is not None and _reads_alone(state, node)
    trained, factor = _train(problem, state, node, qtype, learns_scale, fit)
    levels = problem.floor + (trained >= 0)
    weights = {**state.choices.weights, node.name: (levels.astype(np.int8), problem.scale)}
    if not learns_scale:
        return state.choose(weights=weights)
    assert qtype is not None
    name = state.placement.groups[node.operand("x")].name
    qtypes = {**state.choices.qtypes, name: replace(qtype, scale=qtype.scale * factor)}
    return state.choose(weights=weights, qtypes=qtypes)


def _reads_alone(state: State, node: Node) -> bool:
    """Whether the scale of what the node reads is of its own: nothing else, and no result, has these integers."""
    group = state.placement.groups[node.operand("x")]
    members = [value for value, of in state.placement.groups.items() if of is group]
    users = {user for value in members for user in state.graph.users.get(value, ())} - set(members)
    return users == {node} and not any(value in state.graph.outputs for value in members)


def _up(v: jax.Array) -> jax.Array:
    """h(v)."""
    return jnp.clip(1.2 * jax.nn.sigmoid(v) - 0.1, 0, 1)


def _inverse(h: np.ndarray) -> np.ndarray:
    p = (np.clip(h, 0.01, 0.99) + 0.1) / 1.2
    return np.log(p / (1 - p)).astype(np.float32)


def _train(
    problem: Rounding,
    state: State,
    node: Node,
    qtype: QType | None,
    learns_scale: bool,
    fit: _Pair,
) -> tuple[np.ndarray, float]:
    """v, and the factor of the input's scale."""
    optax, (values, exact) = _optax(), fit
    function = float_function(node)
    lowest, highest = numerics.BOUNDS["int8" if qtype is None else qtype.dtype]
    arrays: dict[str, Any] = {}
    fixed: dict[str, Any] = {}
    for role, source in zip(node.roles, node.inputs, strict=True):
        if role != "weight":
            (fixed if source.is_constant else arrays)[role] = (
                source.value if source.is_constant else values[source.name]
            )
    arrays["exact"] = exact[node.name].astype(np.float32)
    count, rows = len(arrays["exact"]), arrays["exact"][..., 0].size
    size = min(count, _EXAMPLES, max(_ROWS * count // rows, 1))

    def loss(trained: Any, given: Any, data: Any, power: Any, weight: Any) -> jax.Array:
        x = given["x"]
        if qtype is not None:
            scale, zero_point = jnp.asarray(qtype.scale, jnp.float32), jnp.float32(qtype.zero_point)
            scale = scale * jnp.exp(trained["scale"]) if learns_scale else scale
            x = numerics.fake_quantize(x, scale, zero_point, lowest=lowest, highest=highest)
        h = _up(trained["v"])
        operands = {**fixed, **given, "x": x, "weight": ((data["floor"] + h) * data["unit"]).astype(x.dtype)}
        y = function(*(operands[role] for role in node.roles)).astype(jnp.float32)
        error = jnp.sum((y - given["exact"]) ** 2) / jnp.maximum(data["noise"], np.finfo(np.float32).tiny)
        return error + weight * jnp.mean(1 - jnp.abs(2 * h - 1) ** power)

    optimizer = optax.multi_transform(
        {"v": optax.adam(_LEARNING_RATE), "scale": optax.adam(_SCALE_RATE)}, {"v": "v", "scale": "scale"}
    )

    # A step is a call: in a loop, XLA's convolutions on the CPU take ten times as long.
    @jax.jit
    def step(trained: Any, moments: Any, arrays: Any, data: Any, chosen: Any, power: Any, weight: Any) -> Any:
        given = {role: array[chosen] for role, array in arrays.items()}
        gradient = jax.grad(loss)(trained, given, data, power, weight)
        changes, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(trained, changes), moments

    trained = {"v": jnp.asarray(_inverse(problem.position - problem.floor)), "scale": jnp.float32(0)}
    data = {"floor": problem.floor, "unit": problem.unit, "noise": _noise(state, node, qtype, fit) * size / count}
    arrays, data = jax.device_put((arrays, data))
    moments = optimizer.init(trained)
    with jax.numpy_dtype_promotion("standard"):  # optax takes a float to the power of its count
        for chosen, power, weight in _schedule(count, size):
            trained, moments = step(trained, moments, arrays, data, chosen, power, weight)
    return np.asarray(trained["v"]), float(np.exp(trained["scale"]))


def _noise(state: State, node: Node, qtype: QType | None, fit: _Pair) -> np.float32:
    """The squared error of the layer's results as they are."""
    error = Reader(state, node, *fit).error(qtype, state.weight(node))
    return np.float32(error * float(np.sum(fit[1][node.name].astype(np.float64) ** 2)))


def _schedule(count: int, size: int) -> Iterator[tuple[np.ndarray, np.float32, np.float32]]:
    """Of each step its examples, the power, and the weight of the term."""
    rng = np.random.default_rng(0)
    first, last = _POWERS
    for i in range(_STEPS):
        progress = max((i / _STEPS - _FREE) / (1 - _FREE), 0.0)
        power = last + (first - last) * (1 + np.cos(np.pi * progress)) / 2
        chosen = rng.choice(count, size, replace=False)
        yield chosen.astype(np.int32), np.float32(power), np.float32(_WEIGHT if progress > 0 else 0)


def _optax() -> Any:
    try:
        import optax
    except ImportError as error:
        raise UnsupportedError(
            "recipe: 'polish' trains with optax, which is not installed: pip install optax"
        ) from error
    return optax
