"""Every int8 node of a compiled plan beside what NumPy makes of the same operands."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq import backends
from jaxq.graph.node import LAYOUT, Graph, Node, is_int8, topological
from jaxq.graph.replay import replay
from jaxq.plan.plan import Plan


@dataclass(frozen=True)
class Difference:
    """Where two arrays that should be the same are not.

    Attributes:
      name, op: of the node.
      count, size: elements that differ, of how many.
      index: of the first of them.
      expected, found: its value by NumPy, and in the compiled plan.
      largest: the largest difference; None where a NaN stands against a number.
    """

    name: str
    op: str
    count: int
    size: int
    index: tuple[int, ...]
    expected: float
    found: float
    largest: float | None


def int8_nodes(graph: Graph) -> list[Node]:
    """Those that are compared, in program order: not those inside loops and branches, whose values stay there."""
    return [node for node in graph.nodes if is_int8(node)]


def inside_bodies(graph: Graph) -> int:
    """How many int8 nodes stand in loops and branches."""
    return sum(is_int8(node) for node in graph.all_nodes) - len(int8_nodes(graph))


def probe(plan: Plan, batch: int, args: Any) -> tuple[Graph, dict[Node, np.ndarray]]:
    """The plan's graph bound to the batch size, and the values in the compiled plan of its outputs, of its int8 nodes
    and of what those read. The plan is compiled with these nodes as further results, by the backends that run it."""
    seen = dict.fromkeys(plan.graph.outputs)
    for node in int8_nodes(plan.graph):
        seen.update(dict.fromkeys(source for source in node.inputs if not source.is_constant))
        seen[node] = None
    graph = Graph(plan.graph.inputs, tuple(seen))
    wider = dataclasses.replace(plan, graph=graph, out_tree=jax.tree.structure([0] * len(seen)))
    params = jax.tree.map(jnp.asarray, backends.prepare(wider.gathered, plan.graph.params))
    found = wider(params, *args)
    bound = wider.graph.bind(batch)
    of = dict(zip(seen, bound.outputs, strict=True))
    values = {node: np.asarray(value) for node, value in zip(bound.outputs, found, strict=True)}
    return Graph(bound.inputs, tuple(of[node] for node in plan.graph.outputs)), values


def differences(graph: Graph, values: dict[Node, np.ndarray]) -> Iterator[Difference]:
    """Of every int8 node from what NumPy makes of the operands that it had in the compiled plan, in program order. So a
    node that differs is itself wrong, whatever was wrong before it."""
    for node in int8_nodes(graph):
        expected = replay(node)(*(_value(values, source) for source in node.inputs))
        if (found := difference(node, expected, values[node])) is not None:
            yield found


def _value(values: dict[Node, np.ndarray], node: Node) -> np.ndarray:
    return np.asarray(node.value) if node.is_constant else values[node]


def difference(node: Node, expected: np.ndarray, found: np.ndarray) -> Difference | None:
    """None where the values are equal, NaN to NaN and 0 to -0."""
    wide = [array.astype(np.float64) for array in (expected, found)]
    differ = ~((wide[0] == wide[1]) | (np.isnan(wide[0]) & np.isnan(wide[1])))
    if not np.any(differ):
        return None
    index = tuple(int(i) for i in np.argwhere(differ)[0])
    with np.errstate(invalid="ignore"):
        largest = float(np.max(np.abs(wide[0] - wide[1])[differ]))
    return Difference(
        name=node.name,
        op=node.op,
        count=int(np.sum(differ)),
        size=expected.size,
        index=index,
        expected=float(wide[0][index]),
        found=float(wide[1][index]),
        largest=None if np.isnan(largest) else largest,
    )


def is_exact(node: Node) -> bool:
    """Whether the value hangs on integers alone, so that its bits are the same in every program. Floats are not: each
    compiler sums and contracts them as it likes."""
    return all(
        is_int8(node) or node.op in LAYOUT or node.op == "input" or node.is_constant for node in topological((node,))
    )


def decibels(expected: np.ndarray, found: np.ndarray) -> float:
    """The signal to noise ratio of `found`; infinite where the two are equal, minus infinite where only one is NaN."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if np.all(same):
        return np.inf
    noise = np.sum((a[~same] - b[~same]) ** 2)
    signal = np.sum(a[np.isfinite(a)] ** 2)
    return float(10 * np.log10(signal / noise)) if np.isfinite(noise) and signal > 0 else -np.inf
