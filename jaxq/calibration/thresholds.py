"""From a histogram of |x| to a threshold: the magnitude of the last quantized level, beyond which values saturate.

Everything is computed in units of bins, by prefix sums over them, for all candidates at once. So data scaled by 2^k
have thresholds scaled by exactly 2^k.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxq.calibration.histogram import NUM_BINS, Histogram, HostHistogram

_SMOOTHING = 1e-7  # what the entropy method adds to every bin of P and Q, whose mass is 1
_ROUNDING = 1e-12  # divergences closer than this are ties


def threshold(
    histogram: Histogram, method: str, *, unsigned: bool, percentile: float = 99.99, floor: float | None = None
) -> float:
    """The threshold of a tensor, in (0, amax], by "amax", "entropy", "mse" or "percentile".

    `unsigned` says that the tensor is never negative and is quantized to uint8. If all samples are zeros, or there are
    none, every scale represents them exactly, and the threshold is 1.

    Lower values than `floor`, a negative number, were counted as it. A threshold that covers it represents them all
    exactly: its bin counts as zeros, and the threshold is not less, if there are such values.
    """
    h = histogram.to_numpy()
    if h.amax == 0:
        return 1.0
    if floor is None or h.amax < -floor:
        return _threshold(h, method, unsigned, percentile)
    rest = h.as_zeros(-floor)
    return max(_threshold(rest, method, unsigned, percentile), -floor) if rest.counts.any() else -floor


def _threshold(h: HostHistogram, method: str, unsigned: bool, percentile: float) -> float:
    amax = h.amax / h.bin_width
    match method:
        case "amax":
            bins = amax
        case "entropy":
            bins = _entropy(h.counts, groups=256 if unsigned else 128)
        case "mse":
            bins = _mse(h.counts, amax, levels=255 if unsigned else 127)
        case "percentile":
            bins = _percentile(h.counts, h.zeros, percentile)
        case _:
            raise ValueError(f"unknown calibration method {method!r}: it is 'amax', 'entropy', 'mse' or 'percentile'")
    return min(bins, amax) * h.bin_width


@dataclass(frozen=True)
class Cost:
    """What a threshold costs. `clipped`: the share of all samples beyond it; `sqnr`: the signal to quantization noise
    ratio in dB, by the error model of "mse"; infinite where all samples are zeros."""

    clipped: float
    sqnr: float


def cost(histogram: Histogram, threshold: float, *, unsigned: bool) -> Cost:
    """The cost of quantizing what the histogram counted with the scale of `threshold`."""
    h = histogram.to_numpy()
    if h.amax == 0:
        return Cost(0.0, math.inf)
    t = np.array([threshold / h.bin_width])
    edge = np.arange(NUM_BINS)
    signal = np.sum(h.counts * (edge + 0.5) ** 2)
    clipped = np.sum(h.counts[edge >= t]) if threshold < h.amax else 0  # amax may be the lower edge of its bin
    noise = _squared_error(h.counts, t, levels=255 if unsigned else 127)[0]
    return Cost(float(clipped / (h.zeros + h.counts.sum())), float(10 * np.log10(signal / noise)))


def _percentile(counts: NDArray[np.int64], zeros: int, percentile: float) -> float:
    """The upper edge of the bin in which `percentile` % of all samples, zeros among them, are reached.

    Source: arXiv 2004.09602, "Calibration". It differs where zeros alone are that many: the threshold must be positive,
    and is then the upper edge of the first bin that is not empty.
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile is {percentile}, but must be in (0, 100]")
    cumulative = np.cumsum(counts)
    wanted = percentile / 100 * (zeros + cumulative[-1]) - zeros
    return float(np.searchsorted(cumulative, max(wanted, 1.0)) + 1)


def _mse(counts: NDArray[np.int64], amax: float, levels: int) -> float:
    """The t, an upper edge of a bin or amax, of the least squared error after quantization with step t / levels.

    Source: the "mse" of pytorch-quantization, the tool that came with arXiv 2004.09602. It differs in that no bin is
    quantized, which would be quadratic in their number. The error at x, the middle of a bin, is taken for
        x^2          where x < step / 2: it rounds to zero,
        (x - t)^2    where x >= t - step / 2: it rounds to t or saturates there,
        step^2 / 12  in between: rounding noise.
    So where nearly all rounds to zero (heavy tails) or to t (a constant, the bound of a ReLU6), where noise is no model
    of the error, the error is exact.
    """
    t = np.minimum(np.arange(1, NUM_BINS + 1), amax)
    return float(t[np.argmin(_squared_error(counts, t, levels))])


def _squared_error(counts: NDArray[np.int64], t: NDArray[np.float64], levels: int) -> NDArray[np.float64]:
    """The summed squared error of all samples for every threshold in `t`, by the model of `_mse`."""
    x = np.arange(NUM_BINS) + 0.5
    n, nx, nxx = (_prefix(counts * x**power) for power in range(3))
    step = t / levels
    to_zero, below = np.searchsorted(x, step / 2), np.searchsorted(x, t - step / 2)
    noise = (n[below] - n[to_zero]) * step**2 / 12
    saturated = (nxx[-1] - nxx[below]) - 2 * t * (nx[-1] - nx[below]) + t**2 * (n[-1] - n[below])
    return nxx[to_zero] + noise + saturated


def _entropy(counts: NDArray[np.int64], groups: int) -> float:
    """The number i of bins to keep, `groups` at least, that makes KL(P || Q) least.

    P is the first i bins, with all outliers beyond them added to the last. Q is the same bins without the outliers,
    merged to `groups` of equal width (to a bin), each spread evenly over those of its bins that are not empty.

    Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017, S7310. It differs in that
      * exact zeros are left out: every scale represents them, and after a ReLU they dominate both distributions, so
        that the threshold collapses;
      * P and Q are smoothed relative to their mass: Q may be empty where P holds the outliers, which S7310 leaves
        open, and smoothing by a count would weigh more the fewer the samples;
      * ties go to the larger threshold, for nothing then speaks for clipping;
      * the threshold is the upper edge of the last kept bin, not its middle, so that what is kept is not clipped;
      * an unsigned tensor has 256 groups.

    The sum of p log p is a prefix sum over bins, but for the last. The sum of p log q is one over groups: with the
    smoothing s, q is mass / n + s on the n bins of a group that are not empty, and s on the others.
    """
    cumulative, nonempty = _prefix(counts), _prefix(counts > 0)
    total = cumulative[-1]
    candidates = np.flatnonzero(counts)[-1] + 2 - groups
    i, edges = (rows[:candidates] for rows in _groupings(groups))
    outliers = (total - cumulative[i]) / total

    p = counts / total + _SMOOTHING
    last = p[i - 1]
    p_log_p = _prefix(_xlogx(p))[i] - _xlogx(last) + _xlogx(last + outliers)

    mass = np.diff(cumulative[edges]) / total
    n = np.diff(nonempty[edges])
    kept = np.maximum(cumulative[i], 1) / total
    log_q = np.log(mass / np.maximum(n, 1) / kept[:, None] + _SMOOTHING)
    log_q_last = np.where(counts[i - 1] > 0, log_q[:, -1], np.log(_SMOOTHING))
    p_log_q = ((mass + _SMOOTHING * n) * log_q).sum(axis=1) + outliers * log_q_last
    p_log_q += (i - nonempty[i]) * _xlogx(_SMOOTHING)

    divergence = (p_log_p - p_log_q) / (1 + _SMOOTHING * i)
    return float(i[divergence <= divergence.min() + _ROUNDING][-1])


@cache
def _groupings(groups: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each i from `groups` to all bins, and as rows the edges that cut the first i bins into `groups`."""
    i = np.arange(groups, NUM_BINS + 1)
    return i, i[:, None] * np.arange(groups + 1) // groups


def _prefix(x: NDArray[Any]) -> NDArray[Any]:
    """Sums over the first 0, 1, 2, ... elements."""
    return np.concatenate([np.zeros(1, x.dtype), np.cumsum(x)])


def _xlogx(x: NDArray[np.float64] | float) -> NDArray[np.float64]:
    return np.asarray(x * np.log(x))
