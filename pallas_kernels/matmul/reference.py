"""What every matmul kernel computes, in plain jnp, and which arrays it is defined for."""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.epilogue import Epilogue, check, finish, require

LARGEST = {"int8": 127, "uint8": 255}
# K beyond what an int32 sum holds for certain is cut into parts of this many products, whose sums are added in float32,
# the first part first.
PART = 1 << 15


def supports(x: Any, w: Any, epilogue: Epilogue | None = None, *, out_dtype: jax.typing.DTypeLike) -> str | None:
    """Why `matmul` is not defined for these (anything with shape and dtype), or None where it is."""
    x_dtype, w_dtype = jnp.dtype(x.dtype).name, jnp.dtype(w.dtype).name
    if len(x.shape) < 2 or len(x.shape) != len(w.shape) or tuple(x.shape[:-2]) != tuple(w.shape[:-2]):
        return f"x and w must be (..., M, K) and (..., N, K) with the same leading axes, not {x.shape} and {w.shape}"
    if x.shape[-1] != w.shape[-1]:
        return f"x {x.shape} and w {w.shape} differ in K, their last axis"
    if x_dtype not in LARGEST:
        return f"x must be int8 or uint8, not {x_dtype}"
    if w_dtype not in LARGEST:
        return f"w must be int8 or uint8, not {w_dtype}"
    if epilogue is None and is_split(x, w):
        return f"K = {x.shape[-1]} needs an epilogue: int32 does not hold the sum of so many products of {x_dtype}"
    return check(epilogue, (*x.shape[:-1], w.shape[-2]), out_dtype)


def is_split(x: Any, w: Any) -> bool:
    """Whether K is beyond what int32 holds exactly: 133,144 products of int8 x int8, 66,311 of uint8 x int8."""
    terms = LARGEST[jnp.dtype(x.dtype).name] * LARGEST[jnp.dtype(w.dtype).name]
    return bool(x.shape[-1] > jnp.iinfo(jnp.int32).max // terms)


def matmul_reference(
    x: jax.Array, w: jax.Array, epilogue: Epilogue | None = None, *, out_dtype: jax.typing.DTypeLike
) -> jax.Array:
    """What `matmul` computes, in plain jnp; arguments and exceptions as there."""
    require(supports(x, w, epilogue, out_dtype=out_dtype))
    if not is_split(x, w):
        return finish(_product(x, w), epilogue, out_dtype)
    parts = [_product(x[..., k : k + PART], w[..., k : k + PART]) for k in range(0, x.shape[-1], PART)]
    return finish_parts(parts, epilogue, out_dtype)


def finish_parts(parts: Sequence[jax.Array], epilogue: Epilogue | None, out_dtype: jax.typing.DTypeLike) -> jax.Array:
    """The output of the int32 sums of a split K, which are added in float32, the first part first."""
    return finish(functools.reduce(operator.add, (part.astype(jnp.float32) for part in parts)), epilogue, out_dtype)


def _product(x: jax.Array, w: jax.Array) -> jax.Array:
    batch = tuple(range(x.ndim - 2))
    contracted = ((x.ndim - 1,), (w.ndim - 1,))
    # XLA's GPU backend refuses dots of uint8 with int8; int32 operands are exact everywhere.
    if x.dtype != jnp.int8 or w.dtype != jnp.int8:
        x, w = x.astype(jnp.int32), w.astype(jnp.int32)
    return lax.dot_general(x, w, (contracted, (batch, batch)), preferred_element_type=jnp.int32)
