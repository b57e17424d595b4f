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
_WORK = bytes(8 << 20)


@dataclass(frozen=True)
class Rounds:
    """Of each round: milliseconds a call by function, milliseconds of a fixed piece of work, load of the machine."""

    ms: Mapping[str, list[float]]
    spin: list[float]
    load: list[float]

    def median(self, name: str) -> float:
        return statistics.median(self.ms[name])

    def quiet(self) -> str:
        """How much longer the fixed piece of work took than in the quietest round, and the load, round by round."""
        spins = " ".join(f"{spin / min(self.spin):.2f}" for spin in self.spin)
        load = f"{min(self.load):.1f} to {max(self.load):.1f}"
        return f"fixed work, in each round beside the quietest: {spins}; load {load}"


def interleaved(functions: Mapping[str, Callable[[], Any]], rounds: int) -> Rounds:
    """Calls every function in every round, a burst of calls at a time."""
    for function in functions.values():
        function()
    result = Rounds({name: [] for name in functions}, [], [])
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(rounds):
            result.spin.append(_spin(pool))
            result.load.append(os.getloadavg()[0])
            for name, function in functions.items():
                result.ms[name].append(_burst(function))
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
    """A fixed piece of work on all cores at once, in milliseconds: what else runs on the machine slows it."""
    return _milliseconds(lambda: list(pool.map(hashlib.sha256, [_WORK] * THREADS)))


def _milliseconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - start)
