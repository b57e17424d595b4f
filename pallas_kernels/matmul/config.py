"""Tactics of the Triton kernels: tile sizes, warps, stages, shares of K, and which of them to try."""

import dataclasses
import math

from jax.experimental import pallas as pl

from pallas_kernels import compat, estimate
from pallas_kernels.matmul.reference import PART

_WARP = 32
_COPY = 16  # bytes of an asynchronous copy
_MOST_ACCUMULATORS = 128  # a thread: dp4a spills here already (16 bytes, sm_90), the tensor cores do not
_GOOD_ACCUMULATORS = 32  # with what is loaded, up to 96 registers: no spills, and several programs fit
_MOST_SPLITS = 64
_MOST_RESIDENTS = 32  # blocks of a multiprocessor

_FEW_ROWS_PAIRS = 2048  # a cycle at most, in tiles of less than 64 rows: without wgmma or tcgen05


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


def _are_powers_of_two(*numbers: int) -> bool:
    return all(number > 0 and not number & (number - 1) for number in numbers)


@dataclasses.dataclass(frozen=True)
class Dot4Config:
    """Tactic of the dp4a kernel: the tile of one program, counted in 8-bit elements, and the warps that share it.

    There is no number of stages: Triton pipelines only loads that feed tensor cores, so the PTX would not change.

    Attributes:
      splits: shares of K, of as many programs; not used where K must be split for int32's sake.

    Raises:
      ValueError: where a block or num_warps is no power of two, block_k is not in [4, 32768], a thread would hold more
        than 128 accumulators (block_m * block_n * (block_k / 4) / (32 * num_warps)), or splits is not in [1, 64].
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    splits: int = 1

    def __post_init__(self) -> None:
        blocks = self.block_m, self.block_n, self.block_k, self.num_warps
        _require(
            _are_powers_of_two(*blocks) and 4 <= self.block_k <= PART,
            f"{self}: blocks and num_warps must be powers of two, block_k in [4, {PART}]",
        )
        _require(
            self.accumulators <= _MOST_ACCUMULATORS,
            f"{self}: {self.accumulators} accumulators a thread, at most {_MOST_ACCUMULATORS} fit",
        )
        _require(0 < self.splits <= _MOST_SPLITS, f"{self}: splits must be in [1, {_MOST_SPLITS}]")

    @property
    def accumulators(self) -> int:
        """Accumulators a thread."""
        return pl.cdiv(self.block_m * self.block_n * self.block_k // 4, _WARP * self.num_warps)


@dataclasses.dataclass(frozen=True)
class MmaConfig:
    """Tactic of the tensor core kernel: the tile of one program, the warps that share it, and its ring of loads.

    Attributes:
      block_m, block_n: the tile.
      block_k: bytes of K in a step.
      num_stages: steps in shared memory at a time.
      group: tiles of rows that are walked through together, so that what they share stays in the L2.
      splits: shares of K, of as many programs; not used where K must be split for int32's sake.
      residents: programs for each multiprocessor, that walk over the tiles (a persistent grid); 0: one for each tile.

    Raises:
      ValueError: where a block or num_warps is no power of two, the tensor cores have no such tile (at least 16 x 16 x
        32), a thread would hold more than 128 accumulators, the ring does not fit into 227 KB, or another number is out
        of range.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 3
    group: int = 8
    splits: int = 1
    residents: int = 0

    def __post_init__(self) -> None:
        _require(
            _are_powers_of_two(self.block_m, self.block_n, self.block_k, self.num_warps),
            f"{self}: blocks and num_warps must be powers of two",
        )
        _require(
            min(self.block_m, self.block_n) >= 16 and 32 <= self.block_k <= PART,
            f"{self}: block_m and block_n must be at least 16, block_k in [32, {PART}]",
        )
        _require(
            self.accumulators <= _MOST_ACCUMULATORS,
            f"{self}: {self.accumulators} accumulators a thread, at most {_MOST_ACCUMULATORS} fit",
        )
        _require(
            self.num_stages > 0 and self.shared_bytes <= compat.MOST_SHARED,
            f"{self}: num_stages must be at least 1, and the ring of {self.shared_bytes} bytes fit into shared memory",
        )
        _require(
            self.group > 0 and 0 < self.splits <= _MOST_SPLITS and 0 <= self.residents <= _MOST_RESIDENTS,
            f"{self}: group must be at least 1, splits in [1, {_MOST_SPLITS}], residents in [0, {_MOST_RESIDENTS}]",
        )

    @property
    def accumulators(self) -> int:
        """Accumulators a thread."""
        return pl.cdiv(self.block_m * self.block_n, _WARP * self.num_warps)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of the ring."""
        return (self.block_m + self.block_n) * self.block_k * self.num_stages


def dot4_candidates(batches: int, m: int, n: int, k: int) -> tuple[Dot4Config, ...]:
    """Tactics worth timing for x (batches, m, k) and w (batches, n, k), sizes from 0: distinct, the default first.

    Up to 8 rows w is read once and its bytes decide: few channels a program, so that all multiprocessors have work, and
    much of K, so that many loads are in flight. Beyond 8 rows, square tiles use each loaded byte more often.
    """
    few = ((8, 8, 1024), (8, 4, 2048), (8, 16, 512), (8, 32, 256))
    many = ((32, 32, 128), (16, 32, 128), (8, 32, 256), (64, 32, 64))
    found = [
        _fit_dot4(m, n, k, *blocks, num_warps=num_warps) for blocks in (few if m <= 8 else many) for num_warps in (8, 4)
    ]
    split = [dataclasses.replace(c, splits=_dot4_splits(c, batches, m, n, k)) for c in found]
    return tuple(dict.fromkeys((split[0], *split, *found)))


def _dot4_splits(config: Dot4Config, batches: int, m: int, n: int, k: int) -> int:
    # Enough programs for every multiprocessor, each with at least two steps; not for a few more: the sums of the parts
    # are written and read again, and a second kernel starts.
    programs = max(1, batches * pl.cdiv(m, config.block_m) * pl.cdiv(n, config.block_n))
    wanted = 2 * compat.core_count() // programs
    return max(1, min(wanted, k // (2 * config.block_k), 16)) if wanted >= 4 else 1


def _fit_dot4(m: int, n: int, k: int, block_m: int, block_n: int, block_k: int, *, num_warps: int) -> Dot4Config:
    # No block beyond the array (rounded up), then block_k as large as the accumulators allow.
    block_m = min(block_m, pl.next_power_of_2(max(m, 1)))
    block_n = min(block_n, pl.next_power_of_2(max(n, 1)))
    accumulators = _GOOD_ACCUMULATORS * _WARP * num_warps
    block_k = min(block_k, pl.next_power_of_2(max(k, 4)), 4 * accumulators // (block_m * block_n))
    return Dot4Config(block_m, block_n, block_k, num_warps)


_MMA_TILES = (  # block_m, block_n, block_k, num_warps
    (128, 256, 128, 8),
    (256, 128, 128, 8),
    (128, 128, 128, 8),
    (128, 128, 128, 4),
    (128, 256, 64, 8),
    (128, 128, 64, 8),
    (128, 128, 64, 4),
    (256, 64, 64, 8),
    (128, 64, 128, 4),
    (64, 256, 128, 8),
    (64, 128, 128, 4),
    (64, 64, 128, 4),
    (64, 32, 256, 4),
    (32, 128, 128, 4),
    (32, 64, 256, 4),
    (32, 32, 256, 4),
    (16, 128, 128, 4),
    (16, 64, 256, 4),
    (16, 32, 256, 4),
    (16, 16, 512, 4),
)
_LEAST_STAGES, _MOST_STAGES = 3, 6  # one is multiplied, others are in flight; six cover the memory's latency
_MMA_CANDIDATES = 10
_WALKING = 2  # candidates with a persistent grid
_START = 400  # cycles in which a program starts
_OUTER_LOOP = 0.1  # of a tile's time, what an outer loop may cost: up to 64 more registers a thread
_BETWEEN = 100  # cycles from a step to the next: the warps that multiply meet, and start the copies, too


def mma_candidates(
    batches: int, m: int, n: int, k: int, *, has_residual: bool = False, is_shifted: bool = False
) -> tuple[MmaConfig, ...]:
    """Tactics worth timing for x (batches, m, k) and w (batches, n, k), sizes from 0, on the GPU in use.

    They are distinct and fit into its shared memory, and the one with the least estimated time is first.

    Args:
      has_residual: the epilogue reads one.
      is_shifted: an operand is uint8, which the kernel makes int8.
    """
    limit, cores = compat.shared_bytes(), compat.core_count()
    found = []
    for block_m, block_n, block_k, num_warps in _MMA_TILES:
        block_m = min(block_m, pl.next_power_of_2(max(m, 16)))
        block_n = min(block_n, pl.next_power_of_2(max(n, 16)))
        block_k = min(block_k, pl.next_power_of_2(max(k, 32)))
        # The programs that run at once cover about as many rows as columns.
        group = max(1, math.isqrt(cores * block_m * block_n) // block_m)
        most = pl.cdiv(k, 2 * block_k)
        for fitting, splits in ((f, s) for f in (1, 2, 4) for s in (1, 2, 4, 8, 16) if s == 1 or s <= most):
            stages = min(_MOST_STAGES, limit // fitting // ((block_m + block_n) * block_k))
            if stages >= _LEAST_STAGES:
                config = MmaConfig(block_m, block_n, block_k, num_warps, stages, group, splits)
                if _fits_registers(config, has_residual, is_shifted):
                    found.append(config)

    def cycles(config: MmaConfig) -> float:
        return mma_cycles(config, batches, m, n, k, has_residual=has_residual)

    # Of each tile the two best: neighbours in stages and splits differ little.
    kept, seen = [], dict[tuple[int, ...], int]()
    for config in sorted(dict.fromkeys(found), key=cycles):
        tile = config.block_m, config.block_n, config.block_k, config.num_warps
        seen[tile] = seen.get(tile, 0) + 1
        if seen[tile] <= 2:
            kept.append(config)
    kept = kept[:_MMA_CANDIDATES]
    walking = [
        dataclasses.replace(config, residents=_resident(config, has_residual))
        for config in kept
        if config.splits == 1 and _programs(config, batches, m, n) > _resident(config, has_residual) * cores
    ]
    kept += [config for config in walking if _fits_registers(config, has_residual, is_shifted)][:_WALKING]
    return tuple(sorted(kept, key=cycles))


def _fits_registers(config: MmaConfig, has_residual: bool, is_shifted: bool) -> bool:
    """Whether the kernel compiles without spills (`tests/sweep.py`).

    Up to 64 accumulators a thread it does; 128 leave no registers for a residual (48 to 1,200 bytes spill on sm_90),
    nor do 64 in tiles of 128 x 128 with 128 bytes of K in a step (40 bytes on sm_90). Before sm_90 the tensor cores
    read both operands from registers: beside 128 accumulators a thread may copy 6 times 16 bytes in a step (with 8, 16
    bytes spill). On sm_90 they read them from shared memory, but not x - 128, which is computed in registers (488
    bytes). sm_100 keeps the sums in its tensor memory and reads them all at once at the end: 128 of them spill 2,256
    bytes, 64 of them 104 in tiles of 64 rows, and 1,200 beside a residual in a persistent grid.
    """
    capability = compat.compute_capability() or 80
    accumulators = config.accumulators
    if capability >= 100:
        is_crowded = config.block_m == 64 or (has_residual and config.residents)
        return accumulators <= (32 if is_crowded else 64)
    if has_residual and capability >= 90 and min(config.block_m, config.block_n) >= 128:
        return accumulators <= 64 and config.block_k <= 64
    if accumulators <= 64 or has_residual:
        return accumulators <= 64
    if capability >= 90:
        return not is_shifted
    return (config.block_m + config.block_n) * config.block_k <= 6 * _COPY * _WARP * config.num_warps


def mma_cycles(config: MmaConfig, batches: int, m: int, n: int, k: int, *, has_residual: bool) -> float:
    """Estimated cycles of the busiest multiprocessor of the GPU in use.

    It takes in no more than is in flight over a latency. A program begins with that latency, waits between its steps,
    and ends with its outputs; behind all that the others on the multiprocessor work. A persistent grid starts no
    program for a tile, but its outer loop takes registers from the inner one: it is for tiles that are soon done.
    """
    pairs = estimate.pairs() if config.block_m >= 64 else min(estimate.pairs(), _FEW_ROWS_PAIRS)
    waves = pl.cdiv(_programs(config, batches, m, n), compat.core_count())
    resident = min(_resident(config, has_residual), max(waves, 1))
    loaded = (config.block_m + config.block_n) * config.block_k
    intake = min(estimate.L2_BYTES, resident * (config.num_stages - 1) * loaded / estimate.LATENCY)
    step = max(config.block_m * config.block_n * config.block_k / pairs, loaded / intake) + _BETWEEN / resident
    tile = pl.cdiv(pl.cdiv(k, config.block_k), config.splits) * step
    end = config.block_m * config.block_n / estimate.OUTPUTS + estimate.LATENCY
    if config.residents:
        tile *= 1 + _OUTER_LOOP
    else:
        end += _START
    # The parts of a split K are written and read in int32, and a second kernel starts.
    parts = 0.0 if config.splits == 1 else estimate.copy(4 * batches * m * n * config.splits)
    return waves * tile + pl.cdiv(waves, resident) * end + parts


def _programs(config: MmaConfig, batches: int, m: int, n: int) -> int:
    """As many as there are tiles and parts."""
    return batches * pl.cdiv(m, config.block_m) * pl.cdiv(n, config.block_n) * config.splits


def _resident(config: MmaConfig, has_residual: bool) -> int:
    """Programs that a multiprocessor has room for: beside a residual, accumulators take their registers twice."""
    registers = (config.accumulators * (2 if has_residual else 1) + 64) * _WARP * config.num_warps
    return max(1, min(compat.shared_bytes() // config.shared_bytes, 65536 // registers))
