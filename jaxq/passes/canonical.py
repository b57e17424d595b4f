"""Primitives to the ops that jaxq understands, the same in whatever spelling a model has them.

Batch norm has no pattern of its own: in any spelling it is multiplications and additions of constants per channel,

    affine(x) = x * scale[c] + bias[c] + residual, clipped to [lo, hi]

and every convolution and product with constant weights becomes one form, channels last.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from jaxq.graph.node import Aval, Node
from jaxq.graph.rewrite import Match, Rule
from jaxq.passes.accumulating import OPEN, is_open, scaled, shifted, vector, weight_of
from jaxq.passes.layout import transposed


def _affine(node: Node, x: Node, attrs: Any = OPEN, **operands: Node | None) -> Node:
    return node.replace(op="affine", attrs=dict(attrs)).with_operands({"x": x, **operands})


def _channels(node: Node) -> int | None:
    """The size of the last axis, where the node is a float array with a fixed number of channels."""
    shape = node.aval.shape if isinstance(node.aval, Aval) and node.aval.is_float else ()
    return shape[-1] if shape and isinstance(shape[-1], int) else None


def _per_channel(node: Node, other: Node) -> np.ndarray | None:
    """The constant `node` as a float32 vector (C,) if it is one number, or one per last-axis channel, of `other`."""
    channels = _channels(other)
    if not node.is_constant or channels is None or not node.aval.is_float:
        return None
    shape = node.aval.shape
    if len(shape) > len(other.aval.shape) or any(dim != 1 for dim in shape[:-1]):
        return None
    if shape and shape[-1] not in (1, channels):
        return None
    return np.broadcast_to(np.asarray(node.value, np.float32).reshape(-1), (channels,)).copy()


def _per_feature(node: Node, other: Node, match: Match) -> np.ndarray | None:
    """The constant `node` as a vector (N,) where `other` is a dot's (..., N) with N split into several axes (heads and
    their channels, say) over which the constant ranges."""
    if other.op != "reshape" or not node.is_constant or not node.aval.is_float or not match.is_sole_user(other):
        return None
    head = other.inputs[0]
    rows, shape = head.aval.shape[:-1], other.aval.shape
    if head.op != "dot" or not is_open(head) or match.uses[head] != 1 or shape[: len(rows)] != rows:
        return None
    lead, columns = node.aval.shape[: -len(shape[len(rows) :])], shape[len(rows) :]
    if any(dim != 1 for dim in lead) or len(node.aval.shape) < len(columns):
        return None
    return np.broadcast_to(np.asarray(node.value, np.float32), (*lead, *columns)).reshape(-1).copy()


def _with_constant(
    scale: Callable[[np.ndarray], Any] | None, bias: Callable[[np.ndarray], Any] | None, swapped: bool = True
) -> Callable[[Match], Node | None]:
    """The rule for a binary op of a value and a per-channel constant c: x * scale(c) + bias(c)."""

    def rule(match: Match) -> Node | None:
        node = match.node
        pairs = (node.inputs, node.inputs[::-1]) if swapped else (node.inputs,)
        for x, c in pairs:
            if x.is_constant or x.aval.shape != node.aval.shape:
                continue
            if (value := _per_channel(c, x)) is not None:
                return _affine(
                    node,
                    x,
                    scale=None if scale is None else vector(scale(value), node, "scale"),
                    bias=None if bias is None else vector(bias(value), node, "bias"),
                )
            if (value := _per_feature(c, x, match)) is not None:
                head = x.inputs[0]
                head = head if scale is None else scaled(head, scale(value))
                head = head if bias is None else shifted(head, bias(value))
                return x.replace(inputs=(head,))
        return None

    return rule


def _reciprocal(c: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # calibration reports what a division by zero makes
        return 1.0 / c.astype(np.float64)


def _constant_minus(match: Match) -> Node | None:
    """c - x = x * -1 + c."""
    c, x = match.node.inputs
    value = None if x.is_constant or x.aval.shape != match.node.aval.shape else _per_channel(c, x)
    if value is None:
        return None
    minus = vector(-np.ones_like(value), match.node, "scale")
    return _affine(match.node, x, scale=minus, bias=vector(value, match.node, "bias"))


def _negative(match: Match) -> Node | None:
    """-x = x * -1."""
    node, x = match.node, match.node.inputs[0]
    channels = None if x.is_constant else _channels(x)
    return None if channels is None else _affine(node, x, scale=vector(-np.ones(channels), node, "scale"))


def _add_values(match: Match) -> Node | None:
    """The sum of two values: a residual add."""
    x, y = match.node.inputs
    same = isinstance(x.aval, Aval) and x.aval == y.aval and _channels(x) is not None
    return _affine(match.node, x, residual=y) if same and not (x.is_constant or y.is_constant) else None


def _bound(side: str) -> Callable[[Match], Node | None]:
    """max(x, c) and min(x, c) of one number c: relu, relu6, clip."""

    def rule(match: Match) -> Node | None:
        for x, c in (match.node.inputs, match.node.inputs[::-1]):
            one_number = c.is_constant and c.value.size == 1 and not x.is_constant
            if one_number and _channels(x) is not None and x.aval.shape == match.node.aval.shape:
                return _affine(match.node, x, {**OPEN, side: float(np.asarray(c.value).reshape(()))})
        return None

    return rule


def _clamp(match: Match) -> Node | None:
    lo, x, hi = match.node.inputs
    if lo.is_constant and hi.is_constant and lo.value.size == hi.value.size == 1 and _channels(x) is not None:
        return _affine(match.node, x, {"lo": float(np.ravel(lo.value)[0]), "hi": float(np.ravel(hi.value)[0])})
    return None


def _sum(match: Match) -> Node | None:
    """A sum over any axes but the last: what a mean is made of."""
    node, x = match.node, match.node.inputs[0]
    axes = node.attrs["axes"]
    if x.is_constant or _channels(node) is None or len(x.aval.shape) - 1 in axes:
        return None
    if any(not isinstance(x.aval.shape[axis], int) for axis in axes):
        return None
    return node.replace(op="sum", attrs={**OPEN, "axes": axes}).with_operands({"x": x})


def _window_sum(match: Match) -> Node | None:
    """A windowed sum that leaves the channels alone: what an average pool is made of."""
    node, x = match.node, match.node.inputs[0]
    if x.is_constant or _channels(node) is None or node.attrs["window_dimensions"][-1] != 1:
        return None
    return node.replace(op="window_sum", attrs={**OPEN, "window": dict(node.attrs)}).with_operands({"x": x})


def _reshape(x: Node, shape: tuple[Any, ...], name: str) -> Node:
    if shape == x.aval.shape:
        return x
    return Node("reshape", (x,), {"new_sizes": shape}, Aval(shape, x.aval.dtype), name, scope=x.scope)


def _conv(match: Match) -> Node | None:
    """A convolution with a constant kernel, channels last: x (N, spatial..., C), weight (spatial..., C / groups, O)."""
    node, (x, w) = match.node, match.node.inputs
    lhs, rhs, out = node.attrs["dimension_numbers"]
    if not w.is_constant or x.is_constant or node.attrs["batch_group_count"] != 1 or not node.aval.is_float:
        return None
    if len(lhs) - 2 > 3:
        return None
    kernel = np.transpose(np.asarray(w.value, np.float32), (*rhs[2:], rhs[1], rhs[0]))
    attrs = OPEN | {
        "strides": node.attrs["window_strides"],
        "padding": node.attrs["padding"],
        "lhs_dilation": node.attrs["lhs_dilation"],
        "rhs_dilation": node.attrs["rhs_dilation"],
        "groups": node.attrs["feature_group_count"],
        "precision": node.attrs["precision"],
    }
    last = (out[0], *out[2:], out[1])  # where batch, space and channels stand in the output
    aval = Aval(tuple(node.aval.shape[axis] for axis in last), node.aval.dtype)
    x = transposed(x, (lhs[0], *lhs[2:], lhs[1]), f"{node.name}/transpose_in")
    conv = node.replace(op="conv", attrs=attrs, aval=aval).with_operands({"x": x, "weight": weight_of(node, kernel)})
    return transposed(conv, np.argsort(last).tolist(), f"{node.name}/transpose_out")


def _dot(match: Match) -> Node | None:
    """A product with a constant matrix: x (..., K), weight (N, K) to (..., N), between reshapes where needed."""
    node = match.node
    contracting, (batch, _) = node.attrs["dimension_numbers"]
    on_left = node.inputs[0].is_constant
    w, x = node.inputs if on_left else node.inputs[::-1]
    if not w.is_constant or x.is_constant or batch or not node.aval.is_float or not x.aval.is_float:
        return None
    w_axes, x_axes = contracting if on_left else contracting[::-1]
    x_free = [axis for axis in range(len(x.aval.shape)) if axis not in x_axes]
    w_free = [axis for axis in range(len(w.aval.shape)) if axis not in w_axes]
    depth = int(np.prod([w.aval.shape[axis] for axis in w_axes], dtype=np.int64))
    matrix = np.transpose(np.asarray(w.value, np.float32), (*w_free, *w_axes)).reshape(-1, depth)
    rows = tuple(x.aval.shape[axis] for axis in x_free)
    columns = tuple(w.aval.shape[axis] for axis in w_free)
    x = transposed(x, (*x_free, *x_axes), f"{node.name}/transpose_in")
    x = _reshape(x, (*rows, depth), f"{node.name}/reshape_in")
    aval = Aval((*rows, matrix.shape[0]), node.aval.dtype)
    dot = node.replace(op="dot", attrs=OPEN | {"precision": node.attrs["precision"]}, aval=aval)
    dot = dot.with_operands({"x": x, "weight": weight_of(node, matrix)})
    dot = _reshape(dot, (*rows, *columns), f"{node.name}/reshape_out")
    if not on_left:
        return dot
    back = (*range(len(rows), len(rows) + len(columns)), *range(len(rows)))
    return transposed(dot, back, f"{node.name}/transpose_out")


def _grouped_dot(match: Match) -> Node | None:
    """A product with a constant matrix for each index of the batch axes (a head, an expert): a 1x1 conv whose groups
    are these indices, over x (N, rows, groups * K), weight (1, K, groups * F)."""
    node = match.node
    contracting, batch = node.attrs["dimension_numbers"]
    on_left = node.inputs[0].is_constant
    w, x = node.inputs if on_left else node.inputs[::-1]
    if not w.is_constant or x.is_constant or not batch[0] or not node.aval.is_float or not x.aval.is_float:
        return None
    (w_axes, x_axes), (w_batch, x_batch) = (pair if on_left else pair[::-1] for pair in (contracting, batch))
    x_free = [axis for axis in range(len(x.aval.shape)) if axis not in (*x_axes, *x_batch)]
    w_free = [axis for axis in range(len(w.aval.shape)) if axis not in (*w_axes, *w_batch)]
    shape = [tuple(w.aval.shape[axis] for axis in axes) for axes in (w_batch, w_axes, w_free)]
    groups, depth, features = (prod(sizes) for sizes in shape)
    rows = tuple(x.aval.shape[axis] for axis in x_free)
    if not rows or not all(isinstance(size, int) for size in (*rows[1:], *(x.aval.shape[axis] for axis in x_batch))):
        return None
    kernel = np.transpose(np.asarray(w.value, np.float32), (*w_axes, *w_batch, *w_free))
    x = transposed(x, (*x_free, *x_batch, *x_axes), f"{node.name}/transpose_in")
    x = _reshape(x, (rows[0], prod(rows[1:]), groups * depth), f"{node.name}/reshape_in")
    one, none = (1,), ((0, 0),)
    geometry = {"strides": one, "padding": none, "lhs_dilation": one, "rhs_dilation": one, "groups": groups}
    aval = Aval((rows[0], prod(rows[1:]), groups * features), node.aval.dtype)
    conv = node.replace(op="conv", attrs=OPEN | geometry | {"precision": node.attrs["precision"]}, aval=aval)
    conv = conv.with_operands({"x": x, "weight": weight_of(node, kernel.reshape(1, depth, -1))})
    conv = _reshape(conv, (*rows, *shape[0], *shape[2]), f"{node.name}/reshape_out")
    r, g, f = len(rows), len(shape[0]), len(shape[2])
    row, group, feature = range(r), range(r, r + g), range(r + g, r + g + f)
    last = (*group, *feature, *row) if on_left else (*group, *row, *feature)
    return transposed(conv, last, f"{node.name}/transpose_out")


def _split(match: Match) -> Node | None:
    """A part of a split is a slice, which moves integers as well as floats."""
    node, split = match.node, match.node.inputs[0]
    if split.op != "split":
        return None
    x, axis, sizes, index = split.inputs[0], split.attrs["axis"], split.attrs["sizes"], node.attrs["index"]
    if not all(isinstance(size, int) for size in sizes):
        return None
    start = [0] * len(x.aval.shape)
    start[axis] = sum(sizes[:index])
    limit = (*x.aval.shape[:axis], sum(sizes[: index + 1]), *x.aval.shape[axis + 1 :])
    attrs = {"start_indices": tuple(start), "limit_indices": limit, "strides": None}
    return node.replace(op="slice", inputs=(x,), attrs=attrs)


# The products first, with the transposes around them, so that `layout` can move these.
PRODUCTS: tuple[Rule, ...] = (
    ("conv_general_dilated", _conv),
    ("dot_general", _dot),
    ("dot_general", _grouped_dot),
)

RULES: tuple[Rule, ...] = (
    ("item", _split),
    ("reduce_sum", _sum),
    ("reduce_window_sum", _window_sum),
    ("mul", _with_constant(lambda c: c, None)),
    ("div", _with_constant(_reciprocal, None, swapped=False)),
    ("add", _with_constant(None, lambda c: c)),
    ("sub", _with_constant(None, lambda c: -c, swapped=False)),
    ("sub", _constant_minus),
    ("neg", _negative),
    ("add", _add_values),
    ("max", _bound("lo")),
    ("min", _bound("hi")),
    ("clamp", _clamp),
)
