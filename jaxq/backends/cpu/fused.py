"""Which nodes of a region's body one operation computes together."""

from jaxq.backends.cpu.packing import Form
from jaxq.graph.node import Graph, Node


def is_part_of_next(body: Graph, node: Node) -> bool:
    """Whether what alone reads the node computes it too: a quantize a softmax or layer norm, a softmax a product,
    quantize_rows and row_scale a function, a depthwise convolution another convolution."""
    if node in body.outputs:
        return False
    users = body.users[node]
    if node.op == "elementwise":
        return sorted(user.op for user in users) == ["quantize_rows", "row_scale"]
    if node.op == "conv":
        return len(users) == 1 and expansion_of(users[0]) is node
    if node.op == "matmul":
        return [user.op for user in users] == ["softmax"]
    return node.op in ("softmax", "layer_norm") and len(users) == 1 and _quantizes_by_one(users[0])


def expansion_of(node: Node) -> Node | None:
    """The convolution that a depthwise one computes, too, where that alone reads it: the expansion of an inverted
    residual, for instance."""
    if node.op != "conv" or not Form.of(node).depthwise or node.get("residual") is not None:
        return None
    x = node.operand("x")
    expands = x.op == "conv" and x.attrs["groups"] == 1 and x.get("residual") is None
    return x if expands and len(x.attrs["strides"]) == 2 else None


def is_made_before(body: Graph, node: Node) -> bool:
    """Whether a node that it reads computes it too: row_scale a quantize_rows, a layer norm a quantize."""
    return node.op == "quantize_rows" or (node.op == "quantize" and node is quantize_of(body, node.operand("x")))


def quantize_of(body: Graph, node: Node) -> Node | None:
    """The quantize that a layer norm computes beside its floats, which others read too."""
    if node.op != "layer_norm" or is_part_of_next(body, node):
        return None
    return next(filter(_quantizes_by_one, body.users[node]), None)


def _quantizes_by_one(node: Node) -> bool:
    """Whether the node is a quantize with one multiplier for all channels."""
    return node.op == "quantize" and node.operand("multiplier").op == "const"
