"""The threshold of a tensor by a method: drawn from its histogram, or for "auto" the one measured to disturb least."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

from jaxq.calibration.histogram import Histogram, merge
from jaxq.calibration.thresholds import threshold
from jaxq.errors import CalibrationError

# What "auto" chooses from, in the order of preference where two do equally well.
CANDIDATES = ("mse", "entropy", "percentile", "amax")

# Errors measured on few samples differ by chance: a candidate whose error is within this factor of the least does
# equally well.
EQUAL = 1.2

# Keeps a scale and its reciprocal within float32.
SMALLEST_THRESHOLD = 1e-30


@dataclass(frozen=True)
class Tensor:
    """Values of one scale. `sources`: the names of those whose histograms make the threshold, the first names the
    tensor; `dtype`: "int8" or "uint8"; `measurable`: errors can be measured, as they cannot in the body of a loop;
    `floor`: a negative number that all lower ones count as."""

    sources: tuple[str, ...]
    dtype: str
    measurable: bool = True
    floor: float | None = None

    @property
    def name(self) -> str:
        return self.sources[0]

    @property
    def unsigned(self) -> bool:
        return self.dtype == "uint8"

    def method(self, wanted: str) -> str:
        """The method that the tensor has where `wanted` is asked for."""
        return "mse" if wanted == "auto" and not self.measurable else wanted


# {tensor name: {threshold: {reader: error}}}: what each layer that reads the tensor loses by it. By reader, because
# rules that are given later may take readers away.
Errors = Mapping[str, Mapping[float, Mapping[str, float]]]

# {tensor name: {threshold: error of all its readers}}
Sums = Mapping[str, Mapping[float, float]]


def sums(errors: Errors) -> Sums:
    """The errors of all readers together."""
    return {
        name: {threshold: sum(by_reader.values()) for threshold, by_reader in thresholds.items()}
        for name, thresholds in errors.items()
    }


def joined(tensor: Tensor, histograms: Mapping[str, Histogram]) -> Histogram:
    """The histogram of all the tensor's sources."""
    return reduce(merge, [histograms[source] for source in tensor.sources])


def candidates(tensor: Tensor, histograms: Mapping[str, Histogram], percentile: float) -> dict[str, float]:
    """The thresholds that "auto" chooses from, by their methods."""
    return {method: threshold_by(tensor, method, histograms, percentile) for method in CANDIDATES}


def select(
    methods: Mapping[Tensor, str], histograms: Mapping[str, Histogram], errors: Sums, percentile: float
) -> dict[Tensor, tuple[str, float]]:
    """(method, threshold) of each tensor, for the method that it is given.

    For "auto" it is the first candidate whose measured error is within 20 % of the least. Where not all of
    them were measured, by rules or a percentile given after the samples were gone, it is "mse", with a warning.

    Raises:
      CalibrationError: a tensor is to have "auto", and no error was ever measured.
    """
    chosen: dict[Tensor, tuple[str, float]] = {}
    unmeasured = []
    for tensor, method in methods.items():
        if method == "auto":
            found = candidates(tensor, histograms, percentile)
            measured = errors.get(tensor.name, {})
            if len(set(found.values())) == 1:
                method = CANDIDATES[0]
            elif all(threshold in measured for threshold in found.values()):
                least = min(measured[threshold] for threshold in found.values())
                method = next(m for m, threshold in found.items() if measured[threshold] <= EQUAL * least)
            elif not errors:
                raise CalibrationError(
                    "method='auto': this calibration measured no errors to choose by, since it was made with another "
                    "method; calibrate with method='auto', or name a method"
                )
            else:
                unmeasured.append(tensor.name)
                method = "mse"
        chosen[tensor] = method, threshold_by(tensor, method, histograms, percentile)
    if unmeasured:
        warnings.warn(
            f"method='auto': the calibration holds no measured errors of {', '.join(map(repr, unmeasured))}: 'mse' "
            "chose there; calibrate with this config to choose by measuring",
            stacklevel=4,
        )
    return chosen


def threshold_by(tensor: Tensor, method: str, histograms: Mapping[str, Histogram], percentile: float) -> float:
    """The tensor's threshold by a method other than "auto"."""
    histogram = joined(tensor, histograms)
    found = threshold(histogram, method, unsigned=tensor.unsigned, percentile=percentile, floor=tensor.floor)
    return max(found, SMALLEST_THRESHOLD)
