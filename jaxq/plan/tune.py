"""Which layers to keep in float on this machine, found by measuring.

Every quantized node and its float twin are timed alone, at the network's shapes, as are the borders; `cut` finds the
cheapest precisions by these. What a node takes alone is not what it takes in the network, where XLA fuses and a region
is one call, so that whole networks have the last word: `fastest` times int8, float and the mix beside one another.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from tqdm import tqdm

from jaxq import backends
from jaxq.backends import xla
from jaxq.graph.node import ANCHORS, LAYOUT, Graph, bind
from jaxq.passes.place import Placement, data_inputs
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


def time_twins(
    graph: Graph, placement: Placement, int8: Graph, batch: int, cache: TimingCache, seconds: float
) -> Twins:
    """The times of all quantized nodes of the float graph but those in bodies, in program order, until `seconds` are
    over.

    Args:
      graph, placement: the simplified float graph, placed.
      int8: what becomes of it before parallel layers merge, with the same names.
      batch: the batch size.
      cache: what it holds is not measured again.
    """
    lowered = {node.name: node for node in int8.nodes}
    twins = Twins()
    end = time.perf_counter() + seconds
    nodes = [node for node in graph.nodes if node in placement.quantized]
    for node in tqdm(nodes, desc="timing layers", unit="layer", disable=None):
        if time.perf_counter() > end:
            break
        for value in (*data_inputs(node), node):
            group = placement.groups.get(value)
            if group is not None and not group.exact and value.name not in twins.quantize:
                calls = borders(bind(value.aval, batch), group.dtype)
                twins.quantize[value.name], twins.dequantize[value.name] = timed(calls, cache)
        if node.op in LAYOUT:
            continue
        calls = {described(node, batch): call(alone(node), batch, xla.lower)}
        if node.name in lowered:  # else it is a table in the epilogue of another
            int8_node = lowered[node.name]
            calls[described(int8_node, batch)] = call(alone(int8_node), batch, backends.choose)
        in_float, *in_int8 = timed(calls, cache)
        twins.in_float[node.name], twins.int8[node.name] = in_float, sum(in_int8)
    return twins


# How much of the borders' times alone they take in the network, where XLA fuses some: tried where there is time.
_BORDERS = (1.0, 0.5, 0.0, 2.0)
_MANY_MIXES = 60.0  # seconds


def precisions(graph: Graph, placement: Placement, twins: Twins, seconds: float) -> dict[str, frozenset[str]]:
    """{name: quantized nodes to put into float} for the networks to time: "int8", "float" and mixes, of which there is
    one where `seconds` are few."""
    all_of_them = frozenset(node.name for node in placement.quantized)
    found: dict[frozenset[str], str] = {frozenset(): "int8", all_of_them: "float"}
    for i, part in enumerate(_BORDERS if seconds >= _MANY_MIXES else _BORDERS[:1]):
        mix = slower_in_int8(graph, placement, twins, part)
        found.setdefault(mix, "mixed" if i == 0 else f"mixed, borders at {part:g}")
    anchors = {node.name for node in placement.quantized if node.op in ANCHORS}
    return {name: mix for mix, name in found.items() if name in ("int8", "float") or not anchors <= mix}


def slower_in_int8(graph: Graph, placement: Placement, twins: Twins, part: float = 1.0) -> frozenset[str]:
    """The names of the quantized nodes that the cheapest precisions put into float, borders taking that part of their
    times alone."""
    costs = Costs()
    quantize = {name: part * seconds for name, seconds in twins.quantize.items()}
    dequantize = {name: part * seconds for name, seconds in twins.dequantize.items()}
    for node in graph.nodes:
        if node not in placement.quantized:
            continue
        costs.int8[node.name] += twins.int8.get(node.name, 0.0)
        costs.in_float[node.name] += twins.in_float.get(node.name, 0.0)
        if node in placement.weight_only:  # it reads floats and makes one
            continue
        if node in graph.outputs or any(user not in placement.int8 for user in graph.users[node]):
            costs.int8[node.name] += dequantize.get(node.name, 0.0)
        for source in dict.fromkeys(data_inputs(node)):
            if source in placement.int8:
                border = dequantize.get(source.name, 0.0), quantize.get(source.name, 0.0)
                costs.edges[source.name, node.name] = border
            else:
                costs.int8[node.name] += quantize.get(source.name, 0.0)
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
