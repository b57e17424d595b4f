"""How far a calibration can be trusted: what each threshold clips and costs, and whether it still moves."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jaxq.calibration.histogram import Histogram
from jaxq.calibration.observe import Statistics
from jaxq.calibration.select import Tensor, joined, threshold_by
from jaxq.calibration.thresholds import cost

# Fewer samples beyond the percentile than this do not fix it.
TAIL_SAMPLES = 10

# "Settled": the thresholds of half the examples would cost less than this, in every tensor.
SETTLED_DB = 0.1


@dataclass(frozen=True)
class Row:
    """One tensor.

    Attributes:
      name, dtype: of the tensor.
      method, threshold: what was chosen.
      amax: the greatest magnitude seen.
      samples: how many values were seen that are not zero.
      clipped: the share of all values beyond the threshold.
      sqnr: the signal to quantization noise ratio of the tensor in dB, by the histogram.
      moved: the threshold's relative change since at most half of the examples; None with too few batches to tell.
      lost: the dB of SQNR that the threshold of then would cost; None likewise.
      under_sampled: so few samples that fewer than 10 lie beyond the percentile; never at 100, beyond which none can.
    """

    name: str
    dtype: str
    method: str
    threshold: float
    amax: float
    samples: int
    clipped: float
    sqnr: float
    moved: float | None
    lost: float | None
    under_sampled: bool


@dataclass(frozen=True)
class Report:
    """`rows` as data, in program order; printed, a table with advice.

    Attributes:
      num_examples, num_batches: what was counted.
      compared: how many examples the thresholds of `moved` are those of; None with too few batches to tell.
    """

    rows: tuple[Row, ...]
    num_examples: int
    num_batches: int
    compared: int | None

    @property
    def settled(self) -> bool:
        """Whether twice the examples hardly changed a threshold: no tensor would lose 0.1 dB by those of half, and none
        is under-sampled, since a few samples agree by chance. A tensor of zeros alone is settled."""

        def is_settled(row: Row) -> bool:
            enough = row.samples == 0 or not row.under_sampled
            return enough and row.lost is not None and row.lost <= SETTLED_DB

        return all(map(is_settled, self.rows))

    def __str__(self) -> str:
        head = ("tensor", "dtype", "method", "threshold", "amax", "clipped", "SQNR", "moved", "")
        lines = [head, *map(_cells, self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        table.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*(line.rstrip() for line in table), "", *self._advice()])

    def _advice(self) -> list[str]:
        lines = [f"{self.num_examples} examples in {self.num_batches} batches"]
        few = [row.name for row in self.rows if row.under_sampled]
        if few:
            lines.append(f"under-sampled, {len(few)} of {len(self.rows)}: {_some(few)}; calibrate with more examples")
        if self.compared is None:
            lines.append("too few batches to tell whether the thresholds have settled")
        elif self.settled:
            lines.append(f"settled: the thresholds after {self.compared} examples would cost at most {SETTLED_DB} dB")
        else:
            moving = [row.name for row in self.rows if row.lost is not None and row.lost > SETTLED_DB]
            if moving:
                lines.append(
                    f"not settled, {len(moving)} of {len(self.rows)}: {_some(moving)}; the thresholds after "
                    f"{self.compared} examples would cost more than {SETTLED_DB} dB there"
                )
        return lines


def report(statistics: Statistics, chosen: Mapping[Tensor, tuple[str, float]], percentile: float) -> Report:
    """The report on the chosen (method, threshold) of every tensor."""
    total = statistics.num_examples
    earlier = next((shot for shot in reversed(statistics.snapshots) if 2 * shot.num_examples <= total), None)
    then = None if earlier is None else earlier.histograms
    rows = tuple(_row(tensor, *made, statistics.histograms, then, percentile) for tensor, made in chosen.items())
    compared = None if earlier is None else earlier.num_examples
    return Report(rows, total, len(statistics.digests), compared)


def _row(
    tensor: Tensor,
    method: str,
    threshold: float,
    now: Mapping[str, Histogram],
    then: Mapping[str, Histogram] | None,
    percentile: float,
) -> Row:
    histogram = joined(tensor, now)
    host = histogram.to_numpy()
    samples = int(host.counts.sum())
    paid = cost(histogram, threshold, unsigned=tensor.unsigned)
    moved = lost = None
    if then is not None:
        old = threshold_by(tensor, method, then, percentile)
        moved = threshold / old - 1
        lost = abs(paid.sqnr - cost(histogram, old, unsigned=tensor.unsigned).sqnr) if samples else 0.0
    return Row(
        name=tensor.name,
        dtype=tensor.dtype,
        method=method,
        threshold=threshold,
        amax=host.amax,
        samples=samples,
        clipped=paid.clipped,
        sqnr=paid.sqnr,
        moved=moved,
        lost=lost,
        under_sampled=percentile < 100 and samples * (1 - percentile / 100) < TAIL_SAMPLES,
    )


def _cells(row: Row) -> tuple[str, ...]:
    sqnr = f"{row.sqnr:.1f} dB" if math.isfinite(row.sqnr) else "-"
    moved = "" if row.moved is None else f"{row.moved:+.1%}"
    notes = "under-sampled" if row.under_sampled else ""
    numbers = (f"{row.threshold:.4g}", f"{row.amax:.4g}", f"{row.clipped:.4%}")
    return (row.name, row.dtype, row.method, *numbers, sqnr, moved, notes)


def _some(names: Iterable[str]) -> str:
    first = list(names)
    return ", ".join(first[:3]) + (", ..." if len(first) > 3 else "")
