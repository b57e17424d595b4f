"""Whether a graph computes each example of a batch by itself: then a batch may be cut into parts, or filled up.

The batch stands in front: the leading axis goes over the examples, or over the rows of one after another.
"""

from collections.abc import Callable
from typing import Any

from jaxq.graph.node import ACCUMULATING, Aval, Dim, Graph, Node
from jaxq.graph.primitives import ELEMENTWISE


def mixing(graph: Graph) -> str | None:
    """Why the examples of a batch hang on one another or on their places in it, or None where they do not. (What is
    not known to keep them apart counts as mixing.)"""
    for node in graph.nodes:
        if not keeps_apart(node):
            return f"layer {node.name!r} ({node.op}) may mix the examples of a batch"
    if not any(node.aval.leads_batch for node in graph.inputs):
        return "no argument has a batch axis that may vary"
    for node in graph.outputs:
        if not node.aval.leads_batch:
            return f"the result {node.name!r} is {node.aval}, which is not one row an example"
    return None


def keeps_apart(node: Node) -> bool:
    """Whether the node keeps the examples apart, given values that do."""
    avals = node.aval if isinstance(node.aval, tuple) else (node.aval,)
    followers = [source for source in node.inputs if _follows(source.aval)]
    if not any(map(_follows, avals)):
        return not followers
    if not all(_leads(aval) for aval in avals if _follows(aval)) or not all(map(_follows, avals)):
        return False
    if node.op in ("input", "item", "reshape"):
        return True
    if any(source.aval.shape[0] != avals[0].shape[0] for source in followers):
        return False
    rule = _RULES.get(node.op)
    return rule is not None and rule(node, node.attrs, [source in followers for source in node.inputs])


def _follows(aval: Any) -> bool:
    return any(map(_follows, aval)) if isinstance(aval, tuple) else aval.follows_batch


def _leads(aval: Aval) -> bool:
    """The leading axis follows the batch in multiples, and no other does."""
    lead, *rest = aval.shape
    return isinstance(lead, Dim) and lead.constant == 0 and not any(isinstance(dim, Dim) for dim in rest)


# Of the node, its attributes, and which operands follow the batch. All that do have the result's leading axis.
_Rule = Callable[[Node, Any, list[bool]], bool]


def _always(node: Node, attrs: Any, follows: list[bool]) -> bool:
    return True


def _not_along(key: str) -> _Rule:
    """The axis or axes of that attribute are others than the first."""

    def rule(node: Node, attrs: Any, follows: list[bool]) -> bool:
        axes = attrs[key]
        return 0 not in (axes if isinstance(axes, tuple) else (axes,))

    return rule


def _first(key: str, value: Any) -> _Rule:
    """The attribute says `value` of the first axis."""
    return lambda node, attrs, follows: attrs[key][0] == value


def _of_last_axis(node: Node, attrs: Any, follows: list[bool]) -> bool:
    return len(node.inputs[0].aval.shape) > 1


def _dot_general(node: Node, attrs: Any, follows: list[bool]) -> bool:
    (contracted, _), (left, right) = attrs["dimension_numbers"]
    if left:
        return bool(left[0] == 0 and right[0] == 0)
    return follows == [True, False] and 0 not in contracted


def _conv_general_dilated(node: Node, attrs: Any, follows: list[bool]) -> bool:
    spec_in, _, spec_out = attrs["dimension_numbers"]
    return follows == [True, False] and spec_in[0] == 0 and spec_out[0] == 0 and attrs["batch_group_count"] == 1


def _gather(node: Node, attrs: Any, follows: list[bool]) -> bool:
    """Rows of a constant by the examples' indices, or the same features of every example."""
    numbers = attrs["dimension_numbers"]
    if numbers["operand_batching_dims"]:
        return False
    if follows == [False, True]:
        return 0 not in numbers["offset_dims"]
    whole = 0 in numbers["offset_dims"] and 0 not in numbers["start_index_map"]
    return follows == [True, False] and whole and 0 not in numbers["collapsed_slice_dims"]


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(ELEMENTWISE, _always),
    **dict.fromkeys(ACCUMULATING, _always),
    **dict.fromkeys(("quantize", "dequantize", "table", "elementwise", "squeeze", "dynamic_slice"), _always),
    **dict.fromkeys(("quantize_rows", "weight_only_dot"), _always),
    **dict.fromkeys(("softmax", "layer_norm", "row_scale", "top_k"), _of_last_axis),
    **{f"reduce_{name}": _not_along("axes") for name in ("sum", "max", "min", "prod", "and", "or", "xor")},
    **dict.fromkeys(("argmax", "argmin", "sum"), _not_along("axes")),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "split", "stack"), _not_along("axis")),
    "unstack": _not_along("axis"),
    "fft": lambda node, attrs, follows: len(attrs["fft_lengths"]) < len(node.aval.shape),
    "sort": _not_along("dimension"),
    "concatenate": _not_along("dimension"),
    "iota": _not_along("dimension"),
    "rev": _not_along("dimensions"),
    "transpose": _first("permutation", 0),
    "slice": _first("start_indices", 0),
    "pad": _first("padding_config", (0, 0, 0)),
    "tile": _first("reps", 1),
    "broadcast_in_dim": lambda node, attrs, follows: not follows[0] or attrs["broadcast_dimensions"][0] == 0,
    "dynamic_update_slice": lambda node, attrs, follows: follows[:2] == [True, True],
    "window_sum": lambda node, attrs, follows: attrs["window"]["window_dimensions"][0] == 1,
    **{f"reduce_window_{name}": _first("window_dimensions", 1) for name in ("sum", "max", "min")},
    "dot_general": _dot_general,
    "conv_general_dilated": _conv_general_dilated,
    "gather": _gather,
}
