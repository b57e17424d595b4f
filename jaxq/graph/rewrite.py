"""The rewrite engine: one sweep over the nodes in order, each offered to the rules of its op until none applies.

A rule is a row of a pass's table: (op, function). The function takes a `Match` and returns the node that replaces
`match.node`, or None. It never changes a node. A node's inputs are already rewritten when its rules see it, so a chain
collapses into its head in one sweep, and a sweep costs time linear in the number of nodes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jaxq.graph.node import Graph, Node


@dataclass
class Match:
    """A node that a rule may replace, and what the rule may know about the graph around it."""

    node: Node
    uses: dict[Node, int] = field(default_factory=dict)
    depth: dict[Node, int] = field(default_factory=dict)

    def is_sole_user(self, source: Node) -> bool:
        """True if only `node` reads `source`, so that `source` may be absorbed."""
        return self.uses[source] == 1


Rule = tuple[str, Callable[[Match], Node | None]]


def rewrite(graph: Graph, rules: Sequence[Rule]) -> Graph:
    """One sweep of the rules over the graph and its bodies; of several rules for one op the first that applies wins."""
    if not graph.nodes:
        return graph
    table: dict[str, list[Callable[[Match], Node | None]]] = {}
    for op, rule in rules:
        table.setdefault(op, []).append(rule)
    match = Match(graph.nodes[0])
    counts = {node: len(users) for node, users in graph.users.items()}
    for node in graph.outputs:
        counts[node] += 1

    def know(node: Node, uses: int) -> None:
        match.uses[node] = uses
        match.depth[node] = 1 + max((match.depth.get(source, 0) for source in node.inputs), default=0)

    def release(node: Node) -> None:
        """Nothing reads the node any more."""
        for source in node.inputs:
            match.uses[source] -= 1
            if match.uses[source] == 0:
                release(source)

    def settled(node: Node, uses: int) -> Node:
        """What the node becomes when no rule applies any more to it, nor to what a rule put below it."""
        while True:
            below = tuple(source if source in match.uses else settled(source, 1) for source in node.inputs)
            if any(a is not b for a, b in zip(below, node.inputs, strict=True)):
                node = node.replace(inputs=below)
            know(node, uses)
            match.node = node
            replaced = next((r for rule in table.get(node.op, ()) if (r := rule(match)) is not None), None)
            if replaced is None:
                return node
            if replaced in match.uses:  # a node below: what read this one reads that one
                match.uses[replaced] += uses
                release(node)
                return replaced
            node = replaced

    new: dict[Node, Node] = {}
    for node in (*graph.inputs, *graph.nodes):
        if node not in new:
            moved = node.replace(inputs=tuple(new[source] for source in node.inputs))
            moved = moved.with_bodies(lambda body: rewrite(body, rules))
            new[node] = settled(moved, counts.get(node, 0))
    return Graph(tuple(new[node] for node in graph.inputs), tuple(new[node] for node in graph.outputs))
