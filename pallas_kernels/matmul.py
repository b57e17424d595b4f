"""matmul: int8 matrix product with the epilogue fused in, on dp4a; made for small M, where the bytes of w count."""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from pallas_kernels.config import Config, default_config
from pallas_kernels.dot4 import dot4, pack4
from pallas_kernels.epilogue import epilogue

_X_MAX = {"int8": 127, "uint8": 255}
_RESIDUAL_DTYPES = ("int8", "uint8", "float32")
_OUT_DTYPES = ("int8", "uint8", "float32", "bfloat16")


class UnsupportedShapeError(ValueError):
    """The kernel does not take these shapes or dtypes; the message says why."""


def supports(x: Any, w: Any, residual: Any | None = None, *, out_dtype: jax.typing.DTypeLike = jnp.int8) -> str | None:
    """Returns why `matmul` does not take these arrays (anything with shape and dtype), or None where it does."""
    x_dtype, w_dtype, out = jnp.dtype(x.dtype).name, jnp.dtype(w.dtype).name, jnp.dtype(out_dtype).name
    if len(x.shape) != 2 or len(w.shape) != 2:
        return f"x and w must be matrices (M, K) and (N, K), not {x.shape} and {w.shape}"
    if x.shape[1] != w.shape[1]:
        return f"x {x.shape} and w {w.shape} differ in K, their last axis"
    if x_dtype not in _X_MAX:
        return f"x must be int8 or uint8, not {x_dtype}"
    if w_dtype != "int8":
        return f"w must be int8, not {w_dtype}"
    if out not in _OUT_DTYPES:
        return f"the output must be one of {', '.join(_OUT_DTYPES)}, not {out}"
    # K products of at most 127 * 127 or 255 * 127 each must fit in int32.
    bound = jnp.iinfo(jnp.int32).max // (_X_MAX[x_dtype] * 127)
    if x.shape[1] > bound:
        return f"K = {x.shape[1]} is beyond {bound}, the longest {x_dtype} x int8 sum that int32 holds exactly: split K"
    if residual is not None:
        if tuple(residual.shape) != (x.shape[0], w.shape[0]):
            return f"the residual must be {(x.shape[0], w.shape[0])}, the shape of the output, not {residual.shape}"
        if jnp.dtype(residual.dtype).name not in _RESIDUAL_DTYPES:
            return f"the residual must be one of {', '.join(_RESIDUAL_DTYPES)}, not {jnp.dtype(residual.dtype).name}"
    return None


def matmul_reference(
    x: jax.Array,
    w: jax.Array,
    multiplier: jax.Array,
    bias: jax.Array,
    lo: jax.Array,
    hi: jax.Array,
    residual: jax.Array | None = None,
    residual_multiplier: jax.Array | None = None,
    *,
    out_dtype: jax.typing.DTypeLike,
) -> jax.Array:
    """What `matmul` computes, in plain jnp; arguments and exceptions as there."""
    _check(x, w, (multiplier, bias, lo, hi), residual, residual_multiplier, out_dtype)
    acc = lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    return epilogue(acc, multiplier, bias, lo, hi, residual, residual_multiplier, out_dtype=out_dtype)


def matmul(
    x: jax.Array,
    w: jax.Array,
    multiplier: jax.Array,
    bias: jax.Array,
    lo: jax.Array,
    hi: jax.Array,
    residual: jax.Array | None = None,
    residual_multiplier: jax.Array | None = None,
    *,
    out_dtype: jax.typing.DTypeLike,
    config: Config | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Returns clip(x @ w.T * multiplier + bias + residual * residual_multiplier, lo, hi) as (M, N) in `out_dtype`.

    The product is exact, in int32; the rest is `epilogue`. Equal to `matmul_reference` in every bit, for every config.

    Args:
      x: int8, in [-127, 127], or uint8 (M, K).
      w: int8 (N, K), in [-127, 127].
      multiplier, bias, lo, hi: float32 (N,); lo and hi contain the saturation of `out_dtype`.
      residual: int8, uint8 or float32 (M, N), or None.
      residual_multiplier: float32 (), given exactly when the residual is.
      out_dtype: int8, uint8, float32 or bfloat16.
      config: tactic; None takes `default_config(M, N, K)`.
      interpret: run on any machine, slowly.

    Raises:
      UnsupportedShapeError: for other shapes or dtypes, and where K is so large that int32 could overflow.
    """
    _check(x, w, (multiplier, bias, lo, hi), residual, residual_multiplier, out_dtype)
    (m, k), n = x.shape, w.shape[0]
    if 0 in (m, n, k):  # no grid, or no loads: there is only an epilogue
        return matmul_reference(x, w, multiplier, bias, lo, hi, residual, residual_multiplier, out_dtype=out_dtype)
    config = config or default_config(m, n, k)
    row_tile = pl.BlockSpec((config.block_m, -(-k // 4)), lambda i, j: (i, 0))
    column_tile = pl.BlockSpec((config.block_n, -(-k // 4)), lambda i, j: (j, 0))
    channel_tile = pl.BlockSpec((config.block_n,), lambda i, j: (j,))
    out_tile = pl.BlockSpec((config.block_m, config.block_n), lambda i, j: (i, j))
    operands = [pack4(x), pack4(w), multiplier, bias, lo, hi]
    in_specs = [row_tile, column_tile, *[channel_tile] * 4]
    if residual is not None and residual_multiplier is not None:
        operands += [residual, residual_multiplier]
        in_specs += [out_tile, pl.BlockSpec()]
    return pl.pallas_call(
        functools.partial(_kernel, config=config, m=m, n=n, signed=x.dtype == jnp.int8, interpret=interpret),
        # Programs with the same channels run next to one another: w is read from memory once.
        grid=(pl.cdiv(m, config.block_m), pl.cdiv(n, config.block_n)),
        in_specs=in_specs,
        out_specs=out_tile,
        out_shape=jax.ShapeDtypeStruct((m, n), out_dtype, manual_axis_type=jax.typeof(x).manual_axis_type),
        compiler_params=pltriton.CompilerParams(num_warps=config.num_warps),
        interpret=interpret,
        name="matmul_dot4",
    )(*operands)


def _check(
    x: jax.Array,
    w: jax.Array,
    vectors: tuple[jax.Array, ...],
    residual: jax.Array | None,
    residual_multiplier: jax.Array | None,
    out_dtype: jax.typing.DTypeLike,
) -> None:
    reason = supports(x, w, residual, out_dtype=out_dtype)
    if reason is None and any(v.shape != w.shape[:1] or v.dtype != jnp.float32 for v in vectors):
        reason = f"multiplier, bias, lo and hi must be float32 {w.shape[:1]}, one number for each row of w"
    if reason is None and (residual is None) != (residual_multiplier is None):
        reason = "residual and residual_multiplier must be given together"
    scalar = residual_multiplier
    if reason is None and scalar is not None and (scalar.shape != () or scalar.dtype != jnp.float32):
        reason = "residual_multiplier must be a float32 scalar"
    if reason is not None:
        raise UnsupportedShapeError(reason)


def _kernel(*refs: Any, config: Config, m: int, n: int, signed: bool, interpret: bool) -> None:
    x_ref, w_ref, *vector_refs, out_ref = refs
    vector_refs, residual_refs = vector_refs[:4], vector_refs[4:]
    k4 = x_ref.shape[1]
    block_m, block_n, block_k4 = config.block_m, config.block_n, config.block_k // 4
    # Each edge is masked here: before jax 0.12 nothing else masks a partial block on a GPU.
    row, column = (pl.program_id(0) * block_m, m), (pl.program_id(1) * block_n, n)

    def accumulate(i: jax.Array, acc: jax.Array) -> jax.Array:
        columns = pl.ds(i * block_k4, block_k4)
        depth = (i * block_k4, k4)
        x = _load(x_ref.at[:, columns], _mask((block_m, block_k4), row, depth))
        w = _load(w_ref.at[:, columns], _mask((block_n, block_k4), column, depth))
        return dot4(
            lax.broadcast_in_dim(x, acc.shape, (0, 2)),
            lax.broadcast_in_dim(w, acc.shape, (1, 2)),
            acc,
            signed=signed,
            interpret=interpret,
        )

    acc = lax.fori_loop(0, pl.cdiv(k4, block_k4), accumulate, jnp.zeros((block_m, block_n, block_k4), jnp.int32))
    vectors = [_load(ref, _mask((block_n,), column)) for ref in vector_refs]
    mask = _mask((block_m, block_n), row, column)
    residuals = [_load(residual_refs[0], mask), residual_refs[1][...]] if residual_refs else []
    out = epilogue(jnp.sum(acc, axis=2), *vectors, *residuals, out_dtype=out_ref.dtype, interpret=interpret)
    pltriton.store(out_ref, out, mask=mask)


def _mask(shape: tuple[int, ...], *edges: tuple[jax.Array, int]) -> jax.Array | None:
    """Which elements of a block lie inside the array, from each axis' (start, size of the array); None: all of them."""
    inside = [
        start + lax.broadcasted_iota(jnp.int32, shape, axis) < size
        for axis, (start, size) in enumerate(edges)
        if size % shape[axis]
    ]
    return functools.reduce(operator.and_, inside) if inside else None


def _load(ref: Any, mask: jax.Array | None) -> jax.Array:
    return pltriton.load(ref, mask=mask, other=None if mask is None else jnp.zeros((), ref.dtype))
