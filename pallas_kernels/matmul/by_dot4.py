"""The matrix product on dp4a: made for small M, where the bytes of w count, and for machines before sm_80."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from pallas_kernels import tiles
from pallas_kernels.dot4 import dot4, pack4
from pallas_kernels.epilogue import Epilogue
from pallas_kernels.matmul.config import Config


def matmul_by_dot4(
    x: jax.Array,
    w: jax.Array,
    epilogue: Epilogue | None,
    *,
    out_dtype: jax.typing.DTypeLike,
    config: Config,
    interpret: bool = False,
) -> jax.Array:
    """`matmul` of non-empty matrices x (M, K) and w (N, K), as one Triton kernel."""
    (m, k), n = x.shape, w.shape[0]
    row_tile = pl.BlockSpec((config.block_m, -(-k // 4)), lambda i, j: (i, 0))
    column_tile = pl.BlockSpec((config.block_n, -(-k // 4)), lambda i, j: (j, 0))
    channel_tile = pl.BlockSpec((config.block_n,), lambda i, j: (j,))
    out_tile = pl.BlockSpec((config.block_m, config.block_n), lambda i, j: (i, j))
    return pl.pallas_call(
        functools.partial(_kernel, config=config, m=m, n=n, signed=x.dtype == jnp.int8, interpret=interpret),
        # Programs with the same channels run next to one another: w is read from memory once.
        grid=(pl.cdiv(m, config.block_m), pl.cdiv(n, config.block_n)),
        in_specs=(row_tile, column_tile, tiles.epilogue_specs(epilogue, out_tile, channel_tile)),
        out_specs=out_tile,
        out_shape=jax.ShapeDtypeStruct((m, n), out_dtype, manual_axis_type=jax.typeof(x).manual_axis_type),
        compiler_params=pltriton.CompilerParams(num_warps=config.num_warps),
        interpret=interpret,
        name="matmul_dot4",
    )(pack4(x), pack4(w), epilogue)


def _kernel(
    x_ref: Any,
    w_ref: Any,
    epilogue: Epilogue | None,
    out_ref: Any,
    *,
    config: Config,
    m: int,
    n: int,
    signed: bool,
    interpret: bool,
) -> None:
    k4 = x_ref.shape[1]
    block_m, block_n, block_k4 = config.block_m, config.block_n, config.block_k // 4
    row, column = (pl.program_id(0) * block_m, m), (pl.program_id(1) * block_n, n)

    def accumulate(i: jax.Array, acc: jax.Array) -> jax.Array:
        columns = pl.ds(i * block_k4, block_k4)
        depth = (i * block_k4, k4)
        x = tiles.load(x_ref.at[:, columns], tiles.mask((block_m, block_k4), row, depth))
        w = tiles.load(w_ref.at[:, columns], tiles.mask((block_n, block_k4), column, depth))
        return dot4(
            lax.broadcast_in_dim(x, acc.shape, (0, 2)),
            lax.broadcast_in_dim(w, acc.shape, (1, 2)),
            acc,
            signed=signed,
            interpret=interpret,
        )

    acc = lax.fori_loop(0, pl.cdiv(k4, block_k4), accumulate, jnp.zeros((block_m, block_n, block_k4), jnp.int32))
    tiles.store(jnp.sum(acc, axis=2), epilogue, out_ref, row, column, interpret=interpret)
