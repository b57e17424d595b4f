"""Times functions turn by turn in one process, so that what else the machine does falls on all of them."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

ROUNDS = 5


@dataclass(frozen=True)
class Times:
    """The seconds of each call."""

    calls: np.ndarray

    def percentile(self, percent: float) -> float:
        """In milliseconds."""
        return 1e3 * float(np.percentile(self.calls, percent))

    @property
    def median(self) -> float:
        """In milliseconds."""
        return self.percentile(50)

    @property
    def per_second(self) -> float:
        """Calls a second, one after the other."""
        return len(self.calls) / float(np.sum(self.calls))


def interleaved(functions: Mapping[Any, Callable[[], Any]], seconds: float) -> dict[Any, Times]:
    """Each function for about that many seconds, in turns. They are compiled already; the first call of a turn, which
    brings weights back into the caches and wakes the threads, does not count."""
    calls: dict[Any, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            _timed(function)
            end = time.perf_counter() + seconds / ROUNDS
            while True:
                calls[name].append(_timed(function))
                if time.perf_counter() >= end:
                    break
    return {name: Times(np.array(each)) for name, each in calls.items()}


def _timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def first_call(function: Callable[[], Any]) -> float:
    """Seconds of the call that compiles it."""
    return _timed(function)


def load() -> str:
    """How busy the machine is, in words: where more runs on it than it has cores, timings are worth little."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not hasattr(os, "getloadavg"):
        return f"{cores} cores"
    running = os.getloadavg()[0]
    return f"{cores} cores, load {running:.1f}{': TOO BUSY, measure again' if running > cores + 1 else ''}"
