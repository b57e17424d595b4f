"""uint8 for instructions that take int8 alone.

A uint8 x less 128 is int8; what that takes from the product is a number for each output channel:

    x . w = (x - 128) . w + 128 sum(w)

The sums need no x: whoever keeps w can compute them once (`offset`) and hand them to the kernels with it.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.errors import UnsupportedShapeError

SHIFT = 128


def signed(v: jax.Array) -> jax.Array:
    """int8 as it is, uint8 less 128."""
    # The highest bit flipped is 128 less, modulo 256.
    return v if v.dtype == jnp.int8 else lax.bitcast_convert_type(v ^ jnp.full_like(v, SHIFT), jnp.int8)


def offset(w: jax.Array, axis: int | Sequence[int]) -> jax.Array:
    """128 * sum(w) over those axes, in int32."""
    return jnp.sum(SHIFT * w.astype(jnp.int32), axis=axis)  # the product fuses into the sum: one kernel


def check(offset: Any, w: Any, shape: tuple[int, ...]) -> None:
    """Raises UnsupportedShapeError where there is an offset and it is not int32 of that shape, or w not int8."""
    if offset is not None and (tuple(offset.shape) != shape or offset.dtype != jnp.int32 or w.dtype != jnp.int8):
        given = f"{offset.dtype} {tuple(offset.shape)} of w in {w.dtype}"
        raise UnsupportedShapeError(f"the offset must be int32 {shape} of w in int8, not {given}")
