"""Parameters under unique names: what a pass computed may have the name of an array that is still in use."""

from jaxq.graph.node import Graph, Names, Node


def name_parameters(graph: Graph) -> Graph:
    """The graph with every "param" node under a name of its own, in bodies too, for `Graph.params`."""
    names = Names()

    def change(node: Node) -> Node:
        node = node.with_bodies(lambda body: body.map(change))
        return node.replace(name=names.unique(node.name)) if node.op == "param" else node

    return graph.map(change)
