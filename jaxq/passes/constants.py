"""What depends on parameters alone is computed once, at quantize time."""

from math import prod

import jax
import numpy as np

from jaxq.graph.evaluate import evaluate
from jaxq.graph.node import Aval, Graph, Node, constant

# A constant that is larger than this and than all it is made of (a broadcast, a mask) is made at run time instead.
LARGE = 1 << 20


def fold_constants(graph: Graph) -> Graph:
    """The graph with every subgraph of constants replaced by its value, in bodies too."""
    graph = graph.map(lambda node: node.with_bodies(fold_constants))
    folded: set[Node] = set()
    for node in graph.nodes:
        made = node.inputs or node.op == "iota"
        if node.is_constant or (made and all(source in folded for source in node.inputs) and _may_fold(node)):
            folded.add(node)
    read = {source for node in graph.nodes if node not in folded for source in node.inputs} | set(graph.outputs)
    frontier = tuple(node for node in graph.nodes if node in folded and node in read and not node.is_constant)
    if not frontier:
        return graph
    part = Graph((), frontier)
    values = jax.jit(lambda params: evaluate(part, params, ()))(part.params)
    value_of = dict(zip(frontier, map(np.asarray, values), strict=True))
    new: dict[Node, Node] = {}
    for node in (*graph.inputs, *graph.nodes):
        if node in value_of:
            new[node] = constant(value_of[node], node.name)
        elif node not in folded or node.is_constant:
            new[node] = node.replace(inputs=tuple(new[source] for source in node.inputs))
    return Graph(tuple(new[node] for node in graph.inputs), tuple(new[node] for node in graph.outputs))


def _may_fold(node: Node) -> bool:
    if node.op == "opaque":
        return False
    if not isinstance(node.aval, Aval):
        return not any(aval.follows_batch for aval in node.aval)
    if node.aval.follows_batch:
        return False
    made_of = sum(prod(source.aval.shape) for source in node.inputs if isinstance(source.aval, Aval))
    return prod(node.aval.shape) <= max(LARGE, made_of)
