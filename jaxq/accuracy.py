"""The fewest layers in float that hold the accuracy: what `quantize(..., max_drop=, metric=)` chooses.

Layers go to float one after the other, the one that disturbs the results most first; where tuning measured their times,
the one first that disturbs them most for each second that it costs in float. The metric is taken to rise on the way, so
that the fewest are found by bisection.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from tqdm import tqdm

from jaxq import build
from jaxq.attribution import LayerError, measure
from jaxq.build import Network
from jaxq.calibration.result import Calibration
from jaxq.config import QuantConfig
from jaxq.errors import CalibrationError, UnsupportedError
from jaxq.plan.tune import Twins
from jaxq.qmodel import QuantizedModel
from jaxq.report import Accuracy

Metric = Callable[[Callable[..., Any]], float]


@dataclass(frozen=True)
class Demand:
    """`metric`, a function of the model, as high as it is good, may be `max_drop` lower than that of the float one."""

    max_drop: float
    metric: Metric

    def of(self, model: Callable[..., Any]) -> float:
        """The metric of the model.

        Raises:
          UnsupportedError: it is no number.
        """
        found = self.metric(model)
        try:
            number = float(found)
        except (TypeError, ValueError):
            number = float("nan")
        if number != number:
            raise UnsupportedError(f"metric: returned {found!r}, which is no number")
        return number


@dataclass(frozen=True)
class Held:
    """`in_float`: {layer: why it stays in float}; `accuracy`: how they were found."""

    in_float: Mapping[str, str]
    accuracy: Accuracy

    def is_accurate(self, demand: Demand, model: QuantizedModel) -> bool:
        return self.accuracy.in_float - demand.of(model) <= self.accuracy.max_drop


def hold(network: Network, config: QuantConfig, calibration: Calibration, demand: Demand, twins: Twins | None) -> Held:
    """The layers to keep in float. What was measured is written to stderr.

    Raises:
      CalibrationError: the calibration keeps no examples to measure layers on.
      UnsupportedError: the metric is no number, or falls short with all layers in float, or the function returns no
        floats.
    """
    in_float = demand.of(partial(jax.jit(network.function), network.variables))
    int8 = build.quantized(network, config, calibration)
    frontier = {0: demand.of(int8)}
    _tell(f"all layers in int8: {frontier[0]:.4g}, {in_float:.4g} in float")
    if in_float - frontier[0] <= demand.max_drop:
        return Held({}, Accuracy(in_float, demand.max_drop, frontier, ()))
    if not calibration.statistics.samples:
        raise CalibrationError(
            "max_drop: this calibration keeps no examples to measure the layers on, as one from a file or by another "
            "method than 'auto' does not; hand in batches"
        )
    assert int8.origin is not None
    names = _ordered(measure(int8.origin, calibration.statistics.samples).rows, twins)

    def first(count: int) -> dict[str, str]:
        return dict.fromkeys(names[:count], "for max_drop")

    fails, holds = 0, len(names) + 1
    with tqdm(total=len(names).bit_length(), desc="searching layers", unit="plan", disable=None) as bar:
        while holds - fails > 1:
            count = min((fails + holds) // 2, len(names))
            frontier[count] = demand.of(build.quantized(network, config, calibration, first(count)))
            drop = in_float - frontier[count]
            _tell(f"{count} of {len(names)} layers in float: {frontier[count]:.4g}, a drop of {drop:.3g}")
            fails, holds = (fails, count) if drop <= demand.max_drop else (count, holds)
            bar.update()
    if holds > len(names):
        raise UnsupportedError(
            f"max_drop: with all layers in float the metric is {frontier[len(names)]:.6g}, that of the function itself "
            f"{in_float:.6g}; it must give the same number for the same function"
        )
    chosen = first(holds)
    return Held(chosen, Accuracy(in_float, demand.max_drop, dict(sorted(frontier.items())), tuple(chosen)))


def _ordered(rows: Sequence[LayerError], twins: Twins | None) -> list[str]:
    """The layers, in the order in which they go to float."""

    def worth(row: LayerError) -> float:
        if twins is None:
            return row.error
        costs = twins.in_float.get(row.name, 0.0) - twins.int8.get(row.name, 0.0)
        return row.error / max(costs, 1e-9)

    return [row.name for row in sorted(rows, key=worth, reverse=True)]


def _tell(what: str) -> None:
    tqdm.write(f"max_drop: {what}", file=sys.stderr)
