"""What every convolution computes, in plain jnp, and which arrays it is defined for."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.conv.window import Geometry, Window
from pallas_kernels.epilogue import Epilogue, check, finish, require

_LARGEST = {"int8": 127, "uint8": 255}
_MAX_ELEMENTS = 2**31 - 1  # what an int32 index reaches
_MORE_PIXELS = 64  # that a kernel may append to the last axis


def conv_reference(
    x: jax.Array,
    w: jax.Array,
    epilogue: Epilogue | None = None,
    *,
    window: Window,
    out_dtype: jax.typing.DTypeLike,
) -> jax.Array:
    """What `conv` computes, in plain jnp: a sum over the taps; arguments and exceptions as there."""
    require(supports(x, w, epilogue, window=window, out_dtype=out_dtype))
    return finish(_accumulator(x, w, Geometry.of(x, w, window)), epilogue, out_dtype)


def supports(
    x: Any, w: Any, epilogue: Epilogue | None = None, *, window: Window, out_dtype: jax.typing.DTypeLike
) -> str | None:
    """Why `conv` is not defined for these (anything with shape and dtype), or None where it is."""
    x_dtype, w_dtype = jnp.dtype(x.dtype).name, jnp.dtype(w.dtype).name
    rank = len(x.shape) - 2
    if rank < 1 or len(w.shape) != rank + 2:
        return f"x and w must be (N, spatial..., C) and (O, kernel..., C / groups), not {x.shape} and {w.shape}"
    axes = (window.strides, window.padding, window.dilation, window.input_dilation)
    if any(len(axis) != rank for axis in axes):
        return f"{window} must have {rank} numbers (of paddings, pairs), one for each spatial axis of x {x.shape}"
    if any(step < 1 for steps in (window.strides, window.dilation, window.input_dilation) for step in steps):
        return f"strides and dilations must be positive: {window}"
    if window.groups < 1 or x.shape[-1] != w.shape[-1] * window.groups or w.shape[0] % window.groups:
        return f"the channels of x {x.shape} and w {w.shape} do not go into {window.groups} groups"
    if 0 in w.shape[1:-1]:
        return f"the kernel of w {w.shape} is empty"
    if x_dtype not in _LARGEST:
        return f"x must be int8 or uint8, not {x_dtype}"
    if w_dtype != "int8":
        return f"w must be int8, not {w_dtype}"
    terms, bound = math.prod(w.shape[1:]), np.iinfo(np.int32).max // (_LARGEST[x_dtype] * _LARGEST["int8"])
    if terms > bound:
        return f"{terms} products a sum: int32 holds {bound} of {x_dtype} for certain"
    geometry = Geometry.of(x, w, window)
    *lines, line = (max(0, size) for size in geometry.padded)
    channels = x.shape[-1] + (-x.shape[-1] % 4 if window.groups == 1 else 0)
    written = (x.shape[0], *lines, line + _MORE_PIXELS, channels)  # the most that a kernel has XLA make of x
    largest = max(math.prod(shape) for shape in (x.shape, w.shape, geometry.out_shape, written))
    if largest > _MAX_ELEMENTS:
        return f"an array of {largest} elements is beyond int32 indices; cut the batch"
    if epilogue is not None and epilogue.row_scale is not None:
        return "a convolution's rows have no scales of their own"
    return check(epilogue, geometry.out_shape, out_dtype)


def _accumulator(x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    window = geometry.window
    if 0 in geometry.out_shape:
        return jnp.zeros(geometry.out_shape, jnp.int32)
    config = [(lo, hi, step - 1) for (lo, hi), step in zip(window.padding, window.input_dilation, strict=True)]
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
    features = geometry.features // window.groups
    acc = jnp.zeros((*geometry.out_shape[:-1], window.groups, features), jnp.int32)
    for tap in np.ndindex(geometry.kernel):
        start = [index * step for index, step in zip(tap, window.dilation, strict=True)]
        limit = [
            at + (size - 1) * stride + 1 for at, size, stride in zip(start, geometry.out, window.strides, strict=True)
        ]
        part = lax.slice(padded, (0, *start, 0), (x.shape[0], *limit, x.shape[-1]), (1, *window.strides, 1))
        part = part.reshape(*part.shape[:-1], window.groups, geometry.depth)
        weights = w[:, *tap].reshape(window.groups, features, geometry.depth)
        acc = acc + _product(part, weights)
    return acc.reshape(geometry.out_shape)


def _product(part: jax.Array, weights: jax.Array) -> jax.Array:
    """(..., groups, depth) and (groups, features, depth) to (..., groups, features), in int32."""
    if part.dtype != jnp.int8:  # XLA's GPU backend refuses dots of uint8 with int8
        part, weights = part.astype(jnp.int32), weights.astype(jnp.int32)
    axis = part.ndim - 2
    numbers = (((axis + 1,), (2,)), ((axis,), (0,)))
    product = lax.dot_general(part, weights, numbers, preferred_element_type=jnp.int32)
    return jnp.moveaxis(product, 0, -2)
