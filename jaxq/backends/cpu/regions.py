"""Regions: the nodes that the CPU kernels take, gathered so that each region is one call.

A node's level counts how often a path to it changes from nodes that are not taken to nodes that are. The taken nodes of
one level are a region: no path leaves it and comes back, since it would come back on a higher level.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxq.backends.cpu.edges import edges
from jaxq.backends.cpu.takes import why_not
from jaxq.graph.node import ANCHORS, Graph, Node


@dataclass(frozen=True, eq=False)
class Unbound:
    """The body of a region whose dimensions follow the batch (`Graph.bind` leaves it alone)."""

    graph: Graph


def gather(graph: Graph) -> Graph:
    """The int8 graph with every region as one "region" node: attrs["body"] is its graph, whose inputs stand for the
    node's, and attrs["unbound"] the same for any batch. Bodies of scan, while and cond stay as they are."""
    taken = {node for node in graph.nodes if node.op != "input" and not node.is_constant and why_not(node) is None}
    taken |= edges(graph, taken)
    members: dict[int, list[Node]] = {}
    for node, level in _levels(graph, taken).items():
        if node in taken:
            members.setdefault(level, []).append(node)
    new: dict[Node, Node] = {}
    regions = {node: nodes for nodes in members.values() if is_worth_a_call(nodes) for node in nodes}
    for node in _ordered(graph, regions):
        if node in regions:
            if node is regions[node][0]:
                new.update(_region(graph, regions[node], new))
        else:
            moved = tuple(new[source] for source in node.inputs)
            new[node] = node if moved == node.inputs else node.replace(inputs=moved)
    return Graph(graph.inputs, tuple(new[node] for node in graph.outputs))


def is_worth_a_call(nodes: Sequence[Node]) -> bool:
    """XLA does what is not a product as fast, and fuses it with the floats around it."""
    return any(node.op in ANCHORS or node.op == "weight_only_dot" for node in nodes)


def _levels(graph: Graph, taken: set[Node]) -> dict[Node, int]:
    levels: dict[Node, int] = {}
    for node in (*graph.inputs, *graph.nodes):
        entering = (
            levels[s] + (node in taken and s not in taken and s.op != "input") for s in node.inputs if s in levels
        )
        if not node.is_constant:
            levels[node] = max(entering, default=0)
    return levels


def _ordered(graph: Graph, regions: Mapping[Node, list[Node]]) -> list[Node]:
    """The nodes so that what a region reads stands before the region's first node."""
    order: dict[Node, None] = dict.fromkeys(graph.inputs)
    stack = [(node, False) for node in reversed(graph.nodes)]
    while stack:
        node, entered = stack.pop()
        if node in order:
            continue
        together = regions.get(node, [node])
        if entered:
            order.update(dict.fromkeys(together))
            continue
        stack.append((node, True))
        inside = set(together)
        stack += [(s, False) for member in together for s in member.inputs if s not in inside and s not in order]
    return list(order)


def _region(graph: Graph, nodes: list[Node], new: Mapping[Node, Node]) -> dict[Node, Node]:
    """What stands for each of the region's nodes that others read."""
    inside = set(nodes)
    sources = dict.fromkeys(s for node in nodes for s in node.inputs if s not in inside and s.op != "const")
    outputs = [n for n in nodes if n in graph.outputs or any(user not in inside for user in graph.users[n])]
    stand_ins = {s: Node("input", (), {}, s.aval, s.name, qtype=s.qtype) for s in sources}
    moved: dict[Node, Node] = dict(stand_ins)
    for node in nodes:
        moved[node] = node.replace(inputs=tuple(moved.get(s, s) for s in node.inputs))
    body = Graph(tuple(stand_ins.values()), tuple(moved[node] for node in outputs))
    region = Node(
        "region",
        tuple(new[s] for s in sources),
        {"body": body, "unbound": Unbound(body)},
        tuple(node.aval for node in outputs),
        f"{nodes[0].name}/region",
    )
    return {
        node: Node("item", (region,), {"index": i}, node.aval, node.name, qtype=node.qtype)
        for i, node in enumerate(outputs)
    }
