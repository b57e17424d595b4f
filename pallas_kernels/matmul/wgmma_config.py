"""Tactics of the wgmma kernel: its tile sizes, and which of them to try."""

import dataclasses
import math
from typing import Any

import jax
from jax.experimental import pallas as pl

from pallas_kernels import compat, estimate
from pallas_kernels.epilogue import Epilogue
from pallas_kernels.matmul.tma import CONSUMERS, DEPTH, SHARED_BYTES, check_ring, shared_bytes, shift_cycles

_MAX_ACCUMULATORS = 128  # a thread of a consumer, which has 232 registers
_MAX_STAGES = 8
_TILES = (
    *((128, 256), (128, 192), (128, 160), (128, 128), (128, 96), (128, 64)),
    *((256, 128), (256, 64), (64, 256), (64, 128), (64, 64)),
)


@dataclasses.dataclass(frozen=True)
class WgmmaConfig:
    """Tactic of the wgmma kernel.

    Attributes:
      tile_m, tile_n: the tile of a block. Its two consumers divide tile_m, or tile_n where tile_m is 64.
      stages: depth of the ring in shared memory, in steps of 128 along K.
      cluster: blocks (1 or 2) along M that share the tiles of w.
      group: rows of tiles that are walked through together, so that what they share stays in the L2.

    Raises:
      ValueError: where the tensor cores have no such tile, the consumers no registers for it, or a multiprocessor no
        shared memory for the ring.
    """

    tile_m: int
    tile_n: int
    stages: int
    cluster: int = 1
    group: int = 8

    def __post_init__(self) -> None:
        rows, columns = self.consumer_tile
        if self.tile_m not in (64, 128, 256) or self.tile_n % CONSUMERS or columns % 32 or not 0 < columns <= 256:
            raise ValueError(
                f"{self}: tile_m must be 64, 128 or 256, and a consumer's columns a multiple of 32 up to 256"
            )
        if rows * columns > _MAX_ACCUMULATORS * 128:
            raise ValueError(f"{self}: a consumer holds at most 64 x 256 or 128 x 128 accumulators")
        if self.stages < 2 or self.cluster not in (1, 2) or self.group < 1:
            raise ValueError(f"{self}: stages must be at least 2, cluster 1 or 2, group at least 1")
        check_ring(self)

    @property
    def consumer_tile(self) -> tuple[int, int]:
        """Rows and columns of one consumer."""
        return (64, self.tile_n // CONSUMERS) if self.tile_m == 64 else (self.tile_m // CONSUMERS, self.tile_n)

    @property
    def part(self) -> int:
        """Columns of a consumer that are finished and stored at a time: at most 32 outputs a thread, as with 64 of them
        a uint8 x and a residual spill, and the fourth stage of 256 x 128 does not fit."""
        rows, columns = self.consumer_tile
        return 64 if rows == 64 and columns % 64 == 0 else 32


def candidates(
    x: Any, w: Any, epilogue: Epilogue | None = None, *, out_dtype: jax.typing.DTypeLike
) -> tuple[WgmmaConfig, ...]:
    """Tactics worth timing: distinct, all of them fit into the multiprocessor, the default first."""
    m, n, cores = x.shape[-2], w.shape[-2], compat.core_count()
    found = []
    for tile_m, tile_n in _TILES:
        for cluster in (1, 2):
            if (
                (tile_m > 64 and tile_m // 2 >= m)
                or (tile_n > 64 and tile_n // 2 >= n)
                or (cluster == 2 and tile_m >= m)
            ):
                continue  # half of it would do
            # The blocks that run at once cover about as many rows as columns.
            rows = math.isqrt(cores * tile_m * tile_n)
            config = WgmmaConfig(tile_m, tile_n, 2, cluster, max(1, rows // (tile_m * cluster)))
            spare = SHARED_BYTES - shared_bytes(config, epilogue, out_dtype)
            if spare >= 0:
                stages = min(_MAX_STAGES, 2 + spare // ((tile_m + tile_n) * DEPTH))
                found.append(dataclasses.replace(config, stages=stages))
    found.sort(key=lambda config: cycles(config, x, w))
    return tuple(found[:8])


def cycles(config: WgmmaConfig, x: Any, w: Any, epilogue: Epilogue | None = None) -> float:
    """Estimated cycles of the busiest block, the pass over a uint8 x included."""
    del epilogue
    *batch, m, k = x.shape
    blocks = math.prod(batch) * pl.cdiv(m, config.tile_m * config.cluster) * pl.cdiv(w.shape[-2], config.tile_n)
    waves = pl.cdiv(blocks, compat.core_count() // config.cluster)
    multiplied = config.tile_m * config.tile_n * DEPTH / estimate.pairs(90)
    loaded = (config.tile_m + config.tile_n / config.cluster) * DEPTH / estimate.L2_BYTES
    # The consumers, which multiply, finish a tile, too, while the ring fills with the next one's bytes.
    tile = pl.cdiv(k, DEPTH) * max(multiplied, loaded) + config.tile_m * config.tile_n / estimate.OUTPUTS
    return waves * tile + estimate.LATENCY + shift_cycles(x)
