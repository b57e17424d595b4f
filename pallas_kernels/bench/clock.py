"""How long functions take on the device, measured in turns, each call on inputs that are no longer in the L2 cache.

On a GPU the time is that of the kernels, by CUPTI: no launch, no gap between launches, no host. All functions of one
measurement run in turns, so that clocks and temperature are the same for all. A function's inputs rotate among copies
that together exceed the cache twice.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax

L2_MB = {"B200": 126, "B300": 126, "H200": 60}  # by a word of the device kind; no other GPU here has more than 50
MAX_COPIES = 32


@dataclass(frozen=True)
class Call:
    """A compiled function and the argument tuples that its calls take in turn."""

    function: Callable[..., Any]
    inputs: Sequence[tuple[Any, ...]]

    def __call__(self, turn: int) -> Any:
        return self.function(*self.inputs[turn % len(self.inputs)])


class Clock(Protocol):
    """Seconds that each call takes: one number for each of `rounds` turns, by the call's name."""

    name: str

    def __call__(self, calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]: ...


class Host:
    """The clock of the host around whole calls; for machines without CUPTI. Small kernels are launch-bound in it."""

    name = "host"

    def __call__(self, calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
        for call in calls.values():
            jax.block_until_ready(call(0))
        times: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(1, rounds + 1):
            for name, call in calls.items():
                start = time.perf_counter()
                jax.block_until_ready(call(turn))
                times[name].append(time.perf_counter() - start)
        return times


class Cupti:
    """The GPU's own times of the kernels that ran."""

    name = "cupti"

    def __init__(self) -> None:
        from jax.experimental.mosaic.gpu import profiler

        self.profiler = profiler.Cupti(finalize=False)

    def __call__(self, calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
        # Kernels are told apart by their number: that of each function is counted alone, first.
        alone = {name: len(self._kernels([(call, 0)])) for name, call in calls.items()}
        order = [(name, call, turn) for turn in range(1, rounds + 1) for name, call in calls.items()]
        kernels = self._kernels([(call, turn) for _, call, turn in order])
        if len(kernels) != rounds * sum(alone.values()):
            raise RuntimeError(f"{len(kernels)} kernels ran in {rounds} rounds of {alone}")
        times: dict[str, list[float]] = {name: [] for name in calls}
        start = 0
        for name, _, _ in order:
            times[name].append(1e-3 * sum(kernels[start : start + alone[name]]))
            start += alone[name]
        return times

    def _kernels(self, order: Sequence[tuple[Call, int]]) -> list[float]:
        """Milliseconds of every kernel that the calls launch, in order."""
        _, kernels = self.profiler.measure(_Sequence(order), aggregate=False)()
        if not kernels:
            raise RuntimeError("CUPTI saw no kernel")
        return [milliseconds for _, milliseconds in kernels]


class _Sequence(jax.stages.Wrapped):
    """Calls one after another. (What is "wrapped" the profiler runs as it is: it jits all else into one function.)"""

    def __init__(self, order: Sequence[tuple[Call, int]]) -> None:
        self.order = order

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = None
        for call, turn in self.order:
            result = call(turn)  # the one before is freed, and its memory used again: one stream runs them in order
        return result

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("it only runs")

    lower = trace


def choose() -> tuple[Clock, str | None]:
    """CUPTI's clock where it works, else the host's and why."""
    if jax.default_backend() != "gpu":
        return Host(), "there is no GPU"
    try:
        clock = Cupti()
        clock({"probe": Call(jax.jit(lambda x: x + 1), [(jax.numpy.zeros(1024),)])}, 2)
    except Exception as error:  # whatever the profiler raises: the rows then say which clock they are by
        return Host(), f"{type(error).__name__}: {error}"
    return clock, None


def copies(size: int) -> int:
    """How many copies of inputs of `size` bytes exceed the L2 cache twice."""
    return min(MAX_COPIES, 1 + 2 * l2(jax.devices()[0].device_kind) // max(size, 1))


def l2(device_kind: str) -> int:
    """Bytes of the L2 cache."""
    return next((size for word, size in L2_MB.items() if word in device_kind), 50) * 2**20


def summary(times: Sequence[float]) -> dict[str, float]:
    """Median, least and spread (quartiles, relative) of the times, in microseconds."""
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return {"us": 1e6 * middle, "least_us": 1e6 * min(times), "spread": (high - low) / middle}
