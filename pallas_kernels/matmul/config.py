"""Tactics of the kernels: tile sizes, number of warps, and which of them to try."""

import dataclasses

from jax.experimental import pallas as pl

_THREADS_PER_WARP = 32
_MAX_ACCUMULATORS = 128  # a thread; here the first tile spills (16 bytes, sm_90)
_GOOD_ACCUMULATORS = 64  # up to 128 registers: no spills, and several programs fit on a multiprocessor


@dataclasses.dataclass(frozen=True)
class Config:
    """Tactic of a kernel: the tile of one program, counted in 8-bit elements, and the warps that share it.

    There is no number of stages: Triton pipelines only loads that feed tensor cores, so the PTX would not change.

    Raises:
      ValueError: where a number is no power of two, block_k is below 4, or a thread would hold more than 128
        accumulators: block_m * block_n * (block_k / 4) / (32 * num_warps).
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4

    def __post_init__(self) -> None:
        numbers = dataclasses.astuple(self)
        if self.block_k < 4 or any(number < 1 or number & (number - 1) for number in numbers):
            raise ValueError(f"{self}: all numbers must be powers of two, block_k at least 4")
        if self.accumulators > _MAX_ACCUMULATORS:
            raise ValueError(f"{self}: {self.accumulators} accumulators a thread, at most {_MAX_ACCUMULATORS} fit")

    @property
    def accumulators(self) -> int:
        """Accumulators a thread."""
        return pl.cdiv(self.block_m * self.block_n * self.block_k // 4, _THREADS_PER_WARP * self.num_warps)


def default_config(m: int, n: int, k: int) -> Config:
    """Heuristic tactic for x (m, k) and w (n, k); valid for all sizes, 0 included.

    Up to 8 rows w is read once and its bytes decide: few channels a program, so that all multiprocessors have work, and
    much of K, so that many loads are in flight. Beyond 8 rows, square tiles use each loaded byte more often.
    """
    if m <= 8:
        return _fit(m, n, k, block_m=8, block_n=8, block_k=1024, num_warps=4)
    return _fit(m, n, k, block_m=32, block_n=32, block_k=128, num_warps=4)


def candidates(m: int, n: int, k: int) -> tuple[Config, ...]:
    """Tactics worth timing for x (m, k) and w (n, k): distinct, all valid, the default first."""
    tiles = ((8, 4, 2048), (8, 8, 1024), (8, 16, 512), (8, 32, 256), (16, 32, 128), (32, 32, 128))
    fitted = (
        _fit(m, n, k, block_m=block_m, block_n=block_n, block_k=block_k, num_warps=num_warps)
        for block_m, block_n, block_k in tiles
        for num_warps in (4, 8)
    )
    return tuple(dict.fromkeys((default_config(m, n, k), *fitted)))


def _fit(m: int, n: int, k: int, *, block_m: int, block_n: int, block_k: int, num_warps: int) -> Config:
    # No block beyond the array (rounded up), then block_k as large as the accumulators allow.
    block_m = min(block_m, pl.next_power_of_2(max(m, 1)))
    block_n = min(block_n, pl.next_power_of_2(max(n, 1)))
    accumulators = _GOOD_ACCUMULATORS * _THREADS_PER_WARP * num_warps
    block_k = min(block_k, pl.next_power_of_2(max(k, 4)), 4 * accumulators // (block_m * block_n))
    return Config(block_m, block_n, block_k, num_warps)
