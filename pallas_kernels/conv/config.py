"""Tactics of the convolutions: tile sizes, number of warps, and which of them to try."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator

from jax.experimental import pallas as pl

from pallas_kernels import compat
from pallas_kernels.conv.window import Geometry

_THREADS_PER_WARP = 32
_MAX_ACCUMULATORS = 128  # a thread
_SHARED_BYTES = 96 * 1024  # of a default: a program fits on sm_86 and sm_89, two on sm_90
_NARROW = 16  # channels of a group below which no copy of 16 bytes is to be had
_CANDIDATES = 12


@dataclasses.dataclass(frozen=True)
class ConvMmaConfig:
    """Tactic of a convolution on the tensor cores.

    Attributes:
      block_m, block_n: tile of a program: output pixels, output channels.
      block_k: bytes of x and of w that a step reads for each of them.
      num_warps: that share a tile.
      num_stages: steps in flight.
      merge_taps: whether the taps of a row of the kernel are read as one; only where the last axis is not dilated.

    Raises:
      ValueError: where a number but num_stages is no power of two, a block is below 16 x 16 x 32 (one instruction), a
        thread would hold more than 128 accumulators, or the stages do not fit into the shared memory of any GPU.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 3
    merge_taps: bool = False

    def __post_init__(self) -> None:
        blocks = (self.block_m, self.block_n, self.block_k)
        if not all(map(_is_power_of_two, (*blocks, self.num_warps))) or any(
            block < least for block, least in zip(blocks, (16, 16, 32), strict=True)
        ):
            raise ValueError(f"{self}: blocks and warps must be powers of two, the blocks at least 16 x 16 x 32")
        if self.num_stages < 1 or self.shared_bytes > compat.MOST_SHARED:
            raise ValueError(f"{self}: there must be a stage, and all of them fit into {compat.MOST_SHARED} bytes")
        _check_accumulators(self, self.block_m * self.block_n)

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory, those of the epilogue left out."""
        return self.num_stages * (self.block_m + self.block_n) * self.block_k


@dataclasses.dataclass(frozen=True)
class ConvChannelConfig:
    """Tactic of a convolution on the CUDA cores.

    Attributes:
      block_m, block_n: tile of a program: output pixels, output channels.
      num_warps: that share a tile.

    Raises:
      ValueError: where a number is no power of two, or a thread would hold more than 128 accumulators.
    """

    block_m: int
    block_n: int
    num_warps: int = 4

    def __post_init__(self) -> None:
        if not all(map(_is_power_of_two, dataclasses.astuple(self))):
            raise ValueError(f"{self}: all numbers must be powers of two")
        _check_accumulators(self, self.block_m * self.block_n)


@dataclasses.dataclass(frozen=True)
class ConvDot4Config:
    """Tactic of a depthwise convolution on dp4a, of channels in fours.

    Attributes:
      block_m, block_n: tile of a program: pixels, channels.
      num_warps: that share a tile.

    Raises:
      ValueError: where a number is no power of two, block_n is below 4, or a thread would hold more than 128
        accumulators.
    """

    block_m: int
    block_n: int
    num_warps: int = 4

    def __post_init__(self) -> None:
        if self.block_n < 4 or not all(map(_is_power_of_two, dataclasses.astuple(self))):
            raise ValueError(f"{self}: all numbers must be powers of two, block_n at least 4")
        _check_accumulators(self, self.block_m * self.block_n)


def mma_candidates(geometry: Geometry, *, has_residual: bool = False) -> tuple[ConvMmaConfig, ...]:
    """Tactics of the tensor cores worth timing: distinct, all valid, the default first; none for narrow groups."""
    if has_narrow_groups(geometry.window.groups, geometry.depth):
        return ()
    return tuple(itertools.islice(dict.fromkeys(_by_mma(geometry, has_residual)), _CANDIDATES))


def dot4_candidates(geometry: Geometry) -> tuple[ConvDot4Config, ...]:
    """Tactics of dp4a worth timing, likewise; none for what it does not take."""
    if not is_in_fours(geometry):
        return ()
    # Under 25 taps, all unrolled, 128 channels have no registers left on sm_90: 16 bytes spill.
    widest = 128 if math.prod(geometry.kernel) <= 16 else 64
    return tuple(ConvDot4Config(*tile) for tile in _tiles_by_channel(geometry) if tile[1] <= widest)


def channel_candidates(geometry: Geometry) -> tuple[ConvChannelConfig, ...]:
    """Tactics of the CUDA cores worth timing, likewise."""
    return tuple(ConvChannelConfig(*tile) for tile in _tiles_by_channel(geometry))


def has_narrow_groups(groups: int, depth: int) -> bool:
    """Whether a group's channels are too few for the tensor cores."""
    return groups > 1 and depth < _NARROW


def can_merge(geometry: Geometry) -> bool:
    """Whether the taps of a row of the kernel can be read as one."""
    return geometry.window.groups == 1 and geometry.window.dilation[-1] == 1 and geometry.kernel[-1] > 1


def is_in_fours(geometry: Geometry) -> bool:
    """Whether it is depthwise, with a filter for each channel and the channels in fours."""
    depthwise = geometry.depth == 1 and geometry.features == geometry.window.groups
    return depthwise and geometry.features % 4 == 0


def _by_mma(geometry: Geometry, has_residual: bool) -> Iterable[ConvMmaConfig]:
    """Each tile in the form that suits it, in the order of estimated times; then the first ones in other forms."""
    columns = geometry.features // geometry.window.groups
    cores = compat.core_count()

    def time(tile: tuple[int, int]) -> int:
        # Rounds of programs over the multiprocessors, times the work of one for a byte of depth. A multiprocessor of an
        # H100 does 4096 multiply-adds a cycle while its L2 cache gives it about 64 bytes: each byte weighs 64.
        block_m, block_n = tile
        programs = pl.cdiv(geometry.rows, block_m) * pl.cdiv(columns, block_n) * geometry.window.groups
        return pl.cdiv(programs, cores) * (block_m * block_n + 64 * (block_m + block_n))

    sizes = (128, 64, 256, 32, 16)
    tiles = [tile for tile in itertools.product(sizes, sizes) if math.prod(tile) <= 128 * 128]
    if (compat.compute_capability() or 0) >= 100:
        # It reads a tile's sums from its tensor memory all at once: of 64 rows, 64 a thread spill 600 bytes.
        tiles = [(block_m, block_n) for block_m, block_n in tiles if block_m != 64 or block_n <= 64]
    ordered = sorted(tiles, key=time)[:8]
    merge = can_merge(geometry) and geometry.depth < _NARROW
    forms = functools.partial(_forms, geometry, has_residual)
    yield from (next(forms(*tile, merge)) for tile in ordered)
    if can_merge(geometry) and geometry.depth < 2 * _NARROW:
        yield from (next(forms(*tile, not merge)) for tile in ordered[:2])
    for tile in ordered[:3]:
        yield from forms(*tile, merge)


def _forms(geometry: Geometry, has_residual: bool, block_m: int, block_n: int, merge: bool) -> Iterator[ConvMmaConfig]:
    """A tile's configs: steps as deep as waste least of the depth, and as many as shared memory holds."""
    depth = geometry.kernel[-1] * (geometry.depth + -geometry.depth % 4) if merge else geometry.depth
    num_warps = 8 if block_m * block_n > 64 * 128 else 4  # 64 accumulators a thread: with 128 an epilogue may spill
    # 8 warps that gather 128 bytes for each pixel have no registers left for a residual: 24 bytes spill on sm_90.
    depths = (64, 32) if has_residual and num_warps == 8 else (128, 64, 32)
    for block_k in sorted(depths, key=lambda block_k: pl.cdiv(depth, block_k) * (block_k + 16)):
        num_stages = min(4, _SHARED_BYTES // ((block_m + block_n) * block_k))
        if num_stages >= 3:
            yield ConvMmaConfig(block_m, block_n, block_k, num_warps, num_stages, merge)


def _tiles_by_channel(geometry: Geometry) -> Iterable[tuple[int, int, int]]:
    """Tiles of 32, 16 and 64 outputs a thread: 16 channels are one load, and the weights serve several pixels."""
    sizes = sorted((64, 32, 128, 16), key=lambda block_n: pl.cdiv(geometry.features, block_n) * (block_n + 16))
    most = pl.next_power_of_2(max(geometry.features, 1))
    tiles: dict[tuple[int, int, int], None] = {}
    for block_n in dict.fromkeys(min(size, most) for size in sizes[:3]):
        for outputs, num_warps in ((32, 4), (16, 4), (64, 4), (32, 8)):
            block_m = outputs * _THREADS_PER_WARP * num_warps // block_n
            tiles[min(block_m, pl.next_power_of_2(max(geometry.rows, 1))), block_n, num_warps] = None
    return tiles


def _is_power_of_two(number: int) -> bool:
    return number > 0 and not number & (number - 1)


def _check_accumulators(config: ConvMmaConfig | ConvChannelConfig | ConvDot4Config, outputs: int) -> None:
    accumulators = pl.cdiv(outputs, _THREADS_PER_WARP * config.num_warps)
    if accumulators > _MAX_ACCUMULATORS:
        raise ValueError(f"{config}: {accumulators} accumulators a thread, at most {_MAX_ACCUMULATORS} fit")
