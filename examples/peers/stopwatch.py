"""Times functions turn by turn in one process, and tells how quiet the machine was meanwhile."""

import hashlib
import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
BURST = 0.15  # seconds for which a function is called in a round
MIN_CALLS = 3
SLOW = 0.5  # seconds from which on one call in a round is enough
SPINS = 5
QUIET = 1.1  # times the least fixed work
_WORK = bytes(8 << 20)


@dataclass(frozen=True)
class Rounds:
    """Of each round: milliseconds a call by function, milliseconds of a fixed piece of work, load of the machine."""

    ms: Mapping[str, list[float]]
    spin: list[float]
    load: list[float]

    @property
    def disturbed(self) -> list[bool]:
        """Where something else ran on the machine, so that the fixed work took longer than in the quietest round."""
        return [spin > QUIET * min(self.spin) for spin in self.spin]

    def median(self, name: str) -> float:
        """Over the rounds that were not disturbed."""
        times = zip(self.ms[name], self.disturbed, strict=True)
        return statistics.median(ms for ms, disturbed in times if not disturbed)

    def quiet(self) -> str:
        """How quiet the machine was, in words."""
        spins = " ".join(f"{spin / min(self.spin):.2f}" for spin in self.spin)
        told = f"fixed work: {spins} x the quietest round, {sum(self.disturbed)} disturbed; load {max(self.load):.1f}"
        return f"{told}: TOO BUSY, measure again" if max(self.load) > THREADS + 1 else told


def interleaved(functions: Mapping[str, Callable[[], Any]], rounds: int) -> Rounds:
    """Calls every function in every round, a burst of calls at a time, and the fixed work before and after."""
    for function in functions.values():
        function()
    result = Rounds({name: [] for name in functions}, [], [])
    with ThreadPoolExecutor(THREADS) as pool:
        before = _spin(pool)
        for _ in range(rounds):
            for name, function in functions.items():
                result.ms[name].append(_burst(function))
            after = _spin(pool)
            result.spin.append(max(before, after))
            result.load.append(os.getloadavg()[0])
            before = after
    return result


def _burst(function: Callable[[], Any]) -> float:
    """The median of a burst of calls, in milliseconds. The first one warms the caches and the threads."""
    calls = [_milliseconds(function)]
    if calls[0] > 1e3 * SLOW:
        return calls[0]
    end = time.perf_counter() + BURST
    while time.perf_counter() < end or len(calls) <= MIN_CALLS:
        calls.append(_milliseconds(function))
    return statistics.median(calls[1:])


def _spin(pool: ThreadPoolExecutor) -> float:
    """A fixed piece of work on all cores at once, in milliseconds: what else runs on the machine slows it. The best of
    a few, as the threads of what was timed last may still spin."""
    return min(_milliseconds(lambda: list(pool.map(hashlib.sha256, [_WORK] * THREADS))) for _ in range(SPINS))


def _milliseconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - start)
