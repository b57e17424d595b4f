"""Which nodes compute on integers, which values exist as integers, and which of those share one scale.

    anchor      a conv or dot, a product of two matrices: int8 wherever the rules and the accumulator allow
    by row      a dot under "token" is an anchor that reads floats: each row of them gets a scale of its own inside the
                graph, so that it wants no integers and no threshold
    flexible    a pool, add, gate, affine map, elementwise function or layout op: int8 where it stands between int8
                nodes, that is, where its inputs are at hand as integers and its result flows into an anchor
    the rest    float; a dot whose weights alone are quantized among it

The body of a scan, while or cond is placed as a graph of its own: float values cross its border.

An int8 layout op moves values and makes none, so its inputs and its result share one scale: a scale group. A group's
threshold comes from the histograms of its sources, the values in it that no int8 layout op made. The bytes of an image
that the function converts to float are integers of scale 1 already, and need no threshold: an exact group.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from jaxq import numerics
from jaxq.config import QuantConfig
from jaxq.graph.node import ACCUMULATING, ANCHORS, LAYOUT, WEIGHTED, Aval, Graph, Node, reads_bytes
from jaxq.passes.elementwise import LARGEST_STEEPNESS
from jaxq.passes.floors import floors
from jaxq.passes.layout import sees_padding_alone
from jaxq.passes.signs import never_negative

# What is int8 only between int8 nodes.
_FLEXIBLE = (ACCUMULATING - ANCHORS.keys()) | LAYOUT | {"elementwise"}


@dataclass(frozen=True, eq=False)
class ScaleGroup:
    """Values of one scale and dtype. `sources` are the nodes whose histograms make the threshold; the first in program
    order names the group. `exact`: they are bytes that the function itself made floats of; their scale is 1. `in_body`:
    they stand in the body of a scan, while or cond. `least`: no value is less, or it is as good as this one: 0 or a
    little below where they are uint8; where they are int8 the floor of the functions that read them (`floors.py`), or
    -inf. `floor`: what lower values count as in histograms, or -inf."""

    sources: tuple[Node, ...]
    dtype: str
    exact: bool = False
    in_body: bool = False
    least: float = -np.inf
    floor: float = -np.inf

    @property
    def name(self) -> str:
        return self.sources[0].name

    @property
    def has_zero_point(self) -> bool:
        """Whether 0 may be another integer than 0."""
        return -np.inf < self.least < 0


@dataclass(frozen=True, eq=False)
class Placement:
    """`int8`: nodes that compute on integers. `by_row`: the dots among them that read floats, whose rows get scales of
    their own. `weight_only`: dots on floats whose weights are quantized. `groups`: the scale group of every value that
    exists as integers. `reasons`: why each of the other nodes stays in float. Those of bodies are among them all."""

    int8: frozenset[Node]
    by_row: frozenset[Node]
    weight_only: frozenset[Node]
    groups: dict[Node, ScaleGroup]
    reasons: dict[Node, str]

    @property
    def quantized(self) -> frozenset[Node]:
        """The nodes that are not in float, or not all of them."""
        return self.int8 | self.weight_only

    def onto(self, graph: Graph) -> "Placement":
        """The same for a graph whose nodes, bodies' too, have the names of those placed."""
        named = {node.name: node for node in graph.all_nodes if not node.is_constant}

        def moved(nodes: Iterable[Node]) -> list[Node]:
            return [named[node.name] for node in nodes]

        groups = {group: replace(group, sources=tuple(moved(group.sources))) for group in self.groups.values()}
        return Placement(
            frozenset(moved(self.int8)),
            frozenset(moved(self.by_row)),
            frozenset(moved(self.weight_only)),
            {named[node.name]: groups[group] for node, group in self.groups.items()},
            {named[node.name]: reason for node, reason in self.reasons.items()},
        )

    @property
    def scale_groups(self) -> tuple[ScaleGroup, ...]:
        """The groups that need a threshold."""
        return tuple(group for group in dict.fromkeys(self.groups.values()) if not group.exact)

    def on(self, new: Mapping[Node, Node]) -> "Placement":
        """The same placement of the nodes' counterparts in another graph."""

        def moved(group: ScaleGroup) -> ScaleGroup:
            return replace(group, sources=tuple(new[source] for source in group.sources))

        groups = {group: moved(group) for group in dict.fromkeys(self.groups.values())}
        return Placement(
            frozenset(new[node] for node in self.int8),
            frozenset(new[node] for node in self.by_row),
            frozenset(new[node] for node in self.weight_only),
            {new[node]: groups[group] for node, group in self.groups.items()},
            {new[node]: reason for node, reason in self.reasons.items()},
        )


def place(
    graph: Graph, config: QuantConfig, unseen: Collection[str] = (), in_float: Mapping[str, str] | None = None
) -> Placement:
    """Places the nodes of a folded and fused float graph.

    Args:
      graph: with unique names.
      config: whose rules keep layers in float.
      unseen: names of the values that calibration observed and never saw. A body that holds one was never run, and
        stays in float.
      in_float: {name of a node: why it stays in float} beside what the config says.
    """
    in_float = in_float or {}
    parts = [_place(graph, config, in_float), *_bodies(graph, config, unseen, in_float)]
    return Placement(
        frozenset().union(*(part.int8 for part in parts)),
        frozenset().union(*(part.by_row for part in parts)),
        frozenset().union(*(part.weight_only for part in parts)),
        {node: group for part in parts for node, group in part.groups.items()},
        {node: reason for part in parts for node, reason in part.reasons.items()},
    )


def _bodies(
    graph: Graph, config: QuantConfig, unseen: Collection[str], in_float: Mapping[str, str]
) -> Iterator[Placement]:
    """The placements of all bodies in the graph."""
    for node in graph.nodes:
        for body in node.bodies:
            if body is node.attrs.get("cond"):
                yield _in_float(body.all_nodes, "the condition of a while stays in float")
            elif any(inner.name in unseen for inner in (*body.inputs, *body.nodes)):
                yield _in_float(body.all_nodes, f"calibration never took this {_part(node)}")
            else:
                yield _place(body, config, in_float, in_body=True)
                yield from _bodies(body, config, unseen, in_float)


def _part(node: Node) -> str:
    return "branch" if node.op == "cond" else "loop"


def _in_float(nodes: Iterable[Node], reason: str) -> Placement:
    made = (node for node in nodes if not node.is_constant and node.op != "input")
    return Placement(frozenset(), frozenset(), frozenset(), {}, dict.fromkeys(made, reason))


def _place(graph: Graph, config: QuantConfig, in_float: Mapping[str, str], in_body: bool = False) -> Placement:
    """The placement of the nodes of one graph, without those of its bodies."""
    reasons = {node: in_float[node.name] for node in graph.nodes if node.name in in_float}
    capable: set[Node] = set()
    anchors = {node for node in graph.nodes if node.op in ANCHORS and not _set_reason(reasons, node, config)}
    weight_only = {node for node in anchors if config.for_weights(node.name).weight_only}
    anchors -= weight_only
    by_row = {node for node in anchors if _reads_by_row(node, config)}
    read = {node: () if node in by_row else tuple(map(node.operand, ANCHORS[node.op])) for node in anchors}
    feeding = {source for sources in read.values() for source in sources}
    for node in graph.nodes:
        if node in anchors or reads_bytes(node):
            capable.add(node)
        elif node.op in _FLEXIBLE:
            at_hand = all(source in capable or source in feeding for source in data_inputs(node))
            if not at_hand:
                reasons.setdefault(node, "its inputs are float")
            elif not _set_reason(reasons, node, config):
                capable.add(node)

    wanted: set[Node] = set()
    for node in reversed(graph.nodes):
        for user in graph.users[node]:
            if node in read.get(user, ()):
                wanted.add(node)
            elif user in capable and user in wanted and not reads_bytes(user):
                integers = (user.get("residual"),) if user in by_row else data_inputs(user)
                if node in integers and not node.is_constant:
                    wanted.add(node)
    int8 = anchors | (capable & wanted)
    groups = _groups(graph, int8, wanted, config, in_body)
    int8 -= {node for node in int8 if reads_bytes(node) and not groups[node].exact}
    explained = int8 | weight_only | reasons.keys()
    for node in graph.nodes:
        if node not in explained and not node.is_constant and node.op != "input":
            known = node in capable
            reasons[node] = "its result is used in float only" if known else _unknown(node)
    return Placement(frozenset(int8), frozenset(by_row), frozenset(weight_only), groups, reasons)


def _reads_by_row(node: Node, config: QuantConfig) -> bool:
    """A row of nothing has no scale."""
    return node.op == "dot" and config.for_activations(node.name) == "token" and terms(node) != 0


def data_inputs(node: Node) -> tuple[Node, ...]:
    """The operands that are activations: not weights and other constants, a padding value or indices."""
    if node.op in ACCUMULATING:
        operands = (node.get(role) for role in ("x", "y", "residual"))
        return tuple(operand for operand in operands if operand is not None and not operand.is_constant)
    return node.inputs[:1] if node.op in ("pad", "dynamic_slice", "gather") else node.inputs


def _unknown(node: Node) -> str:
    if node.op == "dot_general":
        if any(source.is_constant for source in node.inputs):
            return "its constant has one matrix an example, or its operands are not float values"
        return "it flattens the batch together with another axis"
    if node.op == "conv_general_dilated":
        if node.inputs[1].is_constant:
            return "it groups its batch, or has more than three spatial axes"
        return "its kernel is not a constant"
    if node.op == "add":
        return "both sides of the sum are broadcast"
    if node.op in ("softmax", "layer_norm"):
        return "its rows are summed in float"
    if node.op in ("scan", "while", "cond"):
        return f"floats go in and out of the {'branches' if node.op == 'cond' else 'turns'} of a {node.op}"
    if node.op == "opaque":
        return f"{node.attrs['primitive'].name} has no int8 form"
    return f"{node.op} has no int8 form"


def _set_reason(reasons: dict[Node, str], node: Node, config: QuantConfig) -> bool:
    """Whether there is one why the node cannot be int8."""
    reason = reasons.get(node) or _why_not(node, config)
    if reason is not None:
        reasons[node] = reason
    return reason is not None


def _why_not(node: Node, config: QuantConfig) -> str | None:
    """Why the node cannot be int8, or None. Looks at the node alone."""
    if not isinstance(node.aval, Aval) or not node.aval.is_float:
        return "it is not a float value"
    if not all(isinstance(s.aval, Aval) and s.aval.is_float and not s.is_constant for s in data_inputs(node)):
        return "an operand is a constant or not a float value"
    if not config.quantizes(node.name):
        return f"rule {config.rule(node.name).pattern!r}"  # type: ignore[union-attr]
    if node.op == "elementwise" and node.attrs["steepness"] > LARGEST_STEEPNESS:
        steepness = node.attrs["steepness"]
        return f"a table of it would be too coarse: it is {steepness:.3g} times as steep in one place as on average"
    if node.op in ACCUMULATING and not isinstance(node.aval.shape[-1], int):
        return "its last axis follows the batch"
    if node.op in ANCHORS and config.for_weights(node.name).weight_only:
        return None if node.op == "dot" else f"weight_only: there is no such form of a {node.op}"
    if node.op == "pad" and not (node.inputs[1].is_constant and float(np.asarray(node.inputs[1].value)) == 0.0):
        return "it pads with another value than zero"
    if node.op == "gather" and node.attrs["mode"] == "FILL_OR_DROP":
        return "an index of it may lie outside, where it fills in NaN"
    if node.op == "reduce_window_max" and sees_padding_alone(node):
        return "a window of it may lie in the padding alone"
    if node.op in ACCUMULATING:
        count, limit = terms(node), numerics.max_terms(_LARGEST_TERM.get(node.op, 255))
        if not isinstance(count, int):
            return "it sums over the batch"
        if count > limit:
            return f"a sum of {count} terms overflows an int32 accumulator (at most {limit})"
    return None


# Of one product, or one value, whatever its dtype; 255 for a sum of values.
_LARGEST_TERM = {"conv": 255 * 127, "dot": 255 * 127, "matmul": 255 * 255, "product": 255 * 255}


def terms(node: Node) -> Any:
    """How many products, or values, one accumulator of the accumulating op sums."""
    if node.op in ("conv", "dot"):
        shape = node.operand("weight").aval.shape
        return prod(shape[:-1]) if node.op == "conv" else shape[1]
    if node.op == "matmul":
        return node.operand("x").aval.shape[-1]
    if node.op == "sum":
        return prod(node.operand("x").aval.shape[axis] for axis in node.attrs["axes"])
    return prod(node.attrs["window"]["window_dimensions"]) if node.op == "window_sum" else 1


def _groups(
    graph: Graph, int8: Collection[Node], wanted: set[Node], config: QuantConfig, in_body: bool
) -> dict[Node, ScaleGroup]:
    parent = {node: node for node in graph.nodes if node in wanted}

    def root(node: Node) -> Node:
        while parent[node] is not node:
            parent[node] = node = parent[parent[node]]
        return node

    for node in int8:
        if node.op in LAYOUT and not reads_bytes(node):
            for source in data_inputs(node):
                parent[root(source)] = root(node)
    members: dict[Node, list[Node]] = {}
    for node in parent:
        members.setdefault(root(node), []).append(node)
    order = {node: i for i, node in enumerate((*graph.inputs, *graph.nodes))}
    positive, floor_of = never_negative(graph), floors(graph)
    groups: dict[Node, ScaleGroup] = {}
    for group in members.values():
        sources = [node for node in group if reads_bytes(node) or not (node in int8 and node.op in LAYOUT)]
        sources.sort(key=order.__getitem__)
        least = 0.0 if all(source in positive for source in sources) else _least(graph, int8, group, sources, config)
        exact = all(reads_bytes(source) for source in sources)
        dtype = "uint8" if np.isfinite(least) else "int8"
        # What has a floor is read by functions alone, and so has its group to itself.
        floor = floor_of.get(sources[0], -np.inf) if dtype == "int8" else -np.inf
        if floor > -np.inf and _takes_floor(graph, int8, sources[0], config):
            least = floor
        groups.update(dict.fromkeys(group, ScaleGroup(tuple(sources), dtype, exact, in_body, least, floor)))
    return groups


def _least(
    graph: Graph, int8: Collection[Node], group: Iterable[Node], sources: Iterable[Node], config: QuantConfig
) -> float:
    """The least value in a group that is worth a zero point, -inf for other groups. Its sources are skewed functions,
    which int8 has as tables, and all that read it take a zero point."""
    if not all(source in int8 and source.op == "elementwise" for source in sources):
        return -np.inf
    users = [(user, node) for node in group for user in graph.users[node]]
    if any(config.for_activations(user.name) == "tensor" for user, _ in users if user.op in WEIGHTED):
        return -np.inf
    if not all(_takes_zero_point(*use) for use in users):
        return -np.inf
    return float(min(source.attrs["least"] for source in sources))


def _takes_floor(graph: Graph, int8: Collection[Node], node: Node, config: QuantConfig) -> bool:
    """Whether an int8 conv or dot is to begin at its floor: tables, which take any zero point, read it."""
    return node in int8 and config.for_activations(node.name) != "tensor" and all(u in int8 for u in graph.users[node])


def _takes_zero_point(user: Node, node: Node) -> bool:
    """Whether what the user makes of the node's raw integers is off by a constant of each channel only. (A float user
    reads them dequantized.)"""
    if user.op in ("matmul", "product"):
        return node not in (user.operand("x"), user.operand("y"))
    return user.op != "window_sum" or not any(map(any, user.attrs["window"]["padding"]))
