"""quantize and dequantize: the borders of the int8 regions of a network, elementwise and bound by memory.

quantize:   q = convert(round_half_even(clip(x * multiplier)))      x in float32, NaN as 0
dequantize: x = scale * q                                           in float32, then cast
"""

import dataclasses
import functools
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from pallas_kernels import tiles
from pallas_kernels.epilogue import require, round_in_triton

FLOATS = ("float32", "bfloat16", "float16")
BOUNDS = {"int8": (-127.0, 127.0), "uint8": (0.0, 255.0)}


@dataclasses.dataclass(frozen=True)
class BorderConfig:
    """Tactic of a border: the elements of one program and the warps that share them.

    Raises:
      ValueError: where a number is no power of two.
    """

    block: int
    num_warps: int = 4

    def __post_init__(self) -> None:
        if any(number < 1 or number & (number - 1) for number in (self.block, self.num_warps)):
            raise ValueError(f"{self}: all numbers must be powers of two")


def default_config(size: int) -> BorderConfig:
    """Heuristic tactic for `size` elements; valid for all sizes, 0 included.

    16 elements a thread: 16 bytes are one access of int8 and four of float32, the widest that there are, and a full
    multiprocessor has 128 KB of loads in flight where 15 KB (bandwidth times latency) keep the memory busy.
    """
    return _fit(size, 2048, 4)


def candidates(size: int) -> tuple[BorderConfig, ...]:
    """Tactics worth timing for `size` elements: distinct, all valid, the default first."""
    tactics = ((512, 4), (1024, 4), (4096, 4), (4096, 8), (8192, 8))
    return tuple(dict.fromkeys((default_config(size), *(_fit(size, *tactic) for tactic in tactics))))


def _fit(size: int, block: int, num_warps: int) -> BorderConfig:
    return BorderConfig(min(block, pl.next_power_of_2(max(size, 1))), num_warps)


def supports(x: Any, multiplier: Any, *, dtype: jax.typing.DTypeLike) -> str | None:
    """Why neither `quantize` nor `dequantize` takes these (anything with shape and dtype), or None where one does."""
    source, target = jnp.dtype(x.dtype).name, jnp.dtype(dtype).name
    if not (source in FLOATS and target in BOUNDS) and not (source in BOUNDS and target in FLOATS):
        return f"one dtype must be of {', '.join(FLOATS)}, the other int8 or uint8, not {source} and {target}"
    if multiplier.dtype != jnp.float32 or tuple(multiplier.shape) not in ((), tuple(x.shape[-1:])):
        return (
            f"the multiplier must be float32, a scalar or {tuple(x.shape[-1:])}, "
            f"not {jnp.dtype(multiplier.dtype).name} {tuple(multiplier.shape)}"
        )
    if prod(x.shape) >= 2**31:
        return f"{tuple(x.shape)} has more elements than an int32 counts"
    return None


def quantize_reference(x: jax.Array, multiplier: jax.Array, *, dtype: jax.typing.DTypeLike) -> jax.Array:
    """What `quantize` computes, in plain jnp."""
    name = jnp.dtype(dtype).name
    return lax.round(_levels(x, multiplier, name), lax.RoundingMethod.TO_NEAREST_EVEN).astype(name)


def dequantize_reference(q: jax.Array, scale: jax.Array, *, dtype: jax.typing.DTypeLike) -> jax.Array:
    """What `dequantize` computes, in plain jnp."""
    return (q.astype(jnp.float32) * scale).astype(dtype)


def quantize(
    x: jax.Array,
    multiplier: jax.Array,
    *,
    dtype: jax.typing.DTypeLike,
    config: BorderConfig | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Float `x` to int8 in [-127, 127] or uint8, equal to `quantize_reference` in every bit, for every config.

    Args:
      x: float32, bfloat16 or float16, any shape.
      multiplier: 1 / scale, positive: float32, a scalar or one for each channel of the last axis.
      dtype: int8 or uint8.
      config: tactic; None takes `default_config(x.size)`.
      interpret: run on any machine, slowly.

    Raises:
      UnsupportedShapeError: for other shapes or dtypes.
    """
    require(supports(x, multiplier, dtype=dtype))
    if x.size == 0:
        return quantize_reference(x, multiplier, dtype=dtype)
    return _elementwise(_quantize_block, x, multiplier, dtype, config, interpret)


def dequantize(
    q: jax.Array,
    scale: jax.Array,
    *,
    dtype: jax.typing.DTypeLike,
    config: BorderConfig | None = None,
    interpret: bool = False,
) -> jax.Array:
    """int8 or uint8 `q` to the float `dtype`, equal to `dequantize_reference` in every bit; arguments as `quantize`."""
    require(supports(q, scale, dtype=dtype))
    if q.size == 0:
        return dequantize_reference(q, scale, dtype=dtype)
    return _elementwise(_dequantize_block, q, scale, dtype, config, interpret)


def _elementwise(
    function: Any, x: jax.Array, vector: jax.Array, dtype: Any, config: BorderConfig | None, interpret: bool
) -> jax.Array:
    config = config or default_config(x.size)
    block = pl.BlockSpec((config.block,), lambda i: (i,))
    out_type = jax.ShapeDtypeStruct((x.size,), dtype, manual_axis_type=jax.typeof(x).manual_axis_type)
    return pl.pallas_call(
        functools.partial(_kernel, function=function, size=x.size, interpret=interpret),
        grid=(pl.cdiv(x.size, config.block),),
        in_specs=(block, pl.BlockSpec()),
        out_specs=block,
        out_shape=out_type,
        compiler_params=pltriton.CompilerParams(num_warps=config.num_warps),
        interpret=interpret,
        name=function.__name__.strip("_"),
    )(x.reshape(-1), vector).reshape(x.shape)


def _kernel(x_ref: Any, vector_ref: Any, out_ref: Any, *, function: Any, size: int, interpret: bool) -> None:
    shape = out_ref.shape
    start = pl.program_id(0) * shape[0]
    inside = tiles.mask(shape, (start, size))
    if vector_ref.shape:
        position = start + lax.broadcasted_iota(jnp.int32, shape, 0)
        # Beyond the edge the channel is some other one: no address lies outside.
        channel = lax.rem(position, jnp.full(shape, vector_ref.shape[0], jnp.int32))
        vector = pltriton.load(vector_ref.at[channel])
    else:
        vector = lax.broadcast_in_dim(vector_ref[...], shape, ())
    out = function(tiles.load(x_ref, inside), vector, out_ref.dtype, interpret)
    pltriton.store(out_ref, out, mask=inside)


def _quantize_block(x: jax.Array, multiplier: jax.Array, dtype: Any, interpret: bool) -> jax.Array:
    name = jnp.dtype(dtype).name
    y = _levels(x, multiplier, name)
    if interpret:
        return lax.round(y, lax.RoundingMethod.TO_NEAREST_EVEN).astype(name)
    return round_in_triton(y, name)


def _dequantize_block(q: jax.Array, scale: jax.Array, dtype: Any, interpret: bool) -> jax.Array:
    del interpret
    return dequantize_reference(q, scale, dtype=dtype)


def _levels(x: jax.Array, multiplier: jax.Array, name: str) -> jax.Array:
    """x * multiplier within the bounds of the dtype, before it is rounded."""
    lo, hi = BOUNDS[name]
    y = x.astype(jnp.float32)
    y = lax.select(lax.eq(y, y), y, jnp.zeros_like(y)) * multiplier
    return lax.min(lax.max(y, jnp.full_like(y, lo)), jnp.full_like(y, hi))
