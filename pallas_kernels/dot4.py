"""dot4: the dot product of four packed bytes, added to an int32 accumulator (the instruction dp4a, sm_61 and later)."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as pltriton


def pack4(x: jax.Array) -> jax.Array:
    """Packs an 8-bit array (..., K) into int32 (..., ceil(K / 4)), the first byte lowest; the tail is padded with 0."""
    k = x.shape[-1]
    zero = jnp.zeros((), x.dtype)
    padded = lax.pad(x, zero, [(0, 0, 0)] * (x.ndim - 1) + [(0, -k % 4, 0)]) if k % 4 else x
    return lax.bitcast_convert_type(padded.reshape(*x.shape[:-1], -(-k // 4), 4), jnp.int32)


def dot4(
    a: jax.Array, b: jax.Array, acc: jax.Array, *, signed: bool = True, b_signed: bool = True, interpret: bool = False
) -> jax.Array:
    """Returns int32 acc + a0 * b0 + a1 * b1 + a2 * b2 + a3 * b3, elementwise; a sum that does not fit wraps.

    Args:
      a: int32, any shape; each element packs four int8 (`signed`) or four uint8.
      b: int32, the same shape; each element packs four int8 (`b_signed`) or four uint8.
      acc: int32, the same shape.
      signed, b_signed: how the bytes of `a` and of `b` are read.
      interpret: shift in place of dp4a, which exists only in a Triton kernel that is compiled.
    """
    if interpret:
        for byte in range(4):
            acc = acc + _byte(a, byte, signed) * _byte(b, byte, b_signed)
        return acc
    [result] = pltriton.elementwise_inline_asm(
        f"dp4a.{'s32' if signed else 'u32'}.{'s32' if b_signed else 'u32'} $0, $1, $2, $3;",
        args=[a, b, acc],
        constraints="=r,r,r,r",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(acc.shape, jnp.int32)],
    )
    return result


def _byte(word: jax.Array, byte: int, signed: bool) -> jax.Array:
    # It moves to the top, and down again with its sign or with zeros.
    down = lax.shift_right_arithmetic if signed else lax.shift_right_logical
    return down(lax.shift_left(word, jnp.full_like(word, 24 - 8 * byte)), jnp.full_like(word, 24))
