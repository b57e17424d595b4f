"""What a user chooses: the calibration method and per-layer rules. Frozen data, no behaviour beyond matching."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from jaxq.errors import UnsupportedError

METHODS = ("auto", "entropy", "mse", "percentile", "amax")


def _check_method(method: str, where: str) -> None:
    if not isinstance(method, str) or method not in METHODS:
        raise UnsupportedError(f"{where}: method={method!r} is not a calibration method; take one of {METHODS}")


@dataclass(frozen=True)
class LayerRule:
    """What holds for the layers whose path `pattern` finds (`re.search` on the full path; the first match wins).

    `quantize=False` keeps the layer in float. `method` chooses the threshold of the value that the layer produces.
    """

    pattern: str
    quantize: bool = True
    method: str | None = None

    def __post_init__(self) -> None:
        if self.method is not None:
            _check_method(self.method, f"LayerRule({self.pattern!r})")
        try:
            re.compile(self.pattern)
        except (re.error, TypeError) as error:
            raise UnsupportedError(f"LayerRule: {self.pattern!r} is not a regular expression: {error}") from error

    def matches(self, path: str) -> bool:
        return re.search(self.pattern, path) is not None


@dataclass(frozen=True)
class QuantConfig:
    """How to quantize.

    Args:
      method: the calibration method of every activation: "auto" takes per value the threshold that disturbs the
        consuming layers least, measured on calibration samples; "entropy", "mse", "percentile" and "amax" are
        those of `jaxq.calibration.thresholds`.
      rules: exceptions by layer path; the first that matches a path holds.
      percentile: the percentage of values that lie within the threshold of method "percentile".
    """

    method: str = "auto"
    rules: tuple[LayerRule, ...] = ()
    percentile: float = 99.99

    def __post_init__(self) -> None:
        _check_method(self.method, "QuantConfig")
        if not isinstance(self.rules, Iterable) or not all(isinstance(rule, LayerRule) for rule in self.rules):
            raise UnsupportedError(f"QuantConfig: rules takes a tuple of LayerRule objects, not {self.rules!r}")
        object.__setattr__(self, "rules", tuple(self.rules))
        if not isinstance(self.percentile, int | float) or not 0 < self.percentile <= 100:
            raise UnsupportedError(f"QuantConfig: percentile={self.percentile!r} is no number within (0, 100]")

    def rule(self, path: str) -> LayerRule | None:
        """The first rule that matches the layer path, if any."""
        return next((rule for rule in self.rules if rule.matches(path)), None)

    def quantizes(self, path: str) -> bool:
        rule = self.rule(path)
        return rule is None or rule.quantize

    def named_method(self, path: str) -> str | None:
        """The method that a rule gives the value which the layer makes, if any."""
        rule = self.rule(path)
        return None if rule is None else rule.method

    def unmatched(self, paths: Iterable[str]) -> tuple[LayerRule, ...]:
        """The rules that match none of the paths."""
        paths = tuple(paths)
        return tuple(rule for rule in self.rules if not any(map(rule.matches, paths)))
