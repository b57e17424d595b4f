"""A scale for each channel of what dots and convolutions read, its inverse in their weights: at no cost when it runs.

A value x of channels k with the scales s_k is quantized as x_k / s_k, which its producer's epilogue, or the quantize,
does by channel; a reader's weight w[k] becomes w[k] * s_k. In real numbers nothing changes. Where some channels are far
larger than the others the others then have more levels; what they gain the weights lose. Candidates for s_k, up to a
factor:

    amax|x_k|^a / amax|w_k|^(1 - a)     SmoothQuant (arXiv 2211.10438)
    sqrt(amax|v_k| / amax|w_k|)         cross-layer equalisation (arXiv 1906.04721), v_k the weights that make x_k

The one with which the readers' results err least is taken, if they err less than with one scale. No value of any
example is clipped: what a channel loses so is seen on other examples only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from jaxq import numerics
from jaxq.graph.node import LAYOUT, WEIGHTED, Node, QType
from jaxq.passes.place import ScaleGroup
from jaxq.refine import rows
from jaxq.refine.readers import Values, at_least, reader_error
from jaxq.refine.state import Samples, State

# The power of the activations' maxima; the rest is the weights'.
_POWERS = (0.5, 0.75, 0.9)

# Layout ops behind which the last axis is the same channels, besides a reshape of the other axes.
_KEEPS_CHANNELS = frozenset({"copy", "name", "stop_gradient", "convert_element_type", "reduce_window_max", "pad"})


def refine(state: State, samples: Samples) -> State:
    """The state with a scale by channel for each scale group where the readers err less by it, or the config asks for
    one."""
    values, amax = samples.values(state.graph), samples.amax(state.graph)
    qtypes = dict(state.choices.qtypes)
    changed: set[str] = set()
    for group, readers in groups(state):
        if group.name not in values:
            continue
        asked = any(state.config.for_activations(reader.name) == "channel" for reader in readers)
        found = _best(state, group, readers, values, amax[group.name], asked)
        if found is not None:
            qtypes[group.name] = found
            changed |= {reader.name for reader in readers}
    weights = {name: weight for name, weight in state.choices.weights.items() if name not in changed}
    return rows.refine(state.choose(qtypes=qtypes, weights=weights), values)


def groups(state: State) -> Iterator[tuple[ScaleGroup, list[Node]]]:
    """The scale groups whose channels may have scales of their own, and the convs and dots that read each."""
    graph, placement = state.graph, state.placement
    members: dict[ScaleGroup, list[Node]] = {group: [] for group in placement.scale_groups}
    for node, group in placement.groups.items():
        if not group.exact:
            members[group].append(node)
    for group, nodes in members.items():
        users = [(user, node) for node in nodes for user in graph.users.get(node, ())]
        readers = [user for user, x in users if user in placement.int8 - placement.by_row and _reads(user, x)]
        fits = all(_makes_channels(state, node) for node in nodes) and all(
            _takes_channels(state, *use) for use in users
        )
        wanted = all(state.config.for_activations(reader.name) != "tensor" for reader in readers)
        if readers and fits and wanted and not group.in_body and not group.has_zero_point:
            yield group, list(dict.fromkeys(readers))


def _reads(user: Node, x: Node) -> bool:
    return user.op in WEIGHTED and user.operand("x") is x


def _makes_channels(state: State, node: Node) -> bool:
    """Whether the node, of a group, can give each channel its scale."""
    if node not in state.placement.int8:
        return True  # its values are floats and quantized behind it
    if node.op == "reshape":
        return bool(node.aval.shape[-1] == node.inputs[0].aval.shape[-1])
    if node.op == "pad":
        return not any(node.attrs["padding_config"][-1])
    if node.op in LAYOUT:
        return node.op in _KEEPS_CHANNELS
    return node.op != "elementwise" and node.get("residual") is None


def _takes_channels(state: State, user: Node, node: Node) -> bool:
    """Whether the user's integers, or floats, are right where each channel of the node has a scale of its own."""
    placement = state.placement
    if user not in placement.int8 or (user.op in LAYOUT and user in placement.groups):
        return True
    if user.get("residual") is node and (user in placement.groups or node in placement.int8):
        return False
    if user.op in WEIGHTED or user.op in ("affine", "window_sum"):
        return True
    return user.op == "sum" and len(node.aval.shape) - 1 not in user.attrs["axes"]


def _best(
    state: State, group: ScaleGroup, readers: Sequence[Node], values: Values, amax: np.ndarray, asked: bool
) -> QType | None:
    if not np.all(np.isfinite(amax)):
        return None
    measure = reader_error(state, group, readers, values)
    before = state.choices.qtypes[group.name]
    best, least = None, np.inf if asked else measure(before)
    for scale in _candidates(state, group, readers, amax):
        qtype = replace(before, scale=scale)
        error = measure(qtype)
        if error < least:
            best, least = qtype, error
    return best


def _candidates(state: State, group: ScaleGroup, readers: Sequence[Node], amax: np.ndarray) -> Iterator[np.ndarray]:
    """Scales by channel, float64 (C,)."""
    largest = numerics.largest_level(group.dtype)
    of_readers = at_least(np.max([_input_amax(reader, reader.operand("weight").value) for reader in readers], axis=0))
    amax = at_least(amax)
    shapes = [amax**power / of_readers ** (1 - power) for power in _POWERS]
    source = group.sources[0]
    if source.op in WEIGHTED and source in state.placement.int8:
        weight = np.asarray(source.operand("weight").value)
        made = np.abs(weight).max(axis=1 if source.op == "dot" else tuple(range(weight.ndim - 1)))
        shapes.append(np.sqrt(at_least(made) / of_readers))
    for shape in shapes:
        yield shape * (amax / shape).max() / largest


def _input_amax(reader: Node, weight: np.ndarray) -> np.ndarray:
    """The largest weight of each input channel of a conv or dot."""
    if reader.op == "dot":
        return np.abs(weight).max(axis=0)
    groups = reader.attrs["groups"]
    by_group = np.abs(weight).max(axis=tuple(range(weight.ndim - 2))).reshape(weight.shape[-2], groups, -1)
    return by_group.max(axis=-1).T.reshape(-1)
