"""The tactics of a plan's nodes, found by measuring each node alone at the network's shapes.

What tells right bits from wrong ones is XLA, which takes every node, and whose bits the tests hold to the reference.
The reference itself would take seconds for a convolution.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from jaxq import backends
from jaxq.backends.tactics import CPU, XLA, Tactic
from jaxq.graph.node import Aval, Graph, Node, constant
from jaxq.plan.alone import Call, alone, call, described, timed
from jaxq.plan.timing import TimingCache, device_label

# Another tactic than the default has to be faster by more than chance, alone.
_NOISE = 1.1
# Kernel configs of a node that are tried where there is little time: the heuristic default, and those ranked next.
_FEW = 4


@dataclass(frozen=True)
class Tactics:
    """Of a plan's nodes by name, where another tactic than the default is faster.

    Attributes:
      device: the kind of device that they were measured on.
      by_name: {name of a node: its tactic}.
    """

    device: str
    by_name: Mapping[str, Tactic]

    def here(self) -> Mapping[str, Tactic]:
        """Those to obey: none on another kind of device."""
        return self.by_name if self.device == device_label() else {}


def rivals(node: Node, batch: int, patient: bool) -> dict[str, Call]:
    """The calls of an int8 node alone by each tactic, the default first, as the timing cache names them; of few
    unless `patient`."""
    tactics = _candidates(node, batch)
    if not tactics:
        return {described(node, batch): call(alone(node), batch, backends.choose)}
    some = tactics if patient else (*tactics[:-1][:_FEW], tactics[-1])
    return {_name(node, batch, t): call(alone(node.with_attrs(tactic=t)), batch, backends.choose) for t in some}


def fastest(node: Node, batch: int, cache: TimingCache) -> tuple[Tactic | None, float | None]:
    """The fastest of an int8 node's tactics by the times in the cache, or None for the default; and its seconds, where
    there are any."""
    tactics = _candidates(node, batch)
    if not tactics:
        return None, cache.get(described(node, batch))
    found = {t: seconds for t in tactics if (seconds := cache.get(_name(node, batch, t))) is not None}
    if not found:
        return None, None
    default = tactics[0]

    def cost(tactic: Tactic) -> float:
        border = _border(cache) if default == CPU and tactic == XLA else 0.0
        return found[tactic] if tactic == default else found[tactic] * _NOISE + border

    best = min(found, key=cost)
    return None if best == default else best, found[best]


def measure(graph: Graph, batch: int, cache: TimingCache, seconds: float, patient: bool) -> Tactics:
    """The tactics of all nodes of an int8 graph but those in bodies: by the times in the cache, which those that it
    lacks are added to until `seconds` are over."""
    end = time.perf_counter() + seconds
    by_name = {}
    for node in tqdm([n for n in graph.nodes if _candidates(n, batch)], desc="timing tactics", disable=None):
        if time.perf_counter() < end:
            calls = rivals(node, batch, patient)
            timed(calls, cache, alike=calls)
        tactic, _ = fastest(node, batch, cache)
        if tactic is not None:
            by_name[node.name] = tactic
    return Tactics(cache.device, by_name)


def _candidates(node: Node, batch: int) -> tuple[Tactic, ...]:
    (bound,) = alone(node).bind(batch).outputs
    return backends.candidates(bound)


def _name(node: Node, batch: int, tactic: Tactic) -> str:
    return f"{described(node, batch)} by {tactic}"


def _border(cache: TimingCache) -> float:
    """What it costs that XLA computes a node inside a region of the CPU's: one more call, for the region's rest."""
    operands = {
        "x": Node("input", (), {}, Aval((1, 16), np.dtype(np.int8)), "x"),
        "weight": constant(np.zeros((16, 16), np.int8), "weight"),
        **{role: constant(np.zeros(16, np.float32), role) for role in ("multiplier", "bias", "lo", "hi")},
    }
    smallest = Node("dot", (), {}, Aval((1, 16), np.dtype(np.int8)), "smallest").with_operands(operands)
    (seconds,) = timed({"a call of the CPU's kernels": call(alone(smallest), 1, backends.choose)}, cache).values()
    return seconds
