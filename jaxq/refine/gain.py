"""What a step of refinement brought."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, log10


@dataclass(frozen=True)
class Gain:
    """What a step of the recipe brought: the squared error of the results over their square, on the calibration
    examples that were held back, `before` it and `after` it; it took `seconds`, and was `kept` if that fell, or if the
    config asks for it by name. Where the step judged each layer apart, `layers` has their names and the same of their
    results, before and after; those where it did not fall were left as they were."""

    step: str
    before: float
    after: float
    seconds: float
    kept: bool
    layers: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __str__(self) -> str:
        end = "kept" if self.kept else "not kept"
        return f"{self.step}: {_change(self.before, self.after)}, {end} ({self.seconds:.0f} s)"

    def lines(self) -> list[str]:
        """For a report: the step, and a line for each of the layers."""
        return [f"recipe: {self}", *(f"  {name}: {_change(*errors)}" for name, errors in self.layers.items())]


def _change(before: float, after: float) -> str:
    return f"{_decibels(before):.2f} dB -> {_decibels(after):.2f} dB"


def _decibels(error: float) -> float:
    return -10 * log10(error) if error > 0 else inf
