"""The matrix product on Blackwell's s8 tensor cores: `tma`, where one warp multiplies, by tcgen05, into tensor memory.

One warp of a third warpgroup copies, another one starts the products; tensor memory holds two accumulators, so that the
consumers take one to the output while the other one grows. B300 (sm_103) has no s8 tensor cores.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import compat, estimate
from pallas_kernels.epilogue import Epilogue
from pallas_kernels.matmul import tma, warpgroups
from pallas_kernels.matmul.end import End
from pallas_kernels.matmul.tma import CONSUMERS, DEPTH, SHARED_BYTES, supports
from pallas_kernels.matmul.warpgroups import Grid

__all__ = ["Tcgen05Config", "candidates", "cycles", "run", "supports"]

_TILE_M = 128  # lanes of tensor memory
_ACCUMULATORS = 2
_COPY_WARP, _MULTIPLY_WARP = 0, 1
_MAX_STAGES = 8


@dataclasses.dataclass(frozen=True)
class Tcgen05Config:
    """Tactic of the tcgen05 kernel; a block's tile has 128 rows.

    Attributes:
      tile_n: columns of a tile: 64, 128 or 256.
      stages: depth of the ring in shared memory, in steps of 128 along K.
      group: rows of tiles that are walked through together, so that what they share stays in the L2.

    Raises:
      ValueError: for other numbers, and where the ring does not fit into shared memory.
    """

    tile_n: int
    stages: int
    group: int = 8

    def __post_init__(self) -> None:
        if self.tile_n not in (64, 128, 256) or self.stages < 2 or self.group < 1:
            raise ValueError(f"{self}: tile_n must be 64, 128 or 256, stages at least 2, group at least 1")
        tma.check_ring(self)

    tile_m = _TILE_M
    cluster = 1

    @property
    def consumer_tile(self) -> tuple[int, int]:
        """Rows and columns of one consumer."""
        return _TILE_M, self.tile_n // CONSUMERS

    @property
    def part(self) -> int:
        """Columns of a consumer that are finished and stored at a time: few, which leaves room for a fourth stage."""
        return 32


def candidates(
    x: Any, w: Any, epilogue: Epilogue | None = None, *, out_dtype: jax.typing.DTypeLike
) -> tuple[Tcgen05Config, ...]:
    """Tactics worth timing: distinct, all of them fit into the multiprocessor, the default first."""
    found = []
    for tile_n in (256, 128, 64):
        config = Tcgen05Config(tile_n, 2)
        spare = SHARED_BYTES - tma.shared_bytes(config, epilogue, out_dtype)
        if spare >= 0:
            stages = min(_MAX_STAGES, 2 + spare // ((_TILE_M + tile_n) * DEPTH))
            found.append(dataclasses.replace(config, stages=stages))
    return tuple(sorted(found, key=lambda config: cycles(config, x, w)))


def cycles(config: Tcgen05Config, x: Any, w: Any, epilogue: Epilogue | None = None) -> float:
    """Estimated cycles of the busiest block, the pass over a uint8 x included."""
    del epilogue
    *batch, m, k = x.shape
    blocks = math.prod(batch) * pl.cdiv(m, _TILE_M) * pl.cdiv(w.shape[-2], config.tile_n)
    multiplied = _TILE_M * config.tile_n * DEPTH / estimate.pairs(100)
    loaded = (_TILE_M + config.tile_n) * DEPTH / estimate.L2_BYTES
    product, end = pl.cdiv(k, DEPTH) * max(multiplied, loaded), _TILE_M * config.tile_n / estimate.OUTPUTS
    # A tile is finished while the next one is multiplied; nothing hides the first one's first bytes, nor the last end.
    waves = pl.cdiv(blocks, compat.core_count())
    return waves * max(product, end) + end + estimate.LATENCY + tma.shift_cycles(x)


def run(
    x: jax.Array,
    w: jax.Array,
    epilogue: Epilogue | None,
    *,
    out_dtype: jax.typing.DTypeLike,
    offset: jax.Array | None = None,
    config: Tcgen05Config,
    interpret: bool = False,
) -> jax.Array:
    """`matmul` of arrays that `supports`, as one Mosaic kernel for sm_100."""

    def barriers(slots: int) -> dict[str, Any]:
        return {
            "empty": plgpu.Barrier(num_barriers=slots, orders_tensor_core=True),
            "sums": plgpu.TMEM((_TILE_M, _ACCUMULATORS * config.tile_n), jnp.int32),
            "summed": plgpu.Barrier(num_barriers=_ACCUMULATORS, orders_tensor_core=True),
            "taken": plgpu.Barrier(num_barriers=_ACCUMULATORS, num_arrivals=CONSUMERS, orders_tensor_core=True),
        }

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
        layout=plgpu.Layout.TCGEN05,
        interpret=interpret,
        name="matmul_tcgen05",
    )


def _feed(
    x: Any, w: Any, config: Tcgen05Config, grid: Grid, *, sums: Any, summed: Any, taken: Any, **ring: Any
) -> None:
    @plgpu.warp_map
    def per_warp(warp: Any) -> None:
        @pl.when(warp == _COPY_WARP)
        def copy() -> None:
            tma.produce(x, w, config, grid, **ring)

        @pl.when(warp == _MULTIPLY_WARP)
        def multiply() -> None:
            _multiply(x, config, grid, sums, summed, taken, **ring)


def _multiply(
    x: Any,
    config: Tcgen05Config,
    grid: Grid,
    sums: Any,
    summed: Any,
    taken: Any,
    *,
    x_ring: Any,
    w_ring: Any,
    full: Any,
    empty: Any,
) -> None:
    slots, _, depth = x_ring.shape
    steps = pl.cdiv(x.shape[-1], depth)

    def multiply_tile(tile: Any, b: Any, row: Any, column: Any) -> None:
        which = lax.rem(tile, _ACCUMULATORS)
        acc = sums.at[:, pl.ds(which * config.tile_n, config.tile_n)]

        @pl.when(tile >= _ACCUMULATORS)
        def wait() -> None:
            plgpu.barrier_wait(taken.at[which])

        def step(i: Any, _: None) -> None:
            slot = lax.rem(tile * steps + i, slots)
            plgpu.barrier_wait(full.at[slot])
            operands = x_ring.at[slot], w_ring.at[slot].transpose((1, 0))
            plgpu.tcgen05_mma(acc, *operands, empty.at[slot], accumulate=i > 0)

        lax.fori_loop(0, steps, step, None)
        plgpu.tcgen05_commit_arrive(summed.at[which])

    tma.for_each_tile(config, grid, multiply_tile)
    tiles = tma.tiles_of_block(grid)
    lax.fori_loop(
        lax.max(tiles - _ACCUMULATORS, 0),
        tiles,
        lambda i, _: plgpu.barrier_wait(taken.at[lax.rem(i, _ACCUMULATORS)]),
        None,
    )


def _consume(
    mine: End, x: Any, config: Tcgen05Config, grid: Grid, *, sums: Any, summed: Any, taken: Any, **ring: Any
) -> None:
    del x, ring  # the products are another warp's
    left = mine.me * config.consumer_tile[1]

    def consume_tile(tile: Any, b: Any, row: Any, column: Any) -> None:
        which = lax.rem(tile, _ACCUMULATORS)

        def load(here: slice) -> jax.Array:
            acc = sums.at[:, pl.ds(which * config.tile_n + left + here.start, here.stop - here.start)]
            return plgpu.async_load_tmem(acc)

        mine.fetch(b, row, column + left)
        plgpu.barrier_wait(summed.at[which])
        mine.store(load, b, row, column + left)
        plgpu.wait_load_tmem()
        plgpu.barrier_arrive(taken.at[which])

    tma.for_each_tile(config, grid, consume_tile)
    plgpu.wait_smem_to_gmem(0)
