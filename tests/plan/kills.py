"""Writers that are killed at a random moment, `python kills.py COUNT FOLDER`: the file that they leave is whole.

A process that writes in a loop is forked `COUNT` times, since a new one would first import JAX for seconds, and killed
by a signal that it cannot catch.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from jaxq.plan import artifact
from jaxq.plan.timing import TimingCache

# The longest that a writer lives: it writes a hundred times or so.
SECONDS = 0.2


def killed(write: Callable[[], None]) -> None:
    """Calls `write` again and again in a child process, which is killed in between."""
    child = os.fork()
    if child == 0:
        while True:
            write()
    time.sleep(SECONDS * random.random())
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "the writer failed by itself"


def plans(count: int, folder: Path) -> None:
    """Two plans in turn over one file, which is one of the two behind each kill."""
    whole = {(folder / name).read_bytes() for name in ("a.jaxq", "b.jaxq")}
    loaded = [artifact.load(folder / name) for name in ("a.jaxq", "b.jaxq")]
    target = folder / "net.jaxq"

    def write() -> None:
        for plan, params in loaded:
            artifact.save(target, plan, params)

    write()
    for _ in range(count):
        killed(write)
        assert target.read_bytes() in whole
    write()
    assert target.read_bytes() in whole


def timings(count: int, folder: Path) -> None:
    """A timing cache that grows: behind each kill it holds what it held before, and the next writer can go on."""
    path, known = TimingCache(folder).path, 0

    def write() -> None:
        cache = TimingCache(folder)
        cache.put(str(len(json.loads(path.read_text())["seconds"]) if path.exists() else 0), 1.0)
        cache.save()

    write()
    for _ in range(count):
        killed(write)
        seconds = json.loads(path.read_text())["seconds"]
        assert len(seconds) >= known and set(seconds.values()) == {1.0}
        known = len(seconds)
    write()
    assert len(json.loads(path.read_text())["seconds"]) == known + 1


if __name__ == "__main__":
    for check in (plans, timings):
        check(int(sys.argv[1]), Path(sys.argv[2]))
