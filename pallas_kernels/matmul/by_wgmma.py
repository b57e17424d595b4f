"""The matrix product on Hopper's s8 tensor cores: `tma`, where the consumers multiply, by wgmma.

The blocks of a cluster stack their tiles along M and share w: each reads half of its tile and sends it to both. (At
full speed a tile of 128 x 256 takes in 48 KB in 1024 cycles, more than the L2 gives to all multiprocessors at once; in
a cluster, 32 KB.)
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.epilogue import Epilogue
from pallas_kernels.matmul import tma, warpgroups
from pallas_kernels.matmul.end import End
from pallas_kernels.matmul.tma import CONSUMERS, supports
from pallas_kernels.matmul.warpgroups import Grid
from pallas_kernels.matmul.wgmma_config import WgmmaConfig, candidates, cycles

__all__ = ["WgmmaConfig", "candidates", "cycles", "run", "supports"]

# Of a thread; the three warpgroups share 65,536.
_PRODUCER_REGISTERS = 40
_CONSUMER_REGISTERS = 232


def run(
    x: jax.Array,
    w: jax.Array,
    epilogue: Epilogue | None,
    *,
    out_dtype: jax.typing.DTypeLike,
    offset: jax.Array | None = None,
    config: WgmmaConfig,
    interpret: bool = False,
) -> jax.Array:
    """`matmul` of arrays that `supports`, as one Mosaic kernel for sm_90."""

    def barriers(slots: int) -> dict[str, Any]:
        if config.cluster == 1:
            return {"empty": plgpu.Barrier(num_barriers=slots, num_arrivals=CONSUMERS)}
        of_cluster = plgpu.ClusterBarrier(collective_axes=("cluster",), num_barriers=slots, num_arrivals=CONSUMERS)
        return {"empty": of_cluster}

    return warpgroups.launch(
        _feed,
        _consume,
        barriers,
        x,
        w,
        epilogue,
        out_dtype=out_dtype,
        offset=offset,
        config=config,
        layout=plgpu.Layout.WGMMA,
        interpret=interpret,
        name="matmul_wgmma",
    )


def _feed(x: Any, w: Any, config: WgmmaConfig, grid: Grid, **ring: Any) -> None:
    plgpu.set_max_registers(_PRODUCER_REGISTERS, action="decrease")
    tma.produce(x, w, config, grid, **ring)


def _consume(
    mine: End, x: Any, config: WgmmaConfig, grid: Grid, *, x_ring: Any, w_ring: Any, full: Any, empty: Any
) -> None:
    plgpu.set_max_registers(_CONSUMER_REGISTERS, action="increase")
    slots, _, depth = x_ring.shape
    steps = pl.cdiv(x.shape[-1], depth)
    rows, columns = config.consumer_tile
    top, left = (mine.me * rows, 0) if config.tile_m > 64 else (0, mine.me * columns)

    def multiply(tile: Any, acc: Any) -> jax.Array:
        def step(i: Any, _: None) -> None:
            slot = lax.rem(tile * steps + i, slots)
            plgpu.barrier_wait(full.at[slot])
            operands = x_ring.at[slot, pl.ds(top, rows)], w_ring.at[slot, pl.ds(left, columns)].transpose((1, 0))
            plgpu.wgmma(acc, *operands)
            plgpu.wgmma_wait(1)  # all but this one are done

            @pl.when(i > 0)
            def give_back() -> None:
                plgpu.barrier_arrive(empty.at[lax.rem(tile * steps + i + slots - 1, slots)])

        lax.fori_loop(0, steps, step, None)
        product = acc[...]
        plgpu.barrier_arrive(empty.at[lax.rem(tile * steps + steps - 1, slots)])
        return product

    def consume_tile(tile: Any, b: Any, row: Any, column: Any) -> None:
        mine.fetch(b, row + top, column + left)
        acc = pl.run_scoped(functools.partial(multiply, tile), plgpu.ACC((rows, columns), jnp.int32))
        mine.store(lambda here: acc[:, here], b, row + top, column + left)

    tma.for_each_tile(config, grid, consume_tile)
    plgpu.wait_smem_to_gmem(0)
