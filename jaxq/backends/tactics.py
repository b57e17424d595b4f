"""A tactic: the backend that computes a node, and which of its kernel configs. Both are text, as a file holds them.

In the graph that a device runs, attrs["tactic"] of a node is its tactic; a node without one takes the default. The bits
are the same by all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxq.graph.node import Graph, Node

BACKENDS = ("xla", "cpu", "pallas")


@dataclass(frozen=True)
class Tactic:
    """`backend`: one of `BACKENDS`; `config`: a kernel config of it, as it prints, or "" where it has none."""

    backend: str
    config: str = ""

    def __str__(self) -> str:
        return f"{self.backend} {self.config}".rstrip()


XLA, CPU = Tactic("xla"), Tactic("cpu")


def mark(graph: Graph, tactics: Mapping[str, Tactic]) -> Graph:
    """The graph, its nodes with the tactics of their names."""
    return graph.map(lambda node: node.with_attrs(tactic=tactics[node.name]) if node.name in tactics else node)


def of(node: Node) -> Tactic | None:
    """The node's tactic; None for the default."""
    tactic: Tactic | None = node.attrs.get("tactic")
    return tactic
