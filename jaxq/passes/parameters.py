"""Parameters under unique names: what a pass computed may have the name of an array that is still in use."""

from jaxq.graph.node import Graph, Names


def name_parameters(graph: Graph) -> Graph:
    """The graph with every "param" node under a name of its own, for `Graph.params`."""
    names = Names()
    return graph.map(lambda node: node.replace(name=names.unique(node.name)) if node.op == "param" else node)
