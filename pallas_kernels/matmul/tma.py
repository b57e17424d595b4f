"""What the two kernels share whose tensor cores read shared memory that the TMA fills: wgmma (sm_90), tcgen05 (sm_100).

A block walks over tiles of the output. For each, one producer copies tiles of x and w, a step along K at a time, into a
ring of slots in shared memory, tensor cores multiply what is in them, and two warpgroups, the consumers, take the sums
to the output (`warpgroups`, `end`). A slot is full when its bytes have landed, and empty when it has been read. The TMA
reads zeros beyond an array's edge and writes nothing there: no edge needs a mask.

The tensor cores take uint8, but Mosaic does not: x - 128 is int8, a pass over x that XLA may fuse into what made it,
and 128 * sum(w) is added to the accumulator.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import estimate
from pallas_kernels.epilogue import Epilogue
from pallas_kernels.matmul import reference

CONSUMERS = 2
DEPTH = 128  # bytes of K in a stage: the widest swizzle
SHARED_BYTES = 232_448 - 2_048  # of a block; the rest is for barriers and alignment


class Tiles(Protocol):
    """What the kernels' configs have in common: the tile of a block, and how it is come by."""

    @property
    def tile_m(self) -> int: ...
    @property
    def tile_n(self) -> int: ...
    @property
    def stages(self) -> int: ...
    @property
    def cluster(self) -> int: ...
    @property
    def group(self) -> int: ...
    @property
    def consumer_tile(self) -> tuple[int, int]: ...
    @property
    def part(self) -> int: ...


def supports(x: Any, w: Any, epilogue: Epilogue | None = None, *, out_dtype: jax.typing.DTypeLike) -> str | None:
    """Why the kernels do not take these (anything with shape and dtype), or None where they do.

    An array's edge may cut a tile of the TMA's, but not one of the swizzle's within it, 8 rows of 32 to 128 bytes.
    """
    reason = reference.supports(x, w, epilogue, out_dtype=out_dtype)
    if reason is not None:
        return reason
    m, k, n = x.shape[-2], x.shape[-1], w.shape[-2]
    sizes = [jnp.dtype(out_dtype).itemsize]
    if epilogue is not None and epilogue.residual is not None:
        sizes.append(jnp.dtype(epilogue.residual.dtype).itemsize)
    if not hasattr(plgpu, "InterpretGPUParams"):
        return f"Mosaic kernels need jax 0.11, not {jax.__version__}"
    if 0 in (*x.shape, n):
        return "there is nothing to multiply"
    if epilogue is not None and epilogue.row_scale is not None:
        return "Mosaic kernels have no scales of rows"
    if jnp.dtype(w.dtype) != jnp.int8:
        return f"Mosaic kernels take w in int8, not {jnp.dtype(w.dtype).name}"
    if reference.is_split(x, w):
        return f"Mosaic kernels do not split K = {k}"
    if k % 16 or (k > DEPTH and k % 32):
        return f"the TMA takes K in multiples of 32, or of 16 up to {DEPTH}, not {k}"
    if any(size > 8 and size % 8 for size in (m, n)):
        return f"the TMA takes M and N in multiples of 8, or up to 8, not {m} and {n}"
    if any(n * size % 32 and n * size != 16 for size in sizes):
        return f"the TMA takes outputs and residuals whose rows are multiples of 32 bytes, not {n} columns"
    if epilogue is not None and epilogue.table is not None:
        return "Mosaic kernels have no table: they cannot gather from memory"
    return None


def shift_cycles(x: Any) -> float:
    """Estimated cycles of the pass that makes a uint8 x int8."""
    return 0.0 if jnp.dtype(x.dtype) == jnp.int8 else estimate.copy(math.prod(x.shape))


def check_ring(config: Tiles) -> None:
    """Raises ValueError where the ring alone does not fit into shared memory."""
    ring = config.stages * (config.tile_m + config.tile_n) * DEPTH
    if ring > SHARED_BYTES:
        raise ValueError(f"{config}: the ring of {ring} bytes must fit into {SHARED_BYTES} of shared memory")


def shared_bytes(config: Tiles, epilogue: Epilogue | None, out_dtype: jax.typing.DTypeLike) -> int:
    """Shared memory of a block at most, without barriers."""
    rows, columns = config.consumer_tile
    itemsize = jnp.dtype(out_dtype).itemsize
    if epilogue is not None and epilogue.residual is not None:
        itemsize += jnp.dtype(epilogue.residual.dtype).itemsize
    edges = CONSUMERS * (2 * rows * config.part * itemsize + 5 * columns * 4)
    return config.stages * (config.tile_m + config.tile_n) * DEPTH + edges


def swizzle(columns: int, size: int, itemsize: int) -> tuple[Any, ...]:
    """How (rows, columns) of an array with `size` columns lie in shared memory, so that the 8 rows that are accessed at
    once lie in different banks: as tiles of 8 rows, the widest that the array's edge does not cut."""
    for width in (128, 64, 32):
        tile = width // itemsize
        if columns % tile == 0 and (size <= tile or size % tile == 0):
            return plgpu.TilingTransform((8, tile)), plgpu.SwizzleTransform(width)
    raise ValueError(f"an array with {size} columns of {itemsize} bytes cuts every tile")


def depth_of(k: int) -> int:
    """Bytes of K in a slot of the ring: no tile of the swizzle's may be cut, and of one step as few as hold K."""
    if k <= DEPTH:
        return next(depth for depth in (32, 64, 128) if depth >= k)
    return next(depth for depth in (128, 64, 32) if k % depth == 0)


def ring(config: Tiles, k: int) -> dict[str, Any]:
    """The slots, and the barriers of those that are full; a stage is several slots where 128 does not divide K."""
    depth = depth_of(k)
    slots = config.stages * (DEPTH // depth)
    transforms = swizzle(depth, k, 1)
    return {
        "x_ring": plgpu.SMEM((slots, config.tile_m, depth), jnp.int8, transforms=transforms),
        "w_ring": plgpu.SMEM((slots, config.tile_n, depth), jnp.int8, transforms=transforms),
        "full": plgpu.Barrier(num_barriers=slots, num_arrivals=2),
    }


def for_each_tile(config: Tiles, grid: tuple[int, int, int], body: Callable[[Any, Any, Any, Any], None]) -> None:
    """Calls body(number of the tile among this block's, batch, first row, first column)."""
    batch, m_tiles, n_tiles = grid

    @plgpu.nd_loop((batch * m_tiles * n_tiles,), collective_axes="clusters")
    def call(loop: Any) -> None:
        b, tile = lax.div(loop.index[0], m_tiles * n_tiles), lax.rem(loop.index[0], m_tiles * n_tiles)
        i, j = plgpu.planar_snake(tile, (m_tiles, n_tiles), 0, config.group)
        row = (i * config.cluster + lax.axis_index("cluster")) * config.tile_m
        body(loop.local_index, b, row, j * config.tile_n)


def produce(
    x: Any,
    w: Any,
    config: Tiles,
    grid: tuple[int, int, int],
    *,
    x_ring: Any,
    w_ring: Any,
    full: Any,
    empty: Any,
) -> None:
    """The producer: keeps the ring full. In a cluster it sends its share of w's tile to all blocks."""
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

    for_each_tile(config, grid, produce_tile)
    # A block stays until all that it was sent has been read.
    sent = tiles_of_block(grid) * steps
    lax.fori_loop(lax.max(sent - slots, 0), sent, lambda i, _: plgpu.barrier_wait(empty.at[lax.rem(i, slots)]), None)


def tiles_of_block(grid: tuple[int, int, int]) -> Any:
    """How many tiles this block walks over."""
    return pl.cdiv(grid[0] * grid[1] * grid[2] - lax.axis_index("clusters"), lax.axis_size("clusters"))
