"""Every per-channel affine map into the weights beside it.

Two affine maps in a row are one. A conv or dot takes the map behind it into its weights and bias, and the map before it
too where the padding allows. Activations and residuals wait for `fuse`.
"""

import numpy as np

from jaxq.graph.node import ACCUMULATING, Node
from jaxq.graph.rewrite import Match, Rule
from jaxq.passes.accumulating import is_open, ordered, scaled, shifted, weight_of


def _fold_behind(match: Match) -> Node | None:
    """affine(conv(x)): the scale goes into the weights, the bias into the bias."""
    node, head = match.node, match.node.operand("x")
    if head.op not in ACCUMULATING or not match.is_sole_user(head) or not is_open(head) or not is_open(node):
        return None
    scale, bias = node.get("scale"), node.get("bias")
    if scale is not None:
        head = scaled(head, scale.value)
    if bias is not None:
        head = shifted(head, bias.value)
    return head.replace(aval=node.aval)


def _fold_before(match: Match) -> Node | None:
    """conv(affine(x)): w * scale[i] and bias + sum(w * bias[i]), the latter only where no padding meets the bias."""
    node, head = match.node, match.node.operand("x")
    if head.op != "affine" or not match.is_sole_user(head) or not is_open(head):
        return None
    weight = node.operand("weight").value
    scale, bias = head.get("scale"), head.get("bias")
    channels = head.aval.shape[-1]
    if node.op == "conv":
        if node.attrs["groups"] != 1 or (bias is not None and any(map(any, node.attrs["padding"]))):
            return None
        if bias is not None and any(dilation != 1 for dilation in node.attrs["lhs_dilation"]):
            return None
        contracted = tuple(range(weight.ndim - 1))
        by_channel: tuple[int, ...] = (channels, 1)
    else:
        contracted, by_channel = (1,), (channels,)
    if bias is not None:
        moved = weight * bias.value.astype(np.float64).reshape(by_channel)
        node = shifted(node, np.sum(moved, axis=contracted))
    if scale is not None:
        weight = weight * scale.value.reshape(by_channel)
    operands = dict(zip(node.roles, node.inputs, strict=True))
    return ordered(node, operands | {"x": head.operand("x"), "weight": weight_of(node, weight)})


def fold_cast(match: Match) -> Node | None:
    """A conversion between float dtypes behind an accumulating op is that op's output dtype."""
    node, head = match.node, match.node.inputs[0]
    if head.op in ACCUMULATING and match.is_sole_user(head) and node.aval.is_float and head.aval.is_float:
        return head.replace(aval=node.aval)
    return None


RULES: tuple[Rule, ...] = (
    ("affine", _fold_behind),
    ("conv", _fold_before),
    ("dot", _fold_before),
    ("convert_element_type", fold_cast),
)
