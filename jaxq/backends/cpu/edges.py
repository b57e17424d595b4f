"""Nodes of floats that kernels take only beside others: alone, or among XLA's own, XLA computes them as fast.

* moves, between kernels;
* rows that are looked up in a table (an embedding) or added to others, where nothing but kernels reads them;
* sums over rows that kernels made, weighted or not: masked means of tokens.
"""

from collections.abc import Collection

import numpy as np

from jaxq.backends.cpu.takes import broadcasts, moves_floats
from jaxq.backends.tactics import XLA, of
from jaxq.graph.node import Aval, Graph, Node

_GATHER = {
    "collapsed_slice_dims": (0,),
    "start_index_map": (0,),
    "operand_batching_dims": (),
    "start_indices_batching_dims": (),
}
_SUMS = (("x", "bias"), ("x", "residual"), ("x", "bias", "residual"))


def edges(graph: Graph, taken: Collection[Node]) -> set[Node]:
    """Those of the graph's nodes, given what kernels take anyway."""
    found: set[Node] = set()

    def of_kernels(node: Node) -> bool:
        return node in taken or node in found

    for node in graph.nodes:
        if (
            (node.inputs and moves_floats(node) and all(map(of_kernels, node.inputs)))
            or looks_up(node)
            or adds(node)
            or (sums(node) and of_kernels(summed(graph, node)[0]))
        ):
            found.add(node)
            found.update(weights(graph, node))
    for node in reversed(graph.nodes):
        if node in found and not sums(node) and (node in graph.outputs or not all(map(of_kernels, graph.users[node]))):
            found.remove(node)
    return found


def looks_up(node: Node) -> bool:
    """Rows of a table by numbers: `jnp.take(table, tokens, axis=0)`."""
    if node.op != "gather" or not _are_floats(node, node.inputs[0]) or node.inputs[1].aval.dtype != np.int32:
        return False
    (table, indices), numbers = node.inputs, node.attrs["dimension_numbers"]
    fill = node.attrs["fill_value"]
    return (
        len(table.aval.shape) == 2
        and 0 not in table.aval.shape
        and indices.aval.shape[-1] == 1
        and numbers["offset_dims"] == (len(node.aval.shape) - 1,)
        and all(numbers[key] == value for key, value in _GATHER.items())
        and tuple(node.attrs["slice_sizes"]) == (1, table.aval.shape[-1])
        and (node.attrs["mode"] != "FILL_OR_DROP" or fill is None or np.isnan(fill))
    )


def adds(node: Node) -> bool:
    """The sum of two values or three, of which some may be broadcast."""
    if node.op != "affine" or node.roles not in _SUMS or not _are_floats(node, *node.inputs):
        return False
    return all(broadcasts(source.aval.shape, node.aval.shape) is None for source in node.inputs)


def sums(node: Node) -> bool:
    """Sums over consecutive rows, times a number for each channel: means."""
    if node.op != "sum" or node.roles not in (("x",), ("x", "scale")) or not _are_floats(node, *node.inputs):
        return False
    rank, axes = len(node.inputs[0].aval.shape), tuple(sorted(node.attrs["axes"]))
    return bool(axes) and axes == tuple(range(rank - 1 - len(axes), rank - 1))


def summed(graph: Graph, node: Node) -> tuple[Node, Node | None]:
    """What `node`, for which `sums` holds, adds up: a value, and the weights that it is multiplied with or None."""
    product = node.operand("x")
    if not weights(graph, node):
        return product, None
    return product.operand("x"), product.operand("y")


def weights(graph: Graph, node: Node) -> tuple[Node, ...]:
    """The product whose only reader is `node`, a sum, and that is computed with it; or nothing."""
    if not sums(node):
        return ()
    product = node.operand("x")
    alone = product not in graph.outputs and list(graph.users[product]) == [node]
    if not alone or product.op != "product" or product.roles != ("x", "y") or not _are_floats(product, *product.inputs):
        return ()
    x, y = product.inputs
    is_open = (product.attrs["lo"], product.attrs["hi"]) == (-np.inf, np.inf)
    fits = x.aval.shape == product.aval.shape and broadcasts(y.aval.shape, product.aval.shape) is None
    return (product,) if is_open and fits else ()


def _are_floats(*nodes: Node) -> bool:
    """Whether all are arrays of float32 whose channels are known, and kernels may have them."""
    return of(nodes[0]) != XLA and all(
        node.op != "const"
        and isinstance(node.aval, Aval)
        and node.aval.dtype == np.float32
        and bool(node.aval.shape)
        and isinstance(node.aval.shape[-1], int)
        and 0 not in node.aval.shape
        for node in nodes
    )
