"""The matrix product on dp4a, in Triton: made for small M, where the bytes of w count, and for machines before sm_80.

A step reads words of x and of w along K; each thread adds its own words; the threads' sums meet after the last step.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from pallas_kernels import compat, estimate, tiles
from pallas_kernels.dot4 import dot4, pack4
from pallas_kernels.epilogue import Epilogue
from pallas_kernels.matmul import reference, schedule
from pallas_kernels.matmul.config import Dot4Config, dot4_candidates
from pallas_kernels.matmul.schedule import Columns, Schedule
from pallas_kernels.tiles import Edge

_PAIRS = 256  # that dp4a multiplies in a cycle, on a multiprocessor of an H100


def supports(x: Any, w: Any, epilogue: Epilogue | None = None, *, out_dtype: jax.typing.DTypeLike) -> str | None:
    """Why the kernel does not take these (anything with shape and dtype), or None where it does."""
    return reference.supports(x, w, epilogue, out_dtype=out_dtype) or schedule.supports(x, w)


def candidates(
    x: Any, w: Any, epilogue: Epilogue | None = None, *, out_dtype: jax.typing.DTypeLike
) -> tuple[Dot4Config, ...]:
    """Tactics worth timing: distinct, all valid, the default first."""
    return dot4_candidates(math.prod(x.shape[:-2]), x.shape[-2], w.shape[-2], x.shape[-1])


def cycles(config: Dot4Config, x: Any, w: Any, epilogue: Epilogue | None = None) -> float:
    """Estimated cycles of the busiest multiprocessor: those of its multiplications, if all have work."""
    del config, epilogue
    return math.prod(x.shape) * w.shape[-2] / (_PAIRS * compat.core_count()) + estimate.LATENCY


def run(
    x: jax.Array,
    w: jax.Array,
    epilogue: Epilogue | None,
    *,
    out_dtype: jax.typing.DTypeLike,
    offset: jax.Array | None = None,
    config: Dot4Config,
    interpret: bool = False,
) -> jax.Array:
    """`matmul` of non-empty x (batches, M, K) and w (batches, N, K)."""
    del offset  # dp4a takes uint8 as it is
    batches, m, k = x.shape
    plan = Schedule(
        batches,
        m,
        w.shape[1],
        -(-k // 4),
        config.block_m,
        config.block_n,
        config.block_k // 4,
        # Without groups: programs with the same channels run next to one another, and w is read from memory once.
        part=schedule.part_of(x, w, config.block_k, config.splits) // 4,
        group=-(-m // config.block_m),
    )
    accumulate = functools.partial(
        _accumulate, plan=plan, signed=x.dtype == jnp.int8, w_signed=w.dtype == jnp.int8, interpret=interpret
    )
    return schedule.call(
        accumulate,
        pack4(x),
        pack4(w),
        (None, None),
        epilogue,
        plan,
        as_float=reference.is_split(x, w),
        out_dtype=out_dtype,
        compiler_params=pltriton.CompilerParams(num_warps=config.num_warps),
        interpret=interpret,
        name="matmul_dot4",
    )


def _accumulate(
    x: Columns,
    w: Columns,
    extra: Any,
    row: Edge,
    column: Edge,
    steps: tuple[Any, Any],
    *,
    plan: Schedule,
    signed: bool,
    w_signed: bool,
    interpret: bool,
) -> jax.Array:
    del extra
    shape = (plan.block_m, plan.block_n, plan.block_k)

    def step(i: jax.Array, acc: jax.Array) -> jax.Array:
        start = i * plan.block_k
        here, depth = pl.ds(start, plan.block_k), (start, plan.k)
        rows = tiles.load(x(here), tiles.mask((plan.block_m, plan.block_k), row, depth))
        columns = tiles.load(w(here), tiles.mask((plan.block_n, plan.block_k), column, depth))
        return dot4(
            lax.broadcast_in_dim(rows, shape, (0, 2)),
            lax.broadcast_in_dim(columns, shape, (1, 2)),
            acc,
            signed=signed,
            b_signed=w_signed,
            interpret=interpret,
        )

    return jnp.sum(lax.fori_loop(*steps, step, jnp.zeros(shape, jnp.int32)), axis=2)
