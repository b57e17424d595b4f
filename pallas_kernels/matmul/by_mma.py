"""The matrix product on the tensor cores of sm_80 and later, in Triton: tiles of int8, int32 sums.

What Triton makes of it is mma.sync, on sm_90 wgmma for tiles of 64 rows and more, on sm_100 tcgen05.

Both operands have K as their last axis, which is what the s8 instructions read (K-major), and Triton turns the loads of
the one loop into a ring of asynchronous copies (`num_stages`). Those copy 4 to 16 bytes, which must not straddle their
alignment: K that is no multiple of 16 bytes is padded with zeros, one pass over x and w, where byte by byte loads would
neither be asynchronous nor wide, for every tile anew. All other edges are masked.

The grid is persistent where the config says so (`residents`), which saves the start of a program for each tile. It does
not hide a tile's epilogue behind the next tile's loads, as it would by hand: in Triton only the inner of two loops is
pipelined. Of two programs on a multiprocessor, each hides what the other waits for.

The instructions take int8 alone. A uint8 operand less 128 is int8; with x = x' + 128 and w = w' + 128

    x . w = x' . w + 128 sum(w)         x . w = x . w' + 128 sum(x)         x . w = x' . w' + 128 sum(w') + 128 sum(x)

so the accumulator begins with 128 times the other operand's sum. It is exact: on the way the accumulator holds x * w of
the terms that are done and 128 * w, 128 * x or 128 * (w' + x) of those to come, none of them larger than the largest
x * w, so that it fits where the whole sum does. (It must: mma.sync saturates.)

The sums are given, or XLA's, a pass over the other operand; with few rows, where it would count, dp4a takes bytes as
they are.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from pallas_kernels import compat, estimate, shift, tiles
from pallas_kernels.epilogue import Epilogue, require
from pallas_kernels.matmul import reference, schedule
from pallas_kernels.matmul.config import MmaConfig, mma_candidates, mma_cycles
from pallas_kernels.matmul.schedule import Columns, Schedule
from pallas_kernels.tiles import Edge

_COPY = 16  # bytes of the widest asynchronous copy


def supports(x: Any, w: Any, epilogue: Epilogue | None = None, *, out_dtype: jax.typing.DTypeLike) -> str | None:
    """Why the kernel does not take these (anything with shape and dtype), or None where it does."""
    return reference.supports(x, w, epilogue, out_dtype=out_dtype) or schedule.supports(x, w)


def candidates(
    x: Any, w: Any, epilogue: Epilogue | None = None, *, out_dtype: jax.typing.DTypeLike
) -> tuple[MmaConfig, ...]:
    """Tactics worth timing on the GPU in use: distinct, all valid, the default first."""
    has_residual = epilogue is not None and epilogue.residual is not None
    is_shifted = jnp.uint8 in (x.dtype, w.dtype)
    *batch, m, k = x.shape
    return mma_candidates(math.prod(batch), m, w.shape[-2], k, has_residual=has_residual, is_shifted=is_shifted)


def cycles(config: MmaConfig, x: Any, w: Any, epilogue: Epilogue | None = None) -> float:
    """Estimated cycles of the busiest multiprocessor, those of the pass that pads x included."""
    *batch, m, k = x.shape
    padding = estimate.copy(math.prod(x.shape)) if k % _COPY else 0.0
    has_residual = epilogue is not None and epilogue.residual is not None
    return mma_cycles(config, math.prod(batch), m, w.shape[-2], k, has_residual=has_residual) + padding


def run(
    x: jax.Array,
    w: jax.Array,
    epilogue: Epilogue | None,
    *,
    out_dtype: jax.typing.DTypeLike,
    offset: jax.Array | None = None,
    config: MmaConfig,
    interpret: bool = False,
) -> jax.Array:
    """`matmul` of non-empty x (batches, M, K) and w (batches, N, K)."""
    if not interpret:
        require(compat.refuses_shared(config, config.shared_bytes))
    part = schedule.part_of(x, w, config.block_k, config.splits)
    as_float = reference.is_split(x, w)
    x, w = _pad(x), _pad(w)
    batches, m, k = x.shape
    plan = Schedule(
        batches,
        m,
        w.shape[1],
        k,
        config.block_m,
        config.block_n,
        config.block_k,
        part=part,
        group=config.group,
        most_programs=config.residents * compat.core_count() or None,
    )
    # Of (rows, columns): what the shift has taken from their sums, for each part of K.
    of_columns = None
    if x.dtype == jnp.uint8:
        of_columns = _offsets(shift.signed(w), part) if offset is None or plan.parts > 1 else offset[:, None]
    of_rows = _offsets(x, part) if w.dtype == jnp.uint8 else None
    return schedule.call(
        functools.partial(_accumulate, plan=plan),
        x,
        w,
        (of_rows, of_columns),
        epilogue,
        plan,
        as_float=as_float,
        out_dtype=out_dtype,
        compiler_params=pltriton.CompilerParams(num_warps=config.num_warps, num_stages=config.num_stages),
        interpret=interpret,
        name="matmul_mma",
    )


def _pad(v: jax.Array) -> jax.Array:
    missing = -v.shape[-1] % _COPY
    return lax.pad(v, jnp.zeros((), v.dtype), [(0, 0, 0), (0, 0, 0), (0, missing, 0)]) if missing else v


def _offsets(v: jax.Array, part: int) -> jax.Array:
    """`shift.offset` of (batches, rows, K) over each part of K: (batches, parts, rows)."""
    return jnp.stack([shift.offset(v[..., k : k + part], -1) for k in range(0, v.shape[-1], part)], axis=1)


def _accumulate(
    x: Columns,
    w: Columns,
    offsets: tuple[Any, Any],
    row: Edge,
    column: Edge,
    steps: tuple[Any, Any],
    *,
    plan: Schedule,
) -> jax.Array:
    shape = (plan.block_m, plan.block_n)

    def load(at: Columns, i: jax.Array, edge: Edge, block: int) -> jax.Array:
        start = i * plan.block_k
        ref = at(pl.ds(start, plan.block_k))
        inside = tiles.mask((block, plan.block_k), edge, (start, plan.k))
        # What lies outside is 0 after the shift.
        outside = shift.SHIFT if ref.dtype == jnp.uint8 else 0
        return shift.signed(tiles.load(ref, inside, outside))

    def step(i: jax.Array, acc: jax.Array) -> jax.Array:
        rows, columns = load(x, i, row, plan.block_m), load(w, i, column, plan.block_n)
        along_k = (((1,), (1,)), ((), ()))
        return acc + lax.dot_general(rows, columns, along_k, preferred_element_type=jnp.int32)

    acc = jnp.zeros(shape, jnp.int32)
    for axis, (ref, edge) in enumerate(zip(offsets, (row, column), strict=True)):
        if ref is not None:
            offset = tiles.load(ref, tiles.mask(shape[axis : axis + 1], edge))
            acc = acc + lax.broadcast_in_dim(offset, shape, (axis,))
    return lax.fori_loop(*steps, step, acc)
