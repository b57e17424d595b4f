"""The int8 ops in NumPy: a second opinion on every backend, which shares no code with them, nor with XLA.

`replay` gives for a node of a bound int8 graph the function of its operands as NumPy arrays, with the bits that
`numerics` prescribes. Sums are taken in float64, where products of bytes are exact up to 2**53. What only moves
integers is moved; a move by indices (gather, dynamic_slice), in which there is no arithmetic, by its definition in JAX.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import product
from typing import Any

import numpy as np

from jaxq.graph.evaluate import reference
from jaxq.graph.node import Node
from jaxq.numerics import BOUNDS, LARGEST, SMALLEST_AMAX

Array = np.ndarray


def replay(node: Node) -> Callable[..., Array]:
    """The function of an int8 node's operands, constants among them, to its value (`graph.node.is_int8`)."""

    def run(*operands: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            return _value(node, operands)

    return run


def _value(node: Node, operands: Sequence[Array]) -> Array:
    given = dict(zip(node.roles, operands, strict=False))
    if node.op == "quantize":
        return _quantize(given["x"], given["multiplier"], given.get("zero_point"), node.aval.dtype)
    if node.op == "row_scale":
        return _row_scale(_factored(given))
    if node.op == "quantize_rows":
        return _quantize(_factored(given), np.float32(1) / given["row_scale"], None, node.aval.dtype)
    if node.op == "dequantize":
        y = given["x"].astype(np.float32) - given.get("zero_point", np.float32(0))
        return (y * given["scale"]).astype(node.aval.dtype)
    if node.op == "table":
        return _lookup(given["x"], given["table"])
    if "multiplier" in given:
        acc = _SUMS[node.op](node.attrs, given.pop("x"), given.pop("weight", given.pop("y", None)))
        return _epilogue(acc, **given, dtype=node.aval.dtype)
    if node.op in _MOVES:
        return _MOVES[node.op](*operands, **node.attrs)
    return np.asarray(reference(node)(*operands))


# ------------------------------------------------------------------------------------------------------------- rounding


def _integers(y: Array, dtype: str) -> Array:
    """Half to even; `y` is within the bounds of the dtype, or NaN, which becomes 0."""
    return np.rint(np.where(np.isnan(y), np.float32(0), y)).astype(dtype)


def _quantize(x: Array, multiplier: Array, zero_point: Array | None, dtype: np.dtype) -> Array:
    y = x.astype(np.float32)
    y = np.where(np.isnan(y), np.float32(0), y) * multiplier
    if zero_point is not None:
        y = np.clip(y, np.float32(-LARGEST), np.float32(LARGEST)) + zero_point
    lo, hi = BOUNDS[dtype.name]
    return _integers(np.clip(y, np.float32(lo), np.float32(hi)), dtype.name)


def _factored(given: Mapping[str, Array]) -> Array:
    x = given["x"].astype(np.float32)
    return x * given["factor"] if "factor" in given else x


def _row_scale(x: Array) -> Array:
    amax = np.max(np.nan_to_num(np.abs(x), nan=0.0, posinf=LARGEST), axis=-1, keepdims=True)
    return np.maximum(amax, np.float32(SMALLEST_AMAX)) * np.float32(1 / 127)


def _lookup(q: Array, table: Array) -> Array:
    return table[q.view(np.uint8)]


def _scaled(x: Array, multiplier: Array) -> Array:
    return np.clip(x.astype(np.float32) * multiplier, np.float32(-LARGEST), np.float32(LARGEST))


def _epilogue(
    acc: Array,
    multiplier: Array,
    bias: Array,
    lo: Array,
    hi: Array,
    residual: Array | None = None,
    residual_multiplier: Array | None = None,
    table: Array | None = None,
    row_scale: Array | None = None,
    *,
    dtype: np.dtype,
) -> Array:
    y = _scaled(acc, multiplier)
    y = (y if row_scale is None else _scaled(y, row_scale)) + bias
    if residual is not None and residual_multiplier is not None:
        y = y + _scaled(residual, residual_multiplier)
    y = np.clip(y, lo, hi)
    if table is not None:
        return _lookup(_integers(y, "int8"), table)
    return _integers(y, dtype.name) if dtype.name in BOUNDS else y.astype(dtype)


# ----------------------------------------------------------------------------------------------------------------- sums


def _wide(x: Array) -> Array:
    return x.astype(np.float64)


def _conv(attrs: Mapping[str, Any], x: Array, weight: Array) -> Array:
    """A product for every tap of the kernel, summed. x (N, spatial..., C), weight (spatial..., C / groups, O)."""
    spatial = ((lo, hi, d - 1) for (lo, hi), d in zip(attrs["padding"], attrs["lhs_dilation"], strict=True))
    x, weight, groups = _pad(_wide(x), 0, ((0, 0, 0), *spatial, (0, 0, 0))), _wide(weight), attrs["groups"]
    sizes, strides, dilation = ((1, *each, 1) for each in (weight.shape[:-2], attrs["strides"], attrs["rhs_dilation"]))
    taps = _windowed(x, sizes, strides, dilation)
    return reduce(np.add, (_by_group(part, weight[index[1:-1]], groups) for index, part in taps))


def _by_group(x: Array, tap: Array, groups: int) -> Array:
    """(..., C) times (C / groups, O) to (..., O), each group on its own channels."""
    if groups == 1:
        return x @ tap
    channels, features = tap.shape[0], tap.shape[1] // groups
    each = x.reshape(-1, groups, channels).transpose(1, 0, 2) @ tap.reshape(channels, groups, features).swapaxes(0, 1)
    return each.transpose(1, 0, 2).reshape(*x.shape[:-1], -1)


def _window_sum(attrs: Mapping[str, Any], x: Array, _: None) -> Array:
    return _reduced(_wide(x), np.add, 0, **attrs["window"])


_SUMS: dict[str, Callable[[Mapping[str, Any], Array, Any], Array]] = {
    "conv": _conv,
    "dot": lambda attrs, x, weight: _wide(x) @ _wide(weight).T,
    "matmul": lambda attrs, x, y: _wide(x) @ _wide(y).swapaxes(-1, -2),
    "product": lambda attrs, x, y: _wide(x) * _wide(y),
    "sum": lambda attrs, x, _: np.sum(_wide(x), axis=tuple(attrs["axes"])),
    "window_sum": _window_sum,
    "affine": lambda attrs, x, _: x,
}


# ---------------------------------------------------------------------------------------------------------------- moves


def _windowed(
    x: Array, sizes: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], Array]]:
    """For every position within a window of those sizes, what it sees as the window moves over x."""
    axes = list(zip(x.shape, sizes, strides, dilation, strict=True))
    out = [max((n - (k - 1) * d - 1) // s + 1, 0) for n, k, s, d in axes]
    for index in product(*map(range, sizes)):
        yield (
            index,
            x[tuple(slice(i * d, i * d + n * s, s) for i, n, (_, _, s, d) in zip(index, out, axes, strict=True))],
        )


def _reduced(
    x: Array,
    combine: Callable[[Array, Array], Array],
    identity: Any,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    base_dilation: Sequence[int],
    window_dilation: Sequence[int],
) -> Array:
    x = _pad(x, identity, [(lo, hi, d - 1) for (lo, hi), d in zip(padding, base_dilation, strict=True)])
    return reduce(combine, (part for _, part in _windowed(x, window_dimensions, window_strides, window_dilation)))


def _pad(x: Array, value: Any, padding_config: Sequence[tuple[int, int, int]]) -> Array:
    """Each axis with `value` between its elements and at its ends, which are cut where the padding is negative."""
    sizes = [n + max(n - 1, 0) * between for n, (_, _, between) in zip(x.shape, padding_config, strict=True)]
    spread = np.full(sizes, value, x.dtype)
    spread[tuple(slice(None, None, between + 1) for _, _, between in padding_config)] = x
    ends = [(max(lo, 0), max(hi, 0)) for lo, hi, _ in padding_config]
    padded = np.pad(spread, ends, constant_values=value)
    cuts = ((max(-lo, 0), n - max(-hi, 0)) for n, (lo, hi, _) in zip(padded.shape, padding_config, strict=True))
    return padded[tuple(slice(start, stop) for start, stop in cuts)]


def _broadcast(x: Array, shape: tuple[int, ...], broadcast_dimensions: Sequence[int]) -> Array:
    axes = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, x.shape, strict=True):
        axes[axis] = size
    return np.broadcast_to(x.reshape(axes), shape)


def _slice(x: Array, start_indices: Sequence[int], limit_indices: Sequence[int], strides: Any) -> Array:
    steps = strides or (1,) * x.ndim
    return x[tuple(map(slice, start_indices, limit_indices, steps))]


def _same(x: Array, **_: Any) -> Array:
    return x


_MOVES: dict[str, Callable[..., Array]] = {
    "reshape": lambda x, new_sizes: x.reshape(new_sizes),
    "transpose": lambda x, permutation: x.transpose(permutation),
    "squeeze": lambda x, dimensions: x.squeeze(tuple(dimensions)),
    "broadcast_in_dim": _broadcast,
    "tile": lambda x, reps: np.tile(x, reps),
    "rev": lambda x, dimensions: np.flip(x, tuple(dimensions)),
    "concatenate": lambda *xs, dimension: np.concatenate(xs, dimension),
    "stack": lambda *xs, axis: np.stack(xs, axis),
    "slice": _slice,
    "pad": _pad,
    "max": np.maximum,
    "min": np.minimum,
    "reduce_max": lambda x, axes: np.max(x, axis=tuple(axes)),
    "reduce_window_max": lambda x, **window: _reduced(x, np.maximum, np.iinfo(x.dtype).min, **window),
    "copy": _same,
    "name": _same,
    "stop_gradient": _same,
}
