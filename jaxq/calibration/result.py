"""A finished calibration: what was observed, of which network, and the thresholds that any method draws from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from jaxq.calibration import cache, tensorrt
from jaxq.calibration.batches import Signature
from jaxq.calibration.histogram import Histogram
from jaxq.calibration.observe import Statistics
from jaxq.calibration.report import Report, report
from jaxq.calibration.select import Errors, Tensor, select, sums
from jaxq.config import QuantConfig
from jaxq.errors import CalibrationError
from jaxq.graph.fingerprint import Fingerprint


@dataclass(frozen=True, eq=False)
class Calibration:
    """What `jaxq.calibrate` returns: `jaxq.quantize(model, variables, calibration=c)` needs no batches.

    Attributes:
      fingerprint: of the network and its variables.
      signature: of the arguments.
      tensors: the values that become integers, those of one scale together.
      statistics: the histograms, and what was counted.
      errors: what "auto" chooses by: {tensor name: {threshold: {layer that reads the tensor: its error}}}.
    """

    fingerprint: Fingerprint
    signature: Signature
    tensors: tuple[Tensor, ...]
    statistics: Statistics
    errors: Errors

    @property
    def histograms(self) -> Mapping[str, Histogram]:
        """The histogram of every observed value, by name."""
        return self.statistics.histograms

    @property
    def num_examples(self) -> int:
        return self.statistics.num_examples

    def thresholds(self, method: str | None = None, *, percentile: float = 99.99) -> dict[str, float]:
        """{value name: threshold}, the greatest magnitude that the value's scale covers. Values of one scale, such as
        the parts of a concatenation, each have it.

        The method is "auto" unless another is named, or "mse" where the calibration measured no errors to choose by.

        Raises:
          UnsupportedError: no such method, or no such percentile.
          CalibrationError: "auto", and the calibration was made with another method, which measures no errors.
        """
        chosen = self._chosen(method, percentile)
        return {source: threshold for tensor, (_, threshold) in chosen.items() for source in tensor.sources}

    def tensorrt_cache(self, method: str | None = None, *, percentile: float = 99.99) -> str:
        """The thresholds in the text format of TensorRT's calibration caches; see `jaxq.calibration.tensorrt`."""
        return tensorrt.to_text(self.thresholds(method, percentile=percentile))

    def report(self, method: str | None = None, *, percentile: float = 99.99) -> Report:
        """How far those `thresholds` can be trusted, per tensor: print it, or read its `rows`."""
        return report(self.statistics, self._chosen(method, percentile), percentile)

    def _chosen(self, method: str | None, percentile: float) -> dict[Tensor, tuple[str, float]]:
        if method is None:
            method = "auto" if self.errors else "mse"
        config = QuantConfig(method=method, percentile=percentile)
        methods = {tensor: tensor.method(config.method) for tensor in self.tensors}
        return select(methods, self.histograms, sums(self.errors), config.percentile)

    def check(self, fingerprint: Fingerprint, *, allow_stale: bool) -> None:
        """That this is the calibration of the network with that fingerprint.

        Raises:
          CalibrationError: it is not, and `allow_stale` is False; the message says what differs.
        """
        differences = self.fingerprint.differences(fingerprint)
        if differences and not allow_stale:
            more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise CalibrationError(
                f"calibration: is of another network or of other variables: {', '.join(differences[:3])}{more}; "
                "calibrate this one, or take the old thresholds all the same with allow_stale=True"
            )

    def save(self, path: str | PathLike[str]) -> None:
        """Writes all but the kept samples to one file of data, atomically.

        Raises:
          CalibrationError: the file cannot be written.
          UnsupportedError: the arguments hold a pytree type that a file cannot.
        """
        header, arrays = cache.encode(self.statistics, self.fingerprint, with_samples=False)
        header |= cache.encode_network(self.signature, self.tensors, self.errors)
        cache.CALIBRATION.write(path, header, arrays)

    @staticmethod
    def load(path: str | PathLike[str]) -> "Calibration":
        """The calibration in a file that `save` wrote.

        Raises:
          CalibrationError: the file is missing, truncated, foreign, damaged, or from a newer jaxq.
        """
        return cache.decoded(path, _decode, *cache.CALIBRATION.read(path))

    def __repr__(self) -> str:
        return f"Calibration({len(self.tensors)} tensors, {self.num_examples} examples)"


def _decode(header: Mapping[str, Any], arrays: cache.Arrays) -> Calibration:
    statistics, fingerprint = cache.decode(header, arrays)
    signature, tensors, errors = cache.decode_network(header)
    missing = [source for tensor in tensors for source in tensor.sources if source not in statistics.histograms]
    if missing:
        raise ValueError(f"{missing[0]!r} has no histogram")
    return Calibration(fingerprint, signature, tensors, statistics, errors)
