"""How long functions take beside one another, and the file that remembers it for this machine."""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxq import backends, files
from jaxq.numerics import BOUNDS
from jaxq.version import __version__

_FEWEST_TURNS = 5


def interleaved(functions: Sequence[Callable[[], Any]], seconds: float) -> list[float]:
    """The median seconds of a call of each, turn by turn, so that a busy machine slows all alike: until it is settled
    which is the fastest, as no quartile of it lies within those of another, or `seconds` are over."""
    for function in functions:
        jax.block_until_ready(function())
    taken: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while len(taken[0]) < _FEWEST_TURNS or (time.perf_counter() < end and not _settled(taken)):
        for function, of_one in zip(functions, taken, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function())
            of_one.append(time.perf_counter() - start)
    return [float(np.median(of_one)) for of_one in taken]


def _settled(taken: Sequence[Sequence[float]]) -> bool:
    (_, upper), *others = sorted(tuple(np.quantile(of_one, (0.25, 0.75))) for of_one in taken)
    return all(upper < lower for lower, _ in others)


def device_label() -> str:
    """What timings are of: the GPU's kind, or the processor's name, its cores and the kernels' instruction set."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return str(device.device_kind)
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return f"{found[1]}, {os.cpu_count()} cores, {backends.cpu_kernels()}"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {backends.cpu_kernels()}"


def cache_folder() -> Path:
    """`JAXQ_CACHE_DIR`, or jaxq's folder in the user's cache directory."""
    given = os.environ.get("JAXQ_CACHE_DIR")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxq"


class TimingCache:
    """{what was timed: seconds} of one device, and {what cannot be used: why}, in a JSON file that several processes
    may read and write at a time.

    A file that cannot be read is told of by a warning and written anew; one that cannot be written costs no more than
    measuring again.

    Attributes:
      used, failed: those that were asked for or put in.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.device = device_label()
        name = re.sub(r"\W+", "-", self.device).strip("-")[:60]
        digest = hashlib.sha256(self.device.encode()).hexdigest()[:8]
        self.path = (folder or cache_folder()) / "timings" / f"{name}-{digest}.json"
        self.used: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self._new = _Known()
        self._known = self._read()

    def key(self, what: str) -> str:
        return f"jax {jax.__version__}, jaxq {__version__}: {what}"

    def get(self, what: str) -> float | None:
        seconds = self._known.seconds.get(self.key(what))
        if seconds is not None:
            self.used[what] = seconds
        return seconds

    def put(self, what: str, seconds: float) -> None:
        self.used[what] = seconds
        for known in (self._known, self._new):
            known.seconds[self.key(what)] = seconds

    def failure(self, what: str) -> str | None:
        """Why it cannot be used, or None."""
        reason = self._known.failures.get(self.key(what))
        if reason is not None:
            self.failed[what] = reason
        return reason

    def fail(self, what: str, reason: str) -> None:
        self.failed[what] = reason
        for known in (self._known, self._new):
            known.failures[self.key(what)] = reason

    def save(self) -> None:
        """Adds what was measured to what the file holds by now."""
        if not self._new.seconds and not self._new.failures:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path.with_suffix(".lock")):
                known = self._read()
                seconds, failures = known.seconds | self._new.seconds, known.failures | self._new.failures
                data = {"device": self.device, "seconds": seconds, "failures": failures}
                files.replace(self.path, json.dumps(data, indent=0).encode())
        except OSError as error:
            warnings.warn(f"timing cache: {self.path} cannot be written: {error.strerror}", stacklevel=2)
        self._new = _Known()

    def _read(self) -> "_Known":
        try:
            data = json.loads(self.path.read_bytes())
            seconds = {str(key): _positive(seconds) for key, seconds in data["seconds"].items()}
            return _Known(seconds, {str(key): str(reason) for key, reason in data.get("failures", {}).items()})
        except FileNotFoundError:
            return _Known()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            warnings.warn(
                f"timing cache: {self.path} cannot be read ({type(error).__name__}: {error}); it is written anew",
                stacklevel=3,
            )
            return _Known()


@dataclass
class _Known:
    """{key: seconds}, {key: why it cannot be used}."""

    seconds: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def _positive(seconds: Any) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e6:
        raise ValueError(f"{seconds!r} is no time")
    return float(seconds)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def drawn(avals: Iterable[Any]) -> list[np.ndarray]:
    """Arrays of those shapes and dtypes to time with: normal floats, bytes of all levels, zeros of other integers, as
    they may be indices."""
    rng = np.random.default_rng(0)

    def draw(aval: Any) -> np.ndarray:
        if jax.numpy.issubdtype(aval.dtype, np.floating):
            return np.asarray(rng.normal(size=aval.shape), aval.dtype)
        if aval.dtype.name in BOUNDS:
            low, high = BOUNDS[aval.dtype.name]
            return rng.integers(int(low), int(high) + 1, aval.shape).astype(aval.dtype)
        return np.zeros(aval.shape, aval.dtype)

    return [draw(aval) for aval in avals]
