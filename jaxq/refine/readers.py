"""A convolution or dot by itself: its results from rounded values and rounded weights, beside those in float."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq import numerics
from jaxq.graph.node import WEIGHTED, Node, QType
from jaxq.passes.accumulating import OPEN
from jaxq.passes.place import ScaleGroup
from jaxq.passes.simulate import float_function
from jaxq.refine.state import State

Values = Mapping[str, np.ndarray]

# What stands behind what a conv or dot reads: what its integers stand for; where rows have scales of their own the
# factor of each channel, float (C,); None where it reads bytes or floats as they are.
Read = QType | np.ndarray | None

# Below the largest channel by this factor, channels are scaled as if they were there.
_LEAST = 1e-3


def at_least(amax: np.ndarray) -> np.ndarray:
    """The maxima of channels, float64, none so small that its reciprocal would matter."""
    return np.maximum(amax.astype(np.float64), max(float(amax.max()) * _LEAST, numerics.SMALLEST_AMAX))


def rounding(state: State, node: Node) -> Callable[..., dict[str, Any]]:
    """The function of (operands by role, `arrays_of` what the node reads, its rounded weight) to the operands with both
    rounded."""
    group, by_row = state.placement.groups.get(node.operand("x")), node in state.placement.by_row
    lowest, highest = numerics.BOUNDS["int8" if group is None else group.dtype]

    def rounded(operands: Mapping[str, Any], read: Any, weight: Any) -> dict[str, Any]:
        x, w = operands["x"], operands["weight"]
        if by_row:
            x = numerics.fake_quantize_rows(x, read)
        elif read is not None:
            x = numerics.fake_quantize(x, *read, lowest=lowest, highest=highest)
        return {**operands, "x": x, "weight": weight.astype(w.dtype)}

    return rounded


class Reader:
    """A conv or dot on some examples: on the float values that it reads, or others, beside its float results."""

    def __init__(self, state: State, node: Node, values: Values, exact: Values | None = None) -> None:
        self.node = node
        function, rounded = float_function(node), rounding(state, node)
        operands = {
            role: source.value if source.is_constant else values[source.name]
            for role, source in zip(node.roles, node.inputs, strict=True)
        }
        self._operands = jax.device_put((operands, (exact or values)[node.name].astype(np.float32)))

        @jax.jit
        def error(operands: Any, exact: Any, read: Any, weight: Any) -> jax.Array:
            given = rounded(operands, read, weight)
            y = function(*(given[role] for role in node.roles)).astype(jnp.float32)
            return jnp.sum((y - exact) ** 2) / jnp.maximum(jnp.sum(exact**2), np.finfo(np.float32).tiny)

        self._error = error

    def error(self, read: Read, weight: np.ndarray) -> float:
        """The squared error of its results over their square."""
        return float(self._error(*self._operands, arrays_of(read), weight))


def arrays_of(read: Read) -> Any:
    """What stands behind what a conv or dot reads, as the arrays that a compiled function takes."""
    if isinstance(read, QType):
        return np.asarray(read.scale, np.float32), np.asarray(read.zero_point, np.float32)
    return None if read is None else read.astype(np.float32)


def linear(node: Node) -> Callable[..., Any]:
    """The sums of a conv or dot, before its epilogue."""
    return float_function(node.with_attrs(**OPEN).replace(inputs=node.inputs[:2], roles=("x", "weight")))


def weighted(state: State) -> list[Node]:
    """The convs and dots, but for those in bodies, that read floats or integers of a scale known beforehand."""
    placement = state.placement
    nodes = (node for node in state.graph.nodes if node.op in WEIGHTED and node in placement.quantized)
    return [node for node in nodes if node not in placement.by_row]


def qtype_read(state: State, node: Node) -> QType | None:
    """What the integers stand for that a conv or dot reads; None for the bytes of an image, and for floats."""
    if node in state.placement.weight_only:
        return None
    group = state.placement.groups[node.operand("x")]
    return None if group.exact else state.choices.qtypes[group.name]


def reader_error(state: State, group: ScaleGroup, nodes: Sequence[Node], values: Values) -> Callable[[QType], float]:
    """What the group stands for to the error of all that read it: the sum of each one's, with this input and the
    weights rounded."""
    readers = [Reader(state, node, values) for node in nodes]

    def error(qtype: QType) -> float:
        tried = state.choose(qtypes={**state.choices.qtypes, group.name: qtype}, weights={})
        return sum(reader.error(qtype, tried.weight(reader.node)) for reader in readers)

    return error
