"""Every per-channel affine map into the weights beside it.

Two affine maps in a row are one. A conv or dot takes the map behind it into its weights and bias, and the map before it
too where the padding allows. Where a concat or a max pool stands between them, the map moves before it. Bounds follow
the map behind them; residuals wait for `fuse`.
"""

import numpy as np

from jaxq.graph.node import ACCUMULATING, Node
from jaxq.graph.rewrite import Match, Rule
from jaxq.passes.accumulating import has_no_bounds, is_open, ordered, scaled, shifted, vector, weight_of
from jaxq.passes.layout import sees_padding_alone


def _fold_behind(match: Match) -> Node | None:
    """affine(conv(x)): the scale goes into the weights and the bounds, the bias into the bias and the bounds. What the
    affine map does after both, a residual and bounds of its own, stays behind."""
    node, head = match.node, match.node.operand("x")
    scale, bias = node.get("scale"), node.get("bias")
    if head.op not in ACCUMULATING or not match.is_sole_user(head):
        return None
    if head.get("residual") is not None and (scale is not None or not has_no_bounds(head)):
        return None
    if scale is None and bias is None:
        return head.replace(aval=node.aval) if is_open(node) else None
    bounds = _mapped_bounds(head, scale, bias)
    if bounds is None:
        return None
    if scale is not None:
        head = scaled(head, scale.value)
    if bias is not None:
        head = shifted(head, bias.value)
    head = head.with_attrs(**bounds)
    if is_open(node):
        return head.replace(aval=node.aval)
    return node.with_operands({"x": head, "residual": node.get("residual")})


def _mapped_bounds(head: Node, scale: Node | None, bias: Node | None) -> dict[str, float] | None:
    """clip(y, lo, hi) * scale + bias = clip(y * scale + bias, lo', hi'): these bounds, or None where they are not the
    same for all channels."""
    ends = np.array([head.attrs["lo"], head.attrs["hi"]])
    if not np.any(np.isfinite(ends)):
        return {}
    factor = np.ones(1) if scale is None else scale.value.astype(np.float64)
    if not (np.all(factor > 0) or np.all(factor < 0)):
        return None
    mapped = np.sort(ends[:, None] * factor + (0.0 if bias is None else bias.value.astype(np.float64)), axis=0)
    lo, hi = mapped[:, 0]
    return {"lo": float(lo), "hi": float(hi)} if np.all(mapped == mapped[:, :1]) else None


def _fold_before(match: Match) -> Node | None:
    """conv(affine(x)): w * scale[i] and bias + sum(w * bias[i]), the latter only where no padding meets the bias. A
    product gives up what differs by channel, the scale and bias of a layer norm. (A number is part of a function such
    as x * relu6(x + 3) / 6.)"""
    node, head = match.node, match.node.operand("x")
    if head.op not in ("affine", "product") or not match.is_sole_user(head) or not is_open(head):
        return None
    scale, bias = head.get("scale"), head.get("bias")
    if head.op == "product" and all(given is None or np.ptp(given.value) == 0 for given in (scale, bias)):
        return None
    if bias is not None and node.op == "conv" and _sees_zeros(node):
        return None
    weight = node.operand("weight").value
    if bias is not None:
        contracted = tuple(range(weight.ndim - 1)) if node.op == "conv" else (1,)
        node = shifted(node, np.sum(weight * _by_weight(node, bias.value.astype(np.float64)), axis=contracted))
    if scale is not None:
        weight = weight * _by_weight(node, scale.value)
    operands = dict(zip(node.roles, node.inputs, strict=True))
    x = head.operand("x")
    if head.op == "product":
        x = head.with_operands({"x": x, "y": head.operand("y")})
    return ordered(node, operands | {"x": x, "weight": weight_of(node, weight)})


def _sees_zeros(conv: Node) -> bool:
    """True where padding or dilation puts zeros between the values that the conv sums."""
    return any(map(any, conv.attrs["padding"])) or any(dilation != 1 for dilation in conv.attrs["lhs_dilation"])


def _by_weight(node: Node, vector: np.ndarray) -> np.ndarray:
    """A constant per input channel where the weight (..., C / groups, O) of a conv, or (N, K) of a dot, reads it."""
    if node.op == "dot":
        return vector
    groups = node.attrs["groups"]
    return np.repeat(vector.reshape(groups, -1).T, node.aval.shape[-1] // groups, axis=1)


_MOVES = ("concatenate", "reduce_window_max")


def _move_before(match: Match) -> Node | None:
    """affine(concat(a, b)) = concat(affine(a), affine(b)), and so with a max pool where the map keeps the order. Only
    where all that made the values can take the map in."""
    node, head = match.node, match.node.operand("x")
    if head.op not in _MOVES or node.get("residual") is not None or not _takes(match, head, node):
        return None
    scale = node.get("scale")
    if head.op == "reduce_window_max" and scale is not None and not np.all(scale.value > 0):
        return None
    by_channel = head.op == "concatenate" and head.attrs["dimension"] == len(head.aval.shape) - 1
    widths = [x.aval.shape[-1] for x in head.inputs]
    ends = np.cumsum(widths).tolist() if by_channel else widths
    inputs = [_part(node, x, slice(end - width, end)) for x, width, end in zip(head.inputs, widths, ends, strict=True)]
    return head.replace(inputs=tuple(inputs))


def _takes(match: Match, head: Node, affine: Node) -> bool:
    """True where `head` can take in the affine map, or all that made what it moves can."""
    if not match.is_sole_user(head) or head.aval.dtype != affine.aval.dtype:
        return False
    if head.op == "reduce_window_max" and (head.attrs["window_dimensions"][-1] != 1 or sees_padding_alone(head)):
        return False
    if head.op in _MOVES:
        return all(_takes(match, x, affine) for x in head.inputs)
    return head.op in ACCUMULATING and (is_open(head) or affine.roles == ("x",))


def _part(affine: Node, x: Node, channels: slice) -> Node:
    """The map of these channels alone, of `x`."""
    operands = {
        role: vector(given.value[channels], x, f"affine_{role}")
        for role in ("scale", "bias")
        if (given := affine.get(role)) is not None
    }
    return affine.replace(aval=x.aval, name=f"{x.name}/affine").with_operands({"x": x, **operands})


def fold_cast(match: Match) -> Node | None:
    """A conversion between float dtypes behind an accumulating op is that op's output dtype."""
    node, head = match.node, match.node.inputs[0]
    if head.op in ACCUMULATING and match.is_sole_user(head) and node.aval.is_float and head.aval.is_float:
        return head.replace(aval=node.aval)
    return None


RULES: tuple[Rule, ...] = (
    ("affine", _fold_behind),
    ("affine", _move_before),
    ("conv", _fold_before),
    ("dot", _fold_before),
    ("convert_element_type", fold_cast),
)
