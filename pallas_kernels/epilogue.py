"""The epilogue: from the int32 accumulator to the output, in float32, with one rounding for each step.

    y = acc * multiplier[c]
    y = y * row_scale                                       where each row of a matrix product has one
    y = y + bias[c]
    y = y + residual * residual_multiplier
    y = clip(y, lo[c], hi[c])                               the activation's bounds, cut to the output dtype's range
    out = convert(round_half_even(y))                       int8 or uint8; float32 and bfloat16 are y, cast
    out = table[convert(round_half_even(y))]                where a table follows: y is int8 then, whatever `out` is

Every product and every sum is rounded: no fused multiply-add. A product beyond the finite floats is the largest of them
(a mask's -inf, say, or the least float32 times 2). NaN becomes 0 in integers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as pltriton

from pallas_kernels.errors import UnsupportedShapeError

OUT_DTYPES = ("int8", "uint8", "float32", "bfloat16")
RESIDUAL_DTYPES = ("int8", "uint8", "float32", "bfloat16")
_LARGEST = float(jnp.finfo(jnp.float32).max)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Epilogue:
    """Operands of the epilogue, of an output (..., N). (Inside a kernel the same fields hold references or blocks.)

    Attributes:
      multiplier, bias, lo, hi: float32 (N,). For an integer output, or with a table, lo and hi hold the saturation:
        they lie in [-127, 127] or [0, 255]. Multipliers of integers are below 1e29 in magnitude: no product overflows.
      residual: int8, uint8, float32 or bfloat16, of the output's shape; or None.
      residual_multiplier: float32 (), given exactly when the residual is.
      table: (256,) of the output's dtype, entry i that of the int8 whose byte is i; or None.
      row_scale: float32 (...), of the output's shape without its channels; or None.
    """

    multiplier: Any
    bias: Any
    lo: Any
    hi: Any
    residual: Any = None
    residual_multiplier: Any = None
    table: Any = None
    row_scale: Any = None

    @property
    def vectors(self) -> tuple[Any, Any, Any, Any]:
        """The operands with one number a channel."""
        return self.multiplier, self.bias, self.lo, self.hi


def check(epilogue: Epilogue | None, shape: tuple[int, ...], out_dtype: jax.typing.DTypeLike) -> str | None:
    """Why the epilogue does not fit an output of that shape and dtype, or None. (Arrays: anything with both.)"""
    out = jnp.dtype(out_dtype).name
    if epilogue is None:
        return None if out == "int32" else f"without an epilogue the output is the int32 accumulator, not {out}"
    if out not in OUT_DTYPES:
        return f"behind an epilogue the output must be one of {', '.join(OUT_DTYPES)}, not {out}"
    if any(tuple(v.shape) != shape[-1:] or v.dtype != jnp.float32 for v in epilogue.vectors):
        return f"multiplier, bias, lo and hi must be float32 {shape[-1:]}, one number for each output channel"
    residual, factor, table = epilogue.residual, epilogue.residual_multiplier, epilogue.table
    row_scale = epilogue.row_scale
    if row_scale is not None and (tuple(row_scale.shape) != shape[:-1] or row_scale.dtype != jnp.float32):
        return f"row_scale must be float32 {shape[:-1]}, one number for each row"
    if (residual is None) != (factor is None):
        return "residual and residual_multiplier must be given together"
    if residual is not None:
        if tuple(residual.shape) != shape:
            return f"the residual must be {shape}, the shape of the output, not {tuple(residual.shape)}"
        if jnp.dtype(residual.dtype).name not in RESIDUAL_DTYPES:
            return f"the residual must be one of {', '.join(RESIDUAL_DTYPES)}, not {jnp.dtype(residual.dtype).name}"
    if factor is not None and (tuple(factor.shape) != () or factor.dtype != jnp.float32):
        return "residual_multiplier must be a float32 scalar"
    if table is not None and (tuple(table.shape) != (256,) or jnp.dtype(table.dtype).name != out):
        return f"the table must be {out} (256,), not {jnp.dtype(table.dtype).name} {tuple(table.shape)}"
    return None


def require(reason: str | None) -> None:
    """Raises UnsupportedShapeError where there is a reason."""
    if reason is not None:
        raise UnsupportedShapeError(reason)


def finish(
    acc: jax.Array,
    epilogue: Epilogue | None,
    out_dtype: jax.typing.DTypeLike,
    *,
    to_integer: Callable[[jax.Array, str], jax.Array] | None = None,
    lookup: Callable[[Any, jax.Array], jax.Array] | None = None,
    multiply: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    clip: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """The output (..., N) of the accumulator: int32, or the float32 sum of the parts of a split K.

    Args:
      acc: (..., N).
      epilogue: its operands, of the same block; None gives the int32 accumulator itself.
      out_dtype: int8, uint8, float32 or bfloat16 (int32 without an epilogue).
      to_integer: rounds half to even and converts a float32 block to the named dtype; plain jnp unless given.
      lookup: the table's entries at bytes given as int32 indices; plain jnp unless given.
      multiply: a product that is rounded before anything is added to it; plain jnp unless given.
      clip: of (y, lo, hi), with NaN kept; plain jnp unless given.
    """
    if epilogue is None:
        return acc
    multiply, clip, to_integer = multiply or _rounded_product, clip or _clip, to_integer or _round
    y = multiply(acc.astype(jnp.float32), _channels(epilogue.multiplier, acc))
    if epilogue.row_scale is not None:
        rows = lax.broadcast_in_dim(epilogue.row_scale, acc.shape, tuple(range(acc.ndim - 1)))
        y = _finite(multiply(y, rows), clip)
    y = y + _channels(epilogue.bias, acc)
    if epilogue.residual is not None:
        scale = lax.broadcast_in_dim(epilogue.residual_multiplier, acc.shape, ())
        product = multiply(epilogue.residual.astype(jnp.float32), scale)
        if jnp.issubdtype(epilogue.residual.dtype, jnp.floating):
            product = _finite(product, clip)
        y = y + product
    y = clip(y, _channels(epilogue.lo, acc), _channels(epilogue.hi, acc))
    if epilogue.table is not None:
        index = to_integer(y, "int8").astype(jnp.int32) & jnp.full(y.shape, 255, jnp.int32)
        return (lookup or _take)(epilogue.table, index)
    name = jnp.dtype(out_dtype).name
    return to_integer(y, name) if name in ("int8", "uint8") else y.astype(out_dtype)


def round_in_triton(y: jax.Array, dtype: str) -> jax.Array:
    """`to_integer` of a Triton kernel that is compiled: lax.round has no lowering there, and XLA folds the addition of
    1.5 * 2**23 away."""
    [rounded] = pltriton.elementwise_inline_asm(
        f"cvt.rni.sat.{'u8' if dtype == 'uint8' else 's8'}.f32 $0, $1;",
        args=[y],
        constraints="=r,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(y.shape, jnp.int32)],
    )
    return rounded.astype(dtype)


def multiply_in_triton(a: jax.Array, b: jax.Array) -> jax.Array:
    """`multiply` of a Triton kernel that is compiled: ptxas never contracts a product that names its rounding."""
    [product] = pltriton.elementwise_inline_asm(
        "mul.rn.f32 $0, $1, $2;",
        args=[a, b],
        constraints="=f,f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(a.shape, jnp.float32)],
    )
    return product


def clip_in_triton(y: jax.Array, lo: jax.Array, hi: jax.Array) -> jax.Array:
    """`clip` of a Triton kernel that is compiled for sm_80 or later: two instructions, which keep NaN."""
    [clipped] = pltriton.elementwise_inline_asm(
        "max.NaN.f32 $0, $1, $2; min.NaN.f32 $0, $0, $3;",
        args=[y, lo, hi],
        constraints="=&f,f,f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(y.shape, jnp.float32)],
    )
    return clipped


def _channels(v: jax.Array, acc: jax.Array) -> jax.Array:
    return lax.broadcast_in_dim(v, acc.shape, (acc.ndim - 1,))


def _rounded_product(a: jax.Array, b: jax.Array) -> jax.Array:
    # A product that a sum uses directly becomes a fused multiply-add, which rounds once where we round twice: XLA's CPU
    # backend contracts through optimization_barrier, bitcasts and reduce_precision, but not through a clamp.
    return _finite(a * b, _clip)


def _finite(product: jax.Array, clip: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]) -> jax.Array:
    largest = jnp.full(product.shape, _LARGEST, jnp.float32)
    return clip(product, -largest, largest)


def _clip(y: jax.Array, lo: jax.Array, hi: jax.Array) -> jax.Array:
    # Maximum and minimum pass NaN on in XLA and drop it in Triton: keep it in both.
    return lax.select(lax.eq(y, y), lax.min(lax.max(y, lo), hi), y)


def _round(y: jax.Array, dtype: str) -> jax.Array:
    return lax.round(y, lax.RoundingMethod.TO_NEAREST_EVEN).astype(dtype)


def _take(table: jax.Array, index: jax.Array) -> jax.Array:
    return table.at[index].get(mode="promise_in_bounds")
