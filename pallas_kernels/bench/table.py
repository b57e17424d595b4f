"""The rows in words: what each kernel took, against its baselines and against the roofline."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# int8 multiplications and additions a second of the tensor cores, dense, by the vendor's datasheets.
PEAKS = {"A100": 624e12, "H100": 1979e12, "H200": 1979e12, "B200": 4500e12}

Row = Mapping[str, Any]


def peak(device_kind: str, bf16: float) -> float:
    """int8 operations a second: by the datasheet where the device has one, else twice the measured rate of bf16."""
    return next((rate for word, rate in PEAKS.items() if word in device_kind), 2 * bf16)


def roofline(operations: int, moved: int, int8_peak: float, bandwidth: float) -> float:
    """The least seconds: those of the arithmetic at its peak, or of the bytes at the bandwidth of a copy."""
    return max(operations / int8_peak, moved / bandwidth)


def lines(rows: Sequence[Row]) -> Iterable[str]:
    """The table of all timed rows, by group, and each group's geometric means."""
    timed = [row for row in rows if row["kind"] == "time" and row["passed"] and "us" in row]
    for group in dict.fromkeys(row["group"] for row in timed):
        members = [row for row in timed if row["group"] == group]
        baselines = list(dict.fromkeys(name for row in members for name in row["baselines"]))
        yield ""
        yield f"{group:<40} {'us':>9} {'spread':>7} {'TOPS':>7} {'roofline':>9}  " + "  ".join(
            f"{'x ' + name:>10}" for name in baselines
        )
        for row in members:
            ratios = (_ratio(row, name) for name in baselines)
            yield (
                f"{row['name']:<40} {row['us']:9.2f} {row['spread']:7.1%} {row['tops']:7.1f} {row['roofline']:9.1%}  "
                + "  ".join(f"{'-' if ratio is None else f'{ratio:.2f}':>10}" for ratio in ratios)
            )
        yield f"{'geometric mean':<75} " + "  ".join(
            f"{_mean([_ratio(row, name) for row in members]):>10}" for name in baselines
        )
        if any(row["count"] > 1 for row in members):
            yield f"{'all layers, as often as the network has them':<75} " + "  ".join(
                f"{_whole(members, name):>10}" for name in baselines
            )


def _ratio(row: Row, baseline: str) -> float | None:
    """How many times as long the baseline takes."""
    theirs = row["baselines"].get(baseline, {}).get("us")
    return None if theirs is None else float(theirs / row["us"])


def _mean(ratios: Sequence[float | None]) -> str:
    known = [ratio for ratio in ratios if ratio is not None]
    return f"{math.exp(sum(map(math.log, known)) / len(known)):.2f}" if known else "-"


def _whole(rows: Sequence[Row], baseline: str) -> str:
    """The ratio of the sums over the layers that have both."""
    both = [row for row in rows if _ratio(row, baseline) is not None]
    ours = sum(row["us"] * row["count"] for row in both)
    theirs = sum(row["baselines"][baseline]["us"] * row["count"] for row in both)
    return f"{theirs / ours:.2f}" if both else "-"
