"""Which layers to keep in float on this machine, found by measuring.

Every quantized node and its float twin are timed alone, at the network's shapes, as are the borders; `cut` finds the
cheapest precisions by these. What a node takes alone is not what it takes in the network, where XLA fuses and a region
is one call, so that whole networks have the last word: `fastest` times int8, float and the mix beside one another.

This file knows layers and how values flow between them; `Layer`s and the `Flow` of a float graph are made here, those
of an int8 graph, a file's, in `retune.py`.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from tqdm import tqdm

from jaxq.backends import xla
from jaxq.graph.node import ANCHORS, LAYOUT, Aval, Graph, Node, bind
from jaxq.passes.place import Placement, data_inputs
from jaxq.plan import tactics
from jaxq.plan.alone import Call, alone, borders, call, described, timed
from jaxq.plan.cut import Costs, cheapest
from jaxq.plan.timing import TimingCache, drawn, interleaved


@dataclass(frozen=True)
class Twins:
    """Seconds by node name: alone in int8, alone in float; and to quantize and dequantize the value that it makes."""

    int8: dict[str, float] = field(default_factory=dict)
    in_float: dict[str, float] = field(default_factory=dict)
    quantize: dict[str, float] = field(default_factory=dict)
    dequantize: dict[str, float] = field(default_factory=dict)

    def layers(self) -> dict[str, tuple[float, float]]:
        """{layer: (seconds in int8, in float)}."""
        return {name: (seconds, self.in_float[name]) for name, seconds in self.int8.items()}

    def reason(self, name: str) -> str:
        """Why the layer is in float."""
        int8, in_float = self.int8.get(name, 0.0), self.in_float.get(name, 0.0)
        if int8 <= in_float:
            return "the layers around it are faster in float"
        return f"float is faster: {1e3 * in_float:.3g} ms alone, {1e3 * int8:.3g} ms quantized"


@dataclass(frozen=True)
class Layer:
    """A quantized node to time alone, beside its float twin.

    Attributes:
      name: of the node.
      values: {name: (shape and dtype in float, integer dtype)} of what it reads and makes in integers.
      in_float: its twin, a graph, by the name of its time; empty where both only move values.
      in_int8: the node; None where it is a part of the epilogue of another.
    """

    name: str
    values: Mapping[str, tuple[Aval, str]]
    in_float: Mapping[str, Graph]
    in_int8: Node | None


def layers_of(graph: Graph, placement: Placement, int8: Graph, batch: int) -> list[Layer]:
    """The quantized nodes of the float graph but those in bodies, in program order. `int8` is what becomes of it before
    parallel layers merge, with the same names."""
    lowered = {node.name: node for node in int8.nodes}

    def layer(node: Node) -> Layer:
        groups = {value: placement.groups.get(value) for value in (*data_inputs(node), node)}
        values = {v.name: (v.aval, group.dtype) for v, group in groups.items() if group and not group.exact}
        if node in placement.by_row:
            x = node.operand("x")
            values.setdefault(x.name, (x.aval, "int8"))
        in_float = {} if node.op in LAYOUT else {described(node, batch): alone(node)}
        return Layer(node.name, values, in_float, lowered.get(node.name))

    return [layer(node) for node in graph.nodes if node in placement.quantized]


@dataclass(frozen=True)
class Budget:
    """What tuning may take: seconds that it measures for, and what these are spent on. To compile the networks comes on
    top."""

    seconds: float

    @property
    def layers(self) -> float:
        return self.seconds * 3 / 8

    @property
    def tactics(self) -> float:
        """For what merging made, of each network."""
        return self.seconds / 16

    @property
    def networks(self) -> float:
        return self.seconds / 2

    @property
    def is_patient(self) -> bool:
        """Whether more is tried: more mixes of whole networks, all kernel configs."""
        return self.seconds >= 60


def time_layers(layers: Sequence[Layer], batch: int, cache: TimingCache, seconds: float, patient: bool) -> Twins:
    """The times of the layers, in int8 by the fastest tactic (`tactics.rivals`), and of their borders, until `seconds`
    are over; what the cache holds is not measured again."""
    twins = Twins()
    end = time.perf_counter() + seconds
    for layer in tqdm(layers, desc="timing layers", unit="layer", disable=None):
        if time.perf_counter() > end:
            break
        for name, (aval, dtype) in layer.values.items():
            if name not in twins.quantize:
                found = timed(borders(bind(aval, batch), dtype), cache)
                twins.quantize[name], twins.dequantize[name] = found.values()
        if not layer.in_float:
            continue
        in_float = {what: call(graph, batch, xla.lower) for what, graph in layer.in_float.items()}
        in_int8 = {} if layer.in_int8 is None else tactics.rivals(layer.in_int8, batch, patient)
        found = timed(in_float | in_int8, cache, alike=in_int8)
        twins.in_float[layer.name] = sum(found[what] for what in in_float)
        twins.int8[layer.name] = 0.0
        if layer.in_int8 is not None:
            twins.int8[layer.name] = tactics.fastest(layer.in_int8, batch, cache)[1] or 0.0
    cache.save()
    return twins


@dataclass(frozen=True)
class Flow:
    """How values go between the quantized nodes of a graph, by names.

    Attributes:
      nodes: in program order.
      movable: all quantized nodes that have a form in float, those in bodies, too.
      anchors: those of the nodes that int8 is there for.
      edges: (maker, reader) of what one node makes and another reads.
      entering: (value, reader) of what is quantized for a node.
      leaving: the nodes whose results are dequantized.
    """

    nodes: Sequence[str]
    movable: frozenset[str]
    anchors: frozenset[str]
    edges: Sequence[tuple[str, str]]
    entering: Sequence[tuple[str, str]]
    leaving: Collection[str]


def flow_of(graph: Graph, placement: Placement) -> Flow:
    """That of a float graph; a weight-only dot reads floats and makes one."""
    nodes = [node for node in graph.nodes if node in placement.int8]
    read = [(source, node) for node in nodes for source in dict.fromkeys(data_inputs(node))]
    return Flow(
        [node.name for node in graph.nodes if node in placement.quantized],
        frozenset(node.name for node in placement.quantized),
        frozenset(node.name for node in placement.quantized if node.op in ANCHORS),
        [(source.name, node.name) for source, node in read if source in placement.int8],
        [(source.name, node.name) for source, node in read if source not in placement.int8],
        {n.name for n in nodes if n in graph.outputs or any(user not in placement.int8 for user in graph.users[n])},
    )


# How much of the borders' times alone they take in the network, where XLA fuses some: tried where there is time.
_BORDERS = (1.0, 0.5, 0.0, 2.0)


def precisions(flow: Flow, twins: Twins, budget: Budget) -> dict[str, frozenset[str]]:
    """{name: nodes to put into float} for the networks to time: "int8", "float" and mixes, of which there is one
    unless the budget is patient."""
    found: dict[frozenset[str], str] = {frozenset(): "int8", flow.movable: "float"}
    for i, part in enumerate(_BORDERS if budget.is_patient else _BORDERS[:1]):
        found.setdefault(slower_in_int8(flow, twins, part), "mixed" if i == 0 else f"mixed, borders at {part:g}")
    return {name: mix for mix, name in found.items() if name in ("int8", "float") or not flow.anchors <= mix}


_NEVER = 1e3  # seconds


def slower_in_int8(flow: Flow, twins: Twins, part: float = 1.0) -> frozenset[str]:
    """The names of the quantized nodes that the cheapest precisions put into float, borders taking that part of their
    times alone."""
    costs = Costs()
    quantize = {name: part * seconds for name, seconds in twins.quantize.items()}
    dequantize = {name: part * seconds for name, seconds in twins.dequantize.items()}
    for name in flow.nodes:
        costs.int8[name] += twins.int8.get(name, 0.0)
        costs.in_float[name] += twins.in_float.get(name, 0.0) if name in flow.movable else _NEVER
    for name in flow.leaving:
        costs.int8[name] += dequantize.get(name, 0.0)
    for value, reader in flow.entering:
        costs.int8[reader] += quantize.get(value, 0.0)
    for maker, reader in flow.edges:
        costs.edges[maker, reader] = dequantize.get(maker, 0.0), quantize.get(maker, 0.0)
    return frozenset(str(name) for name, is_int8 in cheapest(costs).items() if not is_int8)


# Medians that lie closer are even: what chance decides is int8, which is smaller.
_EVEN = 1.03


def choices(seconds: Mapping[str, float]) -> list[str]:
    """The networks that were timed, the fastest first, but int8 where it is even with it; the user's function is none
    of them."""
    plans = {name: taken / (_EVEN if name == "int8" else 1.0) for name, taken in seconds.items() if name != "function"}
    return sorted(plans, key=lambda name: (plans[name], name != "int8"))


def arguments(graph: Graph, in_tree: Any, batch: int) -> Any:
    """Drawn arguments of the network, on the device."""
    return jax.tree.unflatten(in_tree, jax.device_put(drawn([bind(node.aval, batch) for node in graph.inputs])))


def fastest(calls: Mapping[str, Call], seconds: float) -> dict[str, float]:
    """The median seconds of whole networks by name, measured side by side."""
    return dict(zip(calls, interleaved(list(calls.values()), seconds), strict=True))
