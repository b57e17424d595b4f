"""Cross-layer equalisation (arXiv 1906.04721) of attention: channels made alike in size by rewriting the float graph.

    scores = sum_k q_k * k_k = sum_k (q_k / s_k) * (k_k * s_k)             s_k = sqrt(amax|q_k| / amax|k_k|)
    result = sum_c w_c * (p @ v_c) = sum_c (w_c * s_c) * (p @ (v_c / s_c))   s_c = sqrt(amax|v_c| / amax|w_c|)

Of a product of two values the integers have one scale for all channels, so that those of small values have few levels.
The factors go into the weights and biases of the dots that make query, key and value, and into the weight that reads
the product; the function stays the same but for float rounding, and by powers of two to the bit.

Which channels belong together is not guessed from shapes: the channels' indices are moved as the values are, and looked
up where a product reads them. So heads may be split, packed, repeated or grouped in any way. A channel that anything
else reads, or on whose way a value is changed (by a rotary embedding, say), is left alone.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import jax.numpy as jnp
import numpy as np

from jaxq import numerics
from jaxq.calibration.histogram import from_samples
from jaxq.calibration.select import threshold_by
from jaxq.graph.node import WEIGHTED, Graph, Node
from jaxq.graph.replay import replay
from jaxq.passes.accumulating import is_open, scaled, weight_of
from jaxq.passes.parameters import name_parameters
from jaxq.passes.scales import methods, qtype_of, tensor_of
from jaxq.refine.state import Samples, State

# What moves the values of its one operand, or repeats them.
_MOVES = frozenset({"reshape", "transpose", "squeeze", "broadcast_in_dim", "tile", "rev", "slice"})
_SAME = frozenset({"copy", "name", "stop_gradient", "convert_element_type"})

# Below the largest magnitude by this factor, channels are scaled as if they were there.
_LEAST = 1e-3


def refine(state: State, samples: Samples) -> State:
    """The state of the rewritten graph. Values that it changes get their thresholds anew, from the examples; what was
    chosen by their channels, or for the weights that change, is given up: this comes before such choices."""
    factors = _factors(state.graph, samples.values(state.graph))
    if not factors.outputs:
        return state
    graph = name_parameters(state.graph.map(factors.rewritten))
    placement, choices, values = state.placement.onto(graph), state.choices, samples.values(graph)
    named = methods(placement, state.config)
    qtypes = dict(choices.qtypes)
    for group in placement.scale_groups:
        tensor = tensor_of(group)
        if factors.changed.intersection(tensor.sources):
            found = {source: from_samples(jnp.asarray(values[source])) for source in tensor.sources}
            method = "mse" if named[tensor] == "auto" else named[tensor]
            qtypes[group.name] = qtype_of(group, threshold_by(tensor, method, found, state.config.percentile))
    chosen = replace(
        choices,
        qtypes=qtypes,
        rows={name: channels for name, channels in choices.rows.items() if name not in factors.changed},
        weights={name: weight for name, weight in choices.weights.items() if name not in factors.layers},
        biases={name: bias * factors.outputs.get(name, 1.0) for name, bias in choices.biases.items()},
    )
    return replace(state, graph=graph, placement=placement, choices=chosen)


@dataclass(frozen=True)
class _Factors:
    """By the name of a dot or convolution: what its output channels are multiplied by, and its input channels.
    `changed`: the names of the values that this changes."""

    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)

    @property
    def layers(self) -> set[str]:
        return {*self.outputs, *self.inputs}

    def multiply(self, layer: Node, channels: np.ndarray, factor: np.ndarray) -> None:
        self.outputs.setdefault(layer.name, np.ones(layer.aval.shape[-1]))[channels] *= factor

    def rewritten(self, node: Node) -> Node:
        if node.op in WEIGHTED and node.name in self.outputs:
            node = scaled(node, self.outputs[node.name])
        if node.op == "dot" and node.name in self.inputs:
            weight = weight_of(node, node.operand("weight").value * self.inputs[node.name])
            node = node.with_operands({**dict(zip(node.roles, node.inputs, strict=True)), "weight": weight})
        return node


def _factors(graph: Graph, values: Mapping[str, np.ndarray]) -> _Factors:
    factors, graph = _Factors(), graph.bind(1)
    products = [node for node in graph.nodes if node.op == "matmul"]
    makers = [node for node in graph.nodes if products and node.op in WEIGHTED and is_open(node)]
    operands: dict[tuple[Node | None, str], _Operand] = {}
    for maker in makers:
        amax, reads = _amax(values[maker.name]), list(_reads(graph, maker, np.arange(maker.aval.shape[-1])))
        alone = (read for read in reads if np.all(np.isfinite(amax)) and _reads_alone(read, reads))
        operands |= {(read.reader, read.role): _Operand(maker, read, amax) for read in alone}
    for product in products:
        x, y = (operands.get((product, role)) for role in ("x", "y"))
        if x is not None and y is not None:
            _equalise_pair(factors, x, y)
        elif (value := x or y) is not None:
            _equalise_with_readers(factors, value, graph)
    return factors


@dataclass(frozen=True, eq=False)
class _Read:
    """Where channels are read. `channels`: of the operand's shape, the index of the channel that stands at each place.
    `reader` is None where they are a result of the graph. `way`: the names of the values that hold them."""

    reader: Node | None
    role: str
    channels: np.ndarray
    way: tuple[str, ...]


def _reads(graph: Graph, node: Node, channels: np.ndarray, way: tuple[str, ...] = ()) -> Iterator[_Read]:
    """All that read the node's channels, whatever moved them on the way. `channels` broadcasts to the node's shape."""
    channels, way = np.broadcast_to(channels, node.aval.shape), (*way, node.name)
    if node in graph.outputs:
        yield _Read(None, "", channels, way)
    for user in dict.fromkeys(graph.users[node]):
        if user.op in _MOVES:
            yield from _reads(graph, user, replay(user)(channels), way)
        elif user.op in _SAME:
            yield from _reads(graph, user, channels, way)
        else:
            roles = [role for role, source in zip(user.roles, user.inputs, strict=False) if source is node]
            yield from (_Read(user, role, channels, way) for role in roles or [""])


def _reads_alone(read: _Read, reads: Iterable[_Read]) -> bool:
    """Whether the product reads these channels and nothing else does."""
    is_operand = read.reader is not None and read.reader.op == "matmul" and read.role in ("x", "y")
    return is_operand and not any(np.isin(read.channels, other.channels).any() for other in reads if other is not read)


@dataclass(frozen=True, eq=False)
class _Operand:
    """A layer's channels as an operand of a product; `amax` (C,): of each channel of the layer."""

    layer: Node
    read: _Read
    amax: np.ndarray


def _equalise_pair(factors: _Factors, x: _Operand, y: _Operand) -> None:
    """Of x (..., M, K) and y (..., N, K) all that stands at one k of one product has one factor, and its inverse."""
    size = len(x.amax)
    at_x, at_y = x.read.channels, y.read.channels + size
    pairs = [np.broadcast_arrays(a, b) for a, b in ((at_x, at_y[..., :1, :]), (at_x[..., :1, :], at_y))]
    a, b = (np.concatenate([np.ravel(pair[side]) for pair in pairs]) for side in range(2))
    together = _components(a, b, size + len(y.amax))
    largest = np.zeros((2, len(together)))
    np.maximum.at(largest[0], together[:size], x.amax)
    np.maximum.at(largest[1], together[size:], y.amax)
    used_x, used_y = np.unique(a), np.unique(b)
    shift = np.sqrt(largest[0] / np.where(largest[1] > 0, largest[1], 1))[together]
    factors.multiply(x.layer, used_x, 1 / shift[used_x])
    factors.multiply(y.layer, used_y - size, shift[used_y])
    factors.changed.update(x.read.way, y.read.way)


def _components(a: np.ndarray, b: np.ndarray, size: int) -> np.ndarray:
    """For each of `size` items the least of those that the pairs (a, b) connect it with."""
    a, b = np.divmod(np.unique(a.astype(np.int64) * size + b), size)
    label = np.arange(size)
    while np.any(label[a] != label[b]):
        least = np.minimum(label[a], label[b])
        np.minimum.at(label, a, least)
        np.minimum.at(label, b, least)
    return label


def _equalise_with_readers(factors: _Factors, value: _Operand, graph: Graph) -> None:
    """The product is of each channel by itself where the sum runs along it; dots read the product."""
    product, channels = value.read.reader, value.read.channels
    assert product is not None
    if not is_open(product) or product.get("bias") is not None or np.any(channels != channels[..., :1]):
        return
    channels = channels[..., 0]
    made = channels[..., None, :] if value.read.role == "y" else channels[..., None]
    reads = list(_reads(graph, product, made))
    dots: dict[Node, np.ndarray] = {}
    for read in reads:
        columns = read.channels.reshape(-1, read.channels.shape[-1])
        if read.reader is None or read.reader.op != "dot" or read.role != "x" or np.any(columns != columns[:1]):
            return
        dots[read.reader] = columns[0]
    of_readers = np.zeros(len(value.amax))
    for dot, columns in dots.items():
        np.maximum.at(of_readers, columns, np.abs(dot.operand("weight").value).max(axis=0))
    used = np.unique(channels)
    shift = np.ones(len(value.amax))
    shift[used] = np.sqrt(value.amax[used] / _floored(of_readers[used]))
    factors.multiply(value.layer, used, 1 / shift[used])
    for dot, columns in dots.items():
        factors.inputs[dot.name] = shift[columns]
    factors.changed.update(value.read.way, *(read.way for read in reads))


def _amax(value: np.ndarray) -> np.ndarray:
    """Of each channel; not less than a part of the largest."""
    return _floored(np.abs(value).reshape(-1, value.shape[-1]).max(axis=0).astype(np.float64))


def _floored(amax: np.ndarray) -> np.ndarray:
    return np.maximum(amax, max(amax.max() * _LEAST, numerics.SMALLEST_AMAX))
