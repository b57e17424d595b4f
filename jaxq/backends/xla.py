"""The backend that takes every node, everywhere: XLA's own int8 convolutions and dots, in the forms it runs well.

XLA multiplies int8 by int8 only (a uint8 convolution is an error, a uint8 dot is slow), so a uint8 operand is shifted,

    sum(x * w) = sum((x - 128) * w) + 128 * sum(w)      with x - 128 in int8, its padding -128

Not every int8 convolution is one XLA runs well. On the CPU (2 cores of Zen 3, jax 0.10.2) a depthwise one as a sum over
its taps, each a shifted slice times a weight, takes 4.5 ms where the convolution takes 183; one dot of the gathered
patches takes 4.9 ms where a 3x3 convolution of 3 to 32 channels takes 28, and 0.7 where one of 16 to 16 takes 3.9. On
CUDA there is no int8 convolution with int32 sums (jax-ml/jax#7637): everything runs in one of these two forms.

A weight-only dot dequantizes its weight in every call. On the CPU, where XLA would write the float weight to memory, it
does so some output channels at a time, whose float weights stay in the caches: 2.7 ms for one row of 4096 values to
4096, where all at once take 21 and float weights 2.4.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxq import numerics
from jaxq.graph.evaluate import contract, convolve, float_epilogue, matmul, reference
from jaxq.graph.node import Node
from jaxq.graph.taps import padded, parts, slices


def supports(node: Node) -> str | None:
    """None: XLA takes every node."""
    del node
    return None


def candidates(node: Node) -> tuple[None, ...]:
    """One tactic: XLA chooses its kernels itself."""
    del node
    return (None,)


def lower(node: Node, tactic: None = None) -> Callable[..., Any]:
    """The function of the node's operands; floats and whatever moves integers run by their definition."""
    del tactic
    if node.op == "reduce_window_max" and node.qtype is not None and prod(node.attrs["window_dimensions"]) <= 64:
        return lambda x: _windowed(x, node.attrs, int(jnp.iinfo(x.dtype).min), jnp.maximum)
    if node.op == "weight_only_dot":
        return _weight_only_dot(node)
    if "multiplier" not in node.roles or node.op not in _SUMS:
        return reference(node)
    total = _SUMS[node.op]

    def run(*operands: Any) -> Any:
        given = dict(zip(node.roles, operands, strict=True))
        acc = total(node, given.pop("x"), given.pop("y" if "y" in given else "weight", None))
        return numerics.epilogue(acc, **given, dtype=node.aval.dtype)

    return run


def _dot(node: Node, x: jax.Array, weight: jax.Array) -> jax.Array:
    del node
    signed, correction = _signed(x, weight, axis=1)
    return contract(signed, weight, jnp.int32) + correction


def _matmul(node: Node, x: jax.Array, y: jax.Array) -> jax.Array:
    """x . y of bytes is that of the signed ones x - 128 and y - 128, with sums over K added where 128 was taken."""
    del node
    acc, depth = matmul(_shifted(x), _shifted(y), jnp.int32), x.shape[-1]
    if x.dtype == jnp.uint8:
        acc += 128 * jnp.sum(_shifted(y), axis=-1, dtype=jnp.int32)[..., None, :]
    if y.dtype == jnp.uint8:
        acc += 128 * jnp.sum(_shifted(x), axis=-1, dtype=jnp.int32)[..., :, None]
    return acc + 128 * 128 * depth if x.dtype == y.dtype == jnp.uint8 else acc


def _conv(node: Node, x: jax.Array, weight: jax.Array) -> jax.Array:
    channels, features, groups = x.shape[-1], weight.shape[-1], node.attrs["groups"]
    signed, correction = _signed(x, weight, axis=tuple(range(weight.ndim - 1)))
    padding = -128 if x.dtype == jnp.uint8 else 0

    def convolution(x: jax.Array, weight: jax.Array) -> jax.Array:
        return _convolution(node, x, weight, padding)

    def by_tap(x: jax.Array, weight: jax.Array) -> jax.Array:
        return sum(_grouped_product(part, weight[i], groups) for i, part in parts(node, x, weight, padding))  # type: ignore[return-value]

    def by_patch(x: jax.Array, weight: jax.Array) -> jax.Array:
        patches = jnp.concatenate([part for _, part in parts(node, x, weight, padding)], axis=-1)
        return contract(patches, weight.reshape(-1, features).T, jnp.int32)

    rewritten = by_patch if groups == 1 else by_tap
    depthwise = groups == channels == features
    cpu = rewritten if depthwise or (groups == 1 and (_is_pointwise(weight) or _is_narrow(weight))) else convolution
    return lax.platform_dependent(signed, weight, cpu=cpu, cuda=rewritten, default=convolution) + correction


def _is_pointwise(weight: jax.Array) -> bool:
    return all(size == 1 for size in weight.shape[:-2])


def _is_narrow(weight: jax.Array) -> bool:
    """Few enough channels that XLA's CPU convolution leaves its fast path."""
    return weight.shape[-2] <= 4 or weight.shape[-1] <= 16


def _window_sum(node: Node, x: jax.Array, weight: None) -> jax.Array:
    del weight
    return _windowed(x.astype(jnp.int32), node.attrs["window"], 0, jnp.add)


_SUMS: dict[str, Callable[..., jax.Array]] = {
    "conv": _conv,
    "dot": _dot,
    "matmul": _matmul,
    "window_sum": _window_sum,
}


# Float weights of that many bytes stay in a core's second-level cache.
_FLOAT_WEIGHT_BYTES = 2 << 20


def _weight_only_dot(node: Node) -> Callable[..., Any]:
    bits, size, precision = node.attrs["bits"], node.attrs["group_size"], node.attrs["precision"]

    def whole(x: jax.Array, weight: jax.Array, scale: jax.Array) -> jax.Array:
        if bits == 8:
            return contract(x, numerics.dequantize_groups(weight, scale, size), jnp.float32, precision)
        # Of the even inputs and of the odd ones: to bring their levels together takes longer.
        x = jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, x.shape[-1] % 2),))
        halves = (numerics.dequantize_groups(half, scale, size // 2) for half in numerics.int4_halves(weight))
        even, odd = (contract(x[..., i::2], half, jnp.float32, precision) for i, half in enumerate(halves))
        return even + odd

    def by_channels(x: jax.Array, weight: jax.Array, scale: jax.Array) -> jax.Array:
        channels = len(weight)
        count = max(_FLOAT_WEIGHT_BYTES // (4 * max(x.shape[-1], 1)), 1)
        if channels <= count:
            return whole(x, weight, scale)

        def step(i: jax.Array, y: jax.Array) -> jax.Array:
            start = jnp.minimum(i * count, channels - count)  # the last ones may be computed twice
            some = (lax.dynamic_slice_in_dim(array, start, count) for array in (weight, scale))
            return lax.dynamic_update_slice_in_dim(y, whole(x, *some), start, axis=-1)

        return lax.fori_loop(0, -(-channels // count), step, jnp.zeros((*x.shape[:-1], channels), jnp.float32))

    def run(*operands: Any) -> Any:
        given = dict(zip(node.roles, operands, strict=True))
        # XLA would compute the float weights of constant ones when it compiles, and keep them.
        weight, scale = lax.optimization_barrier((given["weight"], given["scale"]))
        y = lax.platform_dependent(given["x"].astype(jnp.float32), weight, scale, cpu=by_channels, default=whole)
        return float_epilogue(node, y, given)

    return run


def _signed(x: jax.Array, weight: jax.Array, axis: Any) -> tuple[jax.Array, jax.Array]:
    """int8 x as it is; uint8 x less 128, and what that takes from the sums of each output channel."""
    if x.dtype == jnp.int8:
        return x, jnp.zeros((), jnp.int32)
    return _shifted(x), 128 * jnp.sum(weight.astype(jnp.int32), axis=axis)


def _shifted(x: jax.Array) -> jax.Array:
    """int8 x as it is, uint8 x less 128."""
    return x if x.dtype == jnp.int8 else lax.bitcast_convert_type(x ^ jnp.uint8(128), jnp.int8)


def _convolution(node: Node, x: jax.Array, weight: jax.Array, value: int) -> jax.Array:
    if value:
        rank = len(node.attrs["strides"])
        x = padded(node, x, value)
        node = node.with_attrs(padding=((0, 0),) * rank, lhs_dilation=(1,) * rank)
    return convolve(node, x, weight, jnp.int32)


def _grouped_product(part: jax.Array, tap: jax.Array, groups: int) -> jax.Array:
    """(..., C) times (C / groups, O) to (..., O) in int32, each group on its own channels."""
    if groups == part.shape[-1] == tap.shape[-1]:
        return part.astype(jnp.int32) * tap[0].astype(jnp.int32)
    outer = part.shape[:-1]
    x = part.reshape(-1, groups, part.shape[-1] // groups)
    w = tap.reshape(tap.shape[0], groups, -1)
    by_group = lax.dot_general(x, w, (((2,), (0,)), ((1,), (1,))), preferred_element_type=jnp.int32)
    return by_group.transpose(1, 0, 2).reshape(*outer, -1)


def _windowed(
    x: jax.Array, window: Mapping[str, Any], identity: int, combine: Callable[[jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    """A windowed reduction as one elementwise combination of strided slices, a loop that XLA's CPU vectorizes, as it
    does not its own reduce_window (3x3 on 64 x 8 x 8 x 32 bytes: 1.2 ms)."""
    sizes, strides, dilation = window["window_dimensions"], window["window_strides"], window["window_dilation"]
    config = [(lo, hi, d - 1) for (lo, hi), d in zip(window["padding"], window["base_dilation"], strict=True)]
    x = lax.pad(x, np.array(identity, x.dtype), config)
    return reduce(combine, (part for _, part in slices(x, sizes, strides, dilation)))
