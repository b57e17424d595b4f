"""A progress line on a terminal: what is done, how much, and how long is left. Silent where stderr is no terminal."""

import sys
import time
from types import TracebackType


class Progress:
    """Used as a context; `advance` once for each step of `total` (None where nobody knows)."""

    def __init__(self, label: str, total: int | None) -> None:
        self.label, self.total, self.done = label, total, 0
        self.start = time.monotonic()
        self.shown = sys.stderr.isatty()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.shown and self.done:
            sys.stderr.write("\n")

    def advance(self, detail: str = "") -> None:
        self.done += 1
        if not self.shown:
            return
        seconds = time.monotonic() - self.start
        of, left = "", ""
        if self.total:
            of = f"/{self.total}"
            left = f", {seconds / self.done * (self.total - self.done):.0f} s left"
        line = f"{self.label}: {self.done}{of} {detail} {seconds:.0f} s{left}"
        sys.stderr.write(f"\r{line:<79}")
        sys.stderr.flush()
