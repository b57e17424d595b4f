"""Primitives to the ops that jaxq understands, the same in whatever spelling a model has them.

Batch norm has no pattern of its own: in any spelling it is multiplications and additions of constants per channel,

    affine(x) = x * scale[c] + bias[c] + residual, clipped to [lo, hi]

and a sum or product of two values is an affine map with a residual, or a gate.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxq.graph.node import ACCUMULATING, Aval, Node, uniform
from jaxq.graph.rewrite import Match, Rule
from jaxq.passes.accumulating import OPEN, is_open, scaled, shifted, vector


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
    their channels, say) and the constant varies over these alone."""
    if other.op != "reshape" or not node.is_constant or not node.aval.is_float or not match.is_sole_user(other):
        return None
    head = other.inputs[0]
    rows, shape = head.aval.shape[:-1], other.aval.shape
    if head.op != "dot" or not is_open(head) or match.uses[head] != 1 or shape[: len(rows)] != rows:
        return None
    varies = (*(1 for _ in range(len(shape) - len(node.aval.shape))), *node.aval.shape)
    if len(varies) > len(shape) or any(dim != 1 for dim in varies[: len(rows)]):
        return None
    value = np.asarray(node.value, np.float32).reshape(varies[len(rows) :])
    return np.broadcast_to(value, shape[len(rows) :]).reshape(-1).copy()


def _moved_sum(x: Node, match: Match) -> list[Node] | None:
    """The layout ops between an open accumulating op and `x`, the op first, where nothing else reads any of them."""
    chain = [x]
    while chain[-1].op in ("reshape", "transpose", "squeeze"):
        chain.append(chain[-1].inputs[0])
    head, sole = chain[-1], all(match.uses.get(node) == 1 for node in chain)
    return chain[::-1] if len(chain) > 1 and sole and head.op in ACCUMULATING and is_open(head) else None


def _with_constant(
    scale: Callable[[np.ndarray], Any] | None, bias: Callable[[np.ndarray], Any] | None, swapped: bool = True
) -> Callable[[Match], Node | None]:
    """The rule for a binary op of a value and a per-channel constant c: x * scale(c) + bias(c)."""

    def mapped(head: Node, value: np.ndarray) -> Node:
        head = head if scale is None else scaled(head, scale(value))
        return head if bias is None else shifted(head, bias(value))

    def rule(match: Match) -> Node | None:
        node = match.node
        pairs = (node.inputs, node.inputs[::-1]) if swapped else (node.inputs,)
        for x, c in pairs:
            if x.is_constant or x.aval.shape != node.aval.shape:
                continue
            number = uniform(c) if c.aval.is_float else None
            if number is not None and (chain := _moved_sum(x, match)) is not None:
                head, *layout = chain
                moved = mapped(head, np.full(head.aval.shape[-1], number, np.float32))
                for op in layout:
                    moved = op.replace(inputs=(moved,))
                return moved
            if (value := _per_feature(c, x, match)) is not None:
                return x.replace(inputs=(mapped(x.inputs[0], value),))
            if (value := _per_channel(c, x)) is not None:
                return _affine(
                    node,
                    x,
                    scale=None if scale is None else vector(scale(value), node, "scale"),
                    bias=None if bias is None else vector(bias(value), node, "bias"),
                )
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


def _whole_and_other(node: Node) -> tuple[Node, Node] | None:
    """The operands of a binary op on floats: one that is no constant and has the result's shape, and the other."""
    if _channels(node) is None:
        return None
    for x, y in (node.inputs, node.inputs[::-1]):
        if not x.is_constant and x.aval == node.aval and y.aval.is_float and len(y.aval.shape) == len(x.aval.shape):
            return x, y
    return None


def _add_values(match: Match) -> Node | None:
    """The sum of two values, or of a value and a constant that is not one per channel: a residual add."""
    pair = _whole_and_other(match.node)
    return None if pair is None else _affine(match.node, pair[0], residual=pair[1])


def _multiply_values(match: Match) -> Node | None:
    """The product of two values, such as an activation and its gate."""
    pair = _whole_and_other(match.node)
    if pair is None or pair[1].is_constant:
        return None
    for x, y in (pair, pair[::-1]):
        rest, scale = _without_scale(match, y)
        if scale is not None and x.aval.shape == match.node.aval.shape:
            return match.node.replace(op="product", attrs=OPEN).with_operands({"x": x, "y": rest, "scale": scale})
    return match.node.replace(op="product", attrs=OPEN).with_operands(dict(zip("xy", pair, strict=True)))


def _divide_values(match: Match) -> Node | None:
    """(x * scale[c]) / y = (x / y) * scale[c]."""
    node, (x, y) = match.node, match.node.inputs
    rest, scale = _without_scale(match, x)
    if scale is None or y.is_constant or rest.aval != node.aval:
        return None
    return _affine(node, node.replace(inputs=(rest, y), name=f"{node.name}/div"), scale=scale)


def _without_scale(match: Match, y: Node) -> tuple[Node, Node | None]:
    """y as (rest, scale) with y = rest * scale[c], where the scale differs by channel or the rest is one number for all
    channels: the factors of a layer norm, whose scale can fold so."""
    if not match.is_sole_user(y):
        return y, None
    if y.op == "affine" and y.roles == ("x", "scale") and is_open(y) and np.ptp(y.operand("scale").value) > 0:
        return y.operand("x"), y.operand("scale")
    if y.op == "mul":
        for gate, c in (y.inputs, y.inputs[::-1]):
            value = None if gate.is_constant or _channels(gate) != 1 else _per_channel(c, y)
            if value is not None and len(gate.aval.shape) == len(y.aval.shape):
                return gate, vector(value, match.node, "scale")
    return y, None


def _bound(side: str) -> Callable[[Match], Node | None]:
    """max(x, c) and min(x, c) of one number c: relu, relu6, clip."""

    def rule(match: Match) -> Node | None:
        for x, c in (match.node.inputs, match.node.inputs[::-1]):
            if uniform(c) == (-np.inf if side == "lo" else np.inf) and x.aval == match.node.aval:
                return x
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


def _in_bounds(match: Match) -> Node | None:
    """A gather whose indices are known to lie inside fills nothing."""
    node, (x, indices) = match.node, match.node.inputs
    if node.attrs["mode"] != "FILL_OR_DROP" or not indices.is_constant:
        return None
    axes = node.attrs["dimension_numbers"]["start_index_map"]
    last = [(x.aval.shape[axis], node.attrs["slice_sizes"][axis]) for axis in axes]
    if not all(isinstance(size, int) for pair in last for size in pair):
        return None
    largest = np.array([whole - part for whole, part in last])
    starts = np.asarray(indices.value).reshape(-1, len(axes))
    inside = np.all((starts >= 0) & (starts <= largest))
    return node.with_attrs(mode="PROMISE_IN_BOUNDS", fill_value=None) if inside else None


# The products first, with the transposes around them, so that `layout` can move these.
RULES: tuple[Rule, ...] = (
    ("item", _split),
    ("gather", _in_bounds),
    ("reduce_sum", _sum),
    ("reduce_window_sum", _window_sum),
    ("mul", _with_constant(lambda c: c, None)),
    ("mul", _multiply_values),
    ("div", _with_constant(_reciprocal, None, swapped=False)),
    ("div", _divide_values),
    ("add", _with_constant(None, lambda c: c)),
    ("sub", _with_constant(None, lambda c: -c, swapped=False)),
    ("sub", _constant_minus),
    ("neg", _negative),
    ("add", _add_values),
    ("max", _bound("lo")),
    ("min", _bound("hi")),
    ("clamp", _clamp),
)
