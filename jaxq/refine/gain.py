"""What a step of refinement brought."""

from dataclasses import dataclass
from math import inf, log10


@dataclass(frozen=True)
class Gain:
    """What a step of the recipe brought: the squared error of the results over their square, on the calibration
    examples that were held back, `before` it and `after` it; it took `seconds`, and was `kept` if that fell, or if the
    config asks for it by name."""

    step: str
    before: float
    after: float
    seconds: float
    kept: bool

    def __str__(self) -> str:
        before, after = (_decibels(error) for error in (self.before, self.after))
        end = "kept" if self.kept else "not kept"
        return f"{self.step}: {before:.2f} dB -> {after:.2f} dB, {end} ({self.seconds:.0f} s)"


def _decibels(error: float) -> float:
    return -10 * log10(error) if error > 0 else inf
