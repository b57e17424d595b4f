"""Every convolution and matrix product in one form: channels last, weights constant or both operands values.

What stands around the form to make it fit, transposes and reshapes, moves away or meets its inverse in `layout`.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from jaxq.graph.node import Aval, Dim, Node, uniform
from jaxq.graph.rewrite import Match, Rule
from jaxq.passes.accumulating import OPEN, weight_of
from jaxq.passes.layout import transposed


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


def _absorb_padding(match: Match) -> Node | None:
    """conv(pad(x)) with zeros around the image is a convolution with more padding."""
    node, pad = match.node, match.node.operand("x")
    if pad.op != "pad" or not match.is_sole_user(pad) or uniform(pad.inputs[1]) != 0.0:
        return None
    (batch, *spatial, channels) = pad.attrs["padding_config"]
    if any(batch) or any(channels) or any(interior for _, _, interior in spatial):
        return None
    if any(dilation != 1 for dilation in node.attrs["lhs_dilation"]):
        return None
    padding = tuple(
        (lo + more_lo, hi + more_hi)
        for (lo, hi), (more_lo, more_hi, _) in zip(node.attrs["padding"], spatial, strict=True)
    )
    operands = dict(zip(node.roles, node.inputs, strict=True))
    return node.with_attrs(padding=padding).with_operands(operands | {"x": pad.inputs[0]})


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


def _matmul(match: Match) -> Node | None:
    """A product of two values: x (batch..., M, K), y (batch..., N, K) to (batch..., M, N), between transposes and
    reshapes where needed."""
    node, (x, y) = match.node, match.node.inputs
    contracting, batching = node.attrs["dimension_numbers"]
    if x.is_constant or y.is_constant or not all(value.aval.is_float for value in (x, y, node)):
        return None

    def rows(value: Node, contracted: Any, batch: Any, name: str) -> tuple[Node, list[Any], list[Any]]:
        """The operand as (batch..., rows, K), and its batch and free dimensions."""
        shape = value.aval.shape
        free = [axis for axis in range(len(shape)) if axis not in (*contracted, *batch)]
        value = transposed(value, (*batch, *free, *contracted), f"{node.name}/transpose_{name}")
        outer, inner = [shape[axis] for axis in batch], [shape[axis] for axis in free]
        flat = (*outer, _size(inner), _size([shape[axis] for axis in contracted]))
        return _reshape(value, flat, f"{node.name}/reshape_{name}"), outer, inner

    operands = ((x, contracting[0], batching[0]), (y, contracting[1], batching[1]))
    if not all(_keeps_batch_apart(*operand) for operand in operands):
        return None
    x, outer, columns = rows(x, contracting[0], batching[0], "x")
    y, _, features = rows(y, contracting[1], batching[1], "y")
    aval = Aval((*outer, x.aval.shape[-2], y.aval.shape[-2]), node.aval.dtype)
    product = node.replace(op="matmul", attrs=OPEN | {"precision": node.attrs["precision"]}, aval=aval)
    product = product.with_operands({"x": x, "y": y})
    return _reshape(product, (*outer, *columns, *features), f"{node.name}/reshape_out")


def _swap(match: Match) -> Node | None:
    """transpose(x y^T) = transpose'(y x^T) where that leaves the last axis in its place. Of `bhqk,bkhd->bqhd`, which
    JAX traces with the values first, the weights of attention become x, the values y: bytes times int8."""
    node, x = match.node, match.node.inputs[0]
    product = x.inputs[0] if x.op == "reshape" else x
    if product.op != "matmul" or product.roles != ("x", "y") or not match.is_sole_user(x) or match.uses[product] != 1:
        return None
    shape, (*outer, rows, columns) = x.aval.shape, product.aval.shape
    first, permutation = len(outer), node.attrs["permutation"]
    splits = (i for i in range(first + 1, len(shape)) if _is_split(shape[first:i], rows))
    middle = next((i for i in splits if _is_split(shape[i:], columns)), None)
    if list(shape[:first]) != outer or middle is None or not first <= permutation[-1] < middle:
        return None
    if not isinstance(rows, int):
        return None  # the last axis of the product, its channels
    precision = product.attrs["precision"]
    swapped = product.with_attrs(precision=precision[::-1] if isinstance(precision, tuple) else precision)
    swapped = swapped.replace(aval=Aval((*outer, columns, rows), product.aval.dtype))
    swapped = swapped.with_operands({"x": product.operand("y"), "y": product.operand("x")})
    order = (*range(first), *range(middle, len(shape)), *range(first, middle))
    swapped = _reshape(swapped, tuple(shape[axis] for axis in order), x.name)
    return transposed(swapped, [order.index(axis) for axis in permutation], node.name)


def _is_split(dims: Sequence[Any], size: Any) -> bool:
    """True where an axis of that size may be split into these."""
    return dims[0] == size if len(dims) == 1 else all(isinstance(dim, int) for dim in dims) and prod(dims) == size


def _keeps_batch_apart(value: Node, contracted: Sequence[int], batch: Sequence[int]) -> bool:
    """True unless flattening would multiply a dimension that follows the batch with another one."""
    shape = value.aval.shape
    free = [shape[axis] for axis in range(len(shape)) if axis not in (*contracted, *batch)]
    summed = [shape[axis] for axis in contracted]
    return all(len(dims) == 1 or not any(isinstance(dim, Dim) for dim in dims) for dims in (free, summed))


def _size(dims: Sequence[Any]) -> Any:
    return dims[0] if len(dims) == 1 else prod(dims)


RULES: tuple[Rule, ...] = (
    ("conv_general_dilated", _conv),
    ("conv", _absorb_padding),
    ("dot_general", _dot),
    ("dot_general", _grouped_dot),
    ("dot_general", _matmul),
    ("transpose", _swap),
)
