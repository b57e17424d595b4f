"""The epilogue: from the int32 accumulator to the output, in float32, with one rounding for each step."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as pltriton

_FLOAT32_BOUND = 3.4e38  # below the largest float32, so that the clamp is no identity and no compiler drops it


def epilogue(
    acc: jax.Array,
    multiplier: jax.Array,
    bias: jax.Array,
    lo: jax.Array,
    hi: jax.Array,
    residual: jax.Array | None = None,
    residual_multiplier: jax.Array | None = None,
    *,
    out_dtype: jax.typing.DTypeLike,
    interpret: bool = True,
) -> jax.Array:
    """Returns clip(acc * multiplier + bias + residual * residual_multiplier, lo, hi) in `out_dtype`.

    Float32 throughout, in the order written; every product and every sum is rounded. For int8 and uint8 the result is
    then rounded half to even and converted (NaN becomes 0): lo and hi hold the activation and the saturation, so they
    must lie in [-127, 127] or [0, 255]. Float32 and bfloat16 are cast.

    Args:
      acc: int32 (..., N).
      multiplier, bias, lo, hi: float32 (N,).
      residual: int8, uint8 or float32, the shape of acc; or None.
      residual_multiplier: float32 (); given exactly when residual is.
      out_dtype: int8, uint8, float32 or bfloat16.
      interpret: plain jnp; False inside a Triton kernel that is compiled.
    """

    def channels(v: jax.Array) -> jax.Array:
        return lax.broadcast_in_dim(v, acc.shape, (acc.ndim - 1,))

    y = _rounded_product(acc.astype(jnp.float32), channels(multiplier)) + channels(bias)
    if residual is not None and residual_multiplier is not None:
        scale = lax.broadcast_in_dim(residual_multiplier, acc.shape, ())
        y = y + _rounded_product(residual.astype(jnp.float32), scale)
    y = _clip(y, channels(lo), channels(hi))
    if jnp.issubdtype(out_dtype, jnp.floating):
        return y.astype(out_dtype)
    return _round_to_integer(y, out_dtype, interpret)


def _rounded_product(a: jax.Array, b: jax.Array) -> jax.Array:
    # A product that a sum uses directly becomes a fused multiply-add, which rounds once where we round twice: XLA's CPU
    # backend contracts through optimization_barrier, bitcasts and reduce_precision, but not through a clamp.
    product = a * b
    bound = jnp.full_like(product, _FLOAT32_BOUND)
    return _clip(product, -bound, bound)


def _clip(y: jax.Array, lo: jax.Array, hi: jax.Array) -> jax.Array:
    # Maximum and minimum pass NaN on in XLA and drop it in Triton: keep it in both.
    return lax.select(lax.eq(y, y), lax.min(lax.max(y, lo), hi), y)


def _round_to_integer(y: jax.Array, out_dtype: jax.typing.DTypeLike, interpret: bool) -> jax.Array:
    if interpret:
        return lax.round(y, lax.RoundingMethod.TO_NEAREST_EVEN).astype(out_dtype)
    # lax.round has no Triton lowering, and XLA folds the addition of 1.5 * 2**23 away.
    [rounded] = pltriton.elementwise_inline_asm(
        f"cvt.rni.sat.{'u8' if out_dtype == jnp.uint8 else 's8'}.f32 $0, $1;",
        args=[y],
        constraints="=r,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(y.shape, jnp.int32)],
    )
    return rounded.astype(out_dtype)
