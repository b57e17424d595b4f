"""A scale for each channel of the rows that dots read by row: what x is divided by before each row is given its own.

A row's scale follows its largest value. Where that always stands in the same few channels, as in the residual stream of
a transformer, the others have few levels, in every row. As with the scales by channel of other values, candidates are

    amax|x_k|^a / amax|w_k|^(1 - a)     SmoothQuant (arXiv 2211.10438)

and the one is taken with which the readers' results err least on the examples, if less than without.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq import numerics
from jaxq.graph.node import Node
from jaxq.passes.simulate import float_function
from jaxq.refine.state import State

# The power of the activations' maxima; the rest is the weights'.
_POWERS = (0.4, 0.5, 0.6, 0.75)

# Below the largest maximum by this factor, channels have a scale as if they were there.
_LEAST = 1e-3

Values = Mapping[str, np.ndarray]


def refine(state: State, values: Values) -> State:
    """The state with a scale by channel for each value that dots read by row, where these err less by it."""
    rows = dict(state.choices.rows)
    for x, readers in _read(state, values):
        found = _best(state, x, readers, values)
        if found is not None:
            rows[x.name] = found
    changed = {node.name for node in state.placement.by_row}
    weights = {name: weight for name, weight in state.choices.weights.items() if name not in changed}
    return state.choose(rows=rows, weights=weights)


def _read(state: State, values: Values) -> Iterator[tuple[Node, list[Node]]]:
    """Each value that dots read by row, and these; not those of bodies, whose values are not known."""
    readers: dict[Node, list[Node]] = {}
    for node in state.graph.nodes:
        if node in state.placement.by_row:
            readers.setdefault(node.operand("x"), []).append(node)
    for x, nodes in readers.items():
        if x.name in values and np.all(np.isfinite(values[x.name])):
            yield x, nodes


def _best(state: State, x: Node, readers: Sequence[Node], values: Values) -> np.ndarray | None:
    runs = [_error(reader, values) for reader in readers]

    def error(channels: np.ndarray) -> float:
        tried = state.choose(rows={**state.choices.rows, x.name: channels}, weights={})
        pairs = zip(runs, readers, strict=True)
        return sum(run(channels.astype(np.float32), tried.weight(reader)) for run, reader in pairs)

    amax = _at_least(np.abs(values[x.name]).reshape(-1, x.aval.shape[-1]).max(axis=0))
    of_readers = _at_least(np.max([np.abs(reader.operand("weight").value).max(axis=0) for reader in readers], axis=0))
    best, least = None, error(np.ones_like(amax))
    for power in _POWERS:
        channels = amax**power / of_readers ** (1 - power)
        channels /= channels.max()
        if (found := error(channels)) < least:
            best, least = channels, found
    return best


def _at_least(amax: np.ndarray) -> np.ndarray:
    return np.maximum(amax.astype(np.float64), max(float(amax.max()) * _LEAST, numerics.SMALLEST_AMAX))


def _error(node: Node, values: Values) -> Callable[[np.ndarray, np.ndarray], float]:
    """Of the channels' scales and the rounded weight: the squared error of the dot's results over their square."""
    function = float_function(node)
    operands = {
        role: source.value if source.is_constant else values[source.name]
        for role, source in zip(node.roles, node.inputs, strict=True)
        if role != "weight"
    }

    @jax.jit
    def run(operands: Any, exact: jax.Array, channels: jax.Array, weight: jax.Array) -> jax.Array:
        x = numerics.fake_quantize_rows(operands["x"], channels)
        given = operands | {"x": x, "weight": weight.astype(x.dtype)}
        y = function(*(given[role] for role in node.roles)).astype(jnp.float32)
        return jnp.sum((y - exact) ** 2) / jnp.maximum(jnp.sum(exact**2), np.finfo(np.float32).tiny)

    placed = jax.device_put((operands, values[node.name].astype(np.float32)))
    return lambda channels, weight: float(run(*placed, channels, weight))
