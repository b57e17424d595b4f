"""The matrix product on Hopper's s8 tensor cores (wgmma), fed by TMA: a producer and two consumers, a persistent grid.

A warpgroup copies tiles of x and w into a ring of slots in shared memory, two warpgroups multiply what is in them. A
slot is full when its bytes have landed, and empty when the consumers of every block that shares it have read it. The
blocks of a cluster stack their tiles along M and share w: each reads half of its tile and sends it to both. (At full
speed a tile of 128 x 256 takes in 48 KB in 1024 cycles, more than the L2 gives to all multiprocessors at once; in a
cluster, 32 KB.) TMA reads zeros beyond an array's edge and writes nothing there: no edge needs a mask.

The tensor cores take uint8, but Mosaic does not: x - 128 is int8, a pass over x that XLA may fuse into what made it,
and 128 * sum(w) is added to the accumulator.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import compat, mosaic
from pallas_kernels.epilogue import Epilogue
from pallas_kernels.matmul import wgmma_end
from pallas_kernels.matmul.wgmma_config import CONSUMERS, DEPTH, WgmmaConfig
from pallas_kernels.matmul.wgmma_end import End, swizzle

# Of a thread; the three warpgroups share 65,536.
_PRODUCER_REGISTERS = 40
_CONSUMER_REGISTERS = 232


def matmul_by_wgmma(
    x: jax.Array,
    w: jax.Array,
    epilogue: Epilogue | None,
    *,
    out_dtype: jax.typing.DTypeLike,
    config: WgmmaConfig,
    interpret: bool = False,
) -> jax.Array:
    """`matmul` of arrays that `wgmma_config.supports`, as one Mosaic kernel for sm_90."""
    *batch, m, k = x.shape
    n = w.shape[-2]
    x, w = x.reshape(-1, m, k), w.reshape(-1, n, k)
    if epilogue is not None and epilogue.residual is not None:
        epilogue = dataclasses.replace(
            epilogue,
            residual=epilogue.residual.reshape(-1, m, n),
            residual_multiplier=epilogue.residual_multiplier.reshape(1),
        )
    offset = None
    if x.dtype == jnp.uint8:
        x = lax.bitcast_convert_type(x ^ jnp.uint8(128), jnp.int8)
        offset = 128 * jnp.sum(w, axis=-1, dtype=jnp.int32)
    grid = (x.shape[0], pl.cdiv(m, config.tile_m * config.cluster), pl.cdiv(n, config.tile_n))
    tiles = grid[0] * grid[1] * grid[2]
    out = plgpu.kernel(
        functools.partial(_kernel, config=config, grid=grid, interpret=interpret),
        out_type=jax.ShapeDtypeStruct((x.shape[0], m, n), out_dtype),
        scratch_types=_scratch(config, n, k, epilogue, offset, out_dtype),
        grid=(min(compat.core_count() // config.cluster, tiles),),
        grid_names=("clusters",),
        cluster=(config.cluster,),
        cluster_names=("cluster",),
        num_threads=CONSUMERS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=mosaic.interpreter() if interpret else None,
        kernel_name="matmul_wgmma",
    )(x, w, epilogue, offset)
    return out.reshape(*batch, m, n)


def _scratch(
    config: WgmmaConfig, n: int, k: int, epilogue: Epilogue | None, offset: Any, out_dtype: jax.typing.DTypeLike
) -> dict[str, Any]:
    """The ring of a block and its barriers. (Those of the epilogue: see wgmma_end.)"""
    depth = _depth(k)
    slots = config.stages * (DEPTH // depth)
    empty: Any = plgpu.Barrier(num_barriers=slots, num_arrivals=CONSUMERS)
    if config.cluster > 1:
        empty = plgpu.ClusterBarrier(collective_axes=("cluster",), num_barriers=slots, num_arrivals=CONSUMERS)
    return {
        "x_ring": plgpu.SMEM((slots, config.tile_m, depth), jnp.int8, transforms=swizzle(depth, k, 1)),
        "w_ring": plgpu.SMEM((slots, config.tile_n, depth), jnp.int8, transforms=swizzle(depth, k, 1)),
        "full": plgpu.Barrier(num_barriers=slots, num_arrivals=2),
        "empty": empty,
        "end": wgmma_end.scratch(config, n, epilogue, offset, out_dtype),
    }


def _depth(k: int) -> int:
    """Bytes of K in a slot: no row of the swizzle's may be cut."""
    return DEPTH if k <= DEPTH else next(depth for depth in (128, 64, 32) if k % depth == 0)


def _kernel(
    x: Any,
    w: Any,
    epilogue: Epilogue | None,
    offset: Any,
    out: Any,
    *,
    config: WgmmaConfig,
    grid: tuple[int, int, int],
    interpret: bool,
    end: dict[str, Any],
    **ring: Any,
) -> None:
    warpgroup = lax.axis_index("warpgroup")

    def consume() -> None:
        _consume(End(config, warpgroup, epilogue, offset, out, interpret=interpret, **end), x, config, grid, **ring)

    lax.cond(warpgroup == CONSUMERS, lambda: _produce(x, w, config, grid, **ring), consume)


def _for_each_tile(config: WgmmaConfig, grid: tuple[int, int, int], body: Callable[[Any, Any, Any, Any], None]) -> None:
    """Calls body(number of the tile among this block's, batch, first row, first column)."""
    batch, m_tiles, n_tiles = grid

    @plgpu.nd_loop((batch * m_tiles * n_tiles,), collective_axes="clusters")
    def call(loop: Any) -> None:
        b, tile = lax.div(loop.index[0], m_tiles * n_tiles), lax.rem(loop.index[0], m_tiles * n_tiles)
        i, j = plgpu.planar_snake(tile, (m_tiles, n_tiles), 0, config.group)
        row = (i * config.cluster + lax.axis_index("cluster")) * config.tile_m
        body(loop.local_index, b, row, j * config.tile_n)


def _produce(
    x: Any, w: Any, config: WgmmaConfig, grid: tuple[int, int, int], *, x_ring: Any, w_ring: Any, full: Any, empty: Any
) -> None:
    plgpu.set_max_registers(_PRODUCER_REGISTERS, action="decrease")
    slots, _, depth = x_ring.shape
    steps = pl.cdiv(x.shape[-1], depth)
    shared = "cluster" if config.cluster > 1 else None

    def produce_tile(tile: Any, b: Any, row: Any, column: Any) -> None:
        def load(i: Any, _: None) -> None:
            step = tile * steps + i
            slot = lax.rem(step, slots)

            @pl.when(step >= slots)
            def wait() -> None:
                plgpu.barrier_wait(empty.at[slot])

            here = pl.ds(i * depth, depth)
            x_tile, w_tile = x.at[b, pl.ds(row, config.tile_m), here], w.at[b, pl.ds(column, config.tile_n), here]
            plgpu.copy_gmem_to_smem(x_tile, x_ring.at[slot], full.at[slot])
            plgpu.copy_gmem_to_smem(w_tile, w_ring.at[slot], full.at[slot], collective_axes=shared)

        lax.fori_loop(0, steps, load, None)

    _for_each_tile(config, grid, produce_tile)
    # A block of a cluster stays until nobody sends to it.
    tiles = pl.cdiv(grid[0] * grid[1] * grid[2] - lax.axis_index("clusters"), lax.axis_size("clusters"))
    sent = tiles * steps
    lax.fori_loop(lax.max(sent - slots, 0), sent, lambda i, _: plgpu.barrier_wait(empty.at[lax.rem(i, slots)]), None)


def _consume(
    end: End,
    x: Any,
    config: WgmmaConfig,
    grid: tuple[int, int, int],
    *,
    x_ring: Any,
    w_ring: Any,
    full: Any,
    empty: Any,
) -> None:
    plgpu.set_max_registers(_CONSUMER_REGISTERS, action="increase")
    slots, _, depth = x_ring.shape
    steps = pl.cdiv(x.shape[-1], depth)
    rows, columns = config.consumer_tile
    warpgroup = lax.axis_index("warpgroup")
    top, left = (warpgroup * rows, 0) if config.tile_m > 64 else (0, warpgroup * columns)

    def multiply(tile: Any, acc: Any) -> jax.Array:
        def step(i: Any, _: None) -> None:
            slot = lax.rem(tile * steps + i, slots)
            plgpu.barrier_wait(full.at[slot])
            mine = x_ring.at[slot, pl.ds(top, rows)], w_ring.at[slot, pl.ds(left, columns)].transpose((1, 0))
            plgpu.wgmma(acc, *mine)
            plgpu.wgmma_wait(1)  # all but this one are done

            @pl.when(i > 0)
            def give_back() -> None:
                plgpu.barrier_arrive(empty.at[lax.rem(tile * steps + i + slots - 1, slots)])

        lax.fori_loop(0, steps, step, None)
        product = acc[...]
        plgpu.barrier_arrive(empty.at[lax.rem(tile * steps + steps - 1, slots)])
        return product

    def consume_tile(tile: Any, b: Any, row: Any, column: Any) -> None:
        end.fetch(b, row + top, column + left)
        acc = pl.run_scoped(functools.partial(multiply, tile), plgpu.ACC((rows, columns), jnp.int32))
        end.store(acc, b, row + top, column + left)

    _for_each_tile(config, grid, consume_tile)
    plgpu.wait_smem_to_gmem(0)
