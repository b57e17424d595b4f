"""Thresholds against known values (issue 3), against quantization itself, and by their invariances."""

import cheap
import jax
import numpy as np
import pytest

from jaxq.calibration.histogram import empty, from_samples, merge
from jaxq.calibration.thresholds import threshold

METHODS = ("amax", "entropy", "mse", "percentile")
N = 1_000_000

# Each seed's maximum is the one for which the table was made: heavy tails hang on it.
SAMPLES = {
    "normal": lambda: np.random.default_rng(0).standard_normal(N),  # max 4.73
    "relu": lambda: np.maximum(np.random.default_rng(0).standard_normal(N), 0),
    "laplace": lambda: np.random.default_rng(30).laplace(size=N),  # max 13.16
    "exponential": lambda: np.random.default_rng(29).exponential(size=N),  # max 15.01
    "uniform": lambda: np.random.default_rng(0).random(N),
}
from_samples_jit = cheap.jit(from_samples)
merge_jit = jax.jit(merge)


def of(x):
    return from_samples_jit(np.asarray(x, np.float32))


@pytest.fixture(scope="module")
def samples():
    return {name: draw().astype(np.float32) for name, draw in SAMPLES.items()}


@pytest.fixture(scope="module")
def histograms(samples):
    return {name: of(x) for name, x in samples.items()}


@pytest.mark.parametrize(
    ("name", "method", "expected", "tolerance"),
    [
        ("normal", "mse", 3.93, 0.02),
        ("normal", "percentile", 3.89, 0.02),
        ("normal", "entropy", 4.66, 0.02),
        ("laplace", "mse", 9.80, 0.05),
        ("laplace", "percentile", 9.44, 0.05),
        ("exponential", "mse", 9.93, 0.05),
        ("uniform", "entropy", 1.0, 0.02),
        ("uniform", "mse", 0.996, 0.002),
        ("relu", "entropy", 4.3, 0.1 / 4.3),
    ],
)
def test_oracle_table(histograms, name, method, expected, tolerance):
    assert threshold(histograms[name], method, unsigned=False) == pytest.approx(expected, rel=tolerance)


def test_entropy_moves_with_the_number_of_samples_and_mse_does_not():
    few = of(np.random.default_rng(4).standard_normal(10_000))
    assert threshold(few, "entropy", unsigned=False) == pytest.approx(3.48, rel=0.02)
    assert threshold(few, "mse", unsigned=False) == pytest.approx(3.93, rel=0.02)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("unsigned", [False, True])
def test_mse_is_the_least_error_of_quantization(samples, name, unsigned):
    """Quantize the samples themselves: no threshold of a fine grid is better by more than 1 %."""
    x = np.abs(samples[name][:100_000].astype(np.float64))
    h = of(x)
    levels = 255 if unsigned else 127

    def error(t):
        return np.square(np.minimum(np.rint(x * (levels / t)), levels) * (t / levels) - x).mean()

    grid = np.linspace(0.3, 1, 141) * x.max()
    assert error(threshold(h, "mse", unsigned=unsigned)) <= 1.01 * min(map(error, grid))


def test_the_bound_of_a_relu6_is_its_threshold():
    h = of(np.clip(6 * np.random.default_rng(0).standard_normal(10_000), 0, 6))
    for method in METHODS:
        assert threshold(h, method, unsigned=True) == 6


def test_mse_keeps_outliers_when_the_rest_rounds_to_zero():
    x = np.concatenate([np.random.default_rng(0).random(1000), np.full(10, 1000.0)])
    assert threshold(of(x), "mse", unsigned=False) == 1000


def entropy_by_the_definition(h, groups, smoothing):
    """KL(P || Q) for one candidate at a time, with P and Q written out."""
    counts = h.counts.astype(np.float64)
    best, best_i = np.inf, 0
    for i in range(groups, int(np.flatnonzero(counts)[-1]) + 2):
        p = counts[:i].copy()
        p[-1] += counts[i:].sum()
        starts = np.arange(groups) * i // groups
        filled = counts[:i] > 0
        level = np.add.reduceat(counts[:i], starts) / np.maximum(np.add.reduceat(filled.astype(int), starts), 1)
        q = filled * np.repeat(level, np.diff(starts, append=i))
        p = p / p.sum() + smoothing
        q = q / max(q.sum(), 1) + smoothing
        divergence = np.sum(p * np.log(p / q)) / p.sum()
        if divergence <= best + 1e-12:
            best, best_i = divergence, i
    return min(best_i * h.bin_width, h.amax)


@pytest.mark.parametrize("n", [30, 3000])
@pytest.mark.parametrize("unsigned", [False, True])
def test_entropy_is_its_definition(n, unsigned):
    h = of(np.random.default_rng(n).laplace(size=n))
    expected = entropy_by_the_definition(h.to_numpy(), 256 if unsigned else 128, 1e-7)
    assert threshold(h, "entropy", unsigned=unsigned) == expected


@pytest.mark.parametrize("method", ["amax", "entropy", "mse"])
@pytest.mark.parametrize("unsigned", [False, True])
def test_zeros_do_not_matter(method, unsigned):
    x = np.random.default_rng(0).exponential(size=10_000)
    expected = threshold(of(x), method, unsigned=unsigned)
    assert threshold(of(np.concatenate([x, np.zeros(90_000)])), method, unsigned=unsigned) == expected


@pytest.mark.parametrize("percentile", [50, 90, 99, 99.99, 100])
def test_percentile_agrees_with_numpy(percentile):
    x = np.maximum(np.random.default_rng(0).standard_normal(100_000), 0).astype(np.float32)
    h = of(x)
    expected = np.percentile(x, percentile, method="inverted_cdf")
    actual = threshold(h, "percentile", unsigned=True, percentile=percentile)
    assert max(expected, h.to_numpy().bin_width) <= actual <= expected + h.to_numpy().bin_width


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("unsigned", [False, True])
def test_thresholds_scale_with_the_data(method, unsigned):
    x = np.random.default_rng(0).laplace(size=10_000).astype(np.float32)
    expected = threshold(of(x), method, unsigned=unsigned)
    for k in (-100, -3, 1, 7, 100):
        assert threshold(of(np.ldexp(x, k)), method, unsigned=unsigned) == np.ldexp(expected, k)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("unsigned", [False, True])
def test_thresholds_are_positive_and_at_most_amax(histograms, method, unsigned):
    rng = np.random.default_rng(0)
    few = [of(rng.standard_normal(n) * np.exp(3 * rng.standard_normal(n))) for n in (1, 2, 10, 1000)]
    for h in (*histograms.values(), *few):
        assert 0 < threshold(h, method, unsigned=unsigned) <= float(h.amax)
    assert threshold(histograms["normal"], "amax", unsigned=unsigned) == float(histograms["normal"].amax)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("value", [1.0, 0.1, 6.0, 1.9999, 3e38, 2.0**-126])
def test_a_constant_is_its_own_threshold(method, unsigned, value):
    h = of([value] * 5 + [0.0] * 3)
    assert threshold(h, method, unsigned=unsigned) == float(h.amax)


@pytest.mark.parametrize("method", METHODS)
def test_without_a_nonzero_sample_the_threshold_is_one(method):
    for h in (empty(), of(np.zeros(10)), of([np.nan, np.inf])):
        assert threshold(h, method, unsigned=False) == 1.0


def test_finer_levels_clip_less(histograms):
    """Noise falls with the number of levels, clipping does not; and a higher percentile keeps more."""
    for h in histograms.values():
        assert threshold(h, "mse", unsigned=False) <= threshold(h, "mse", unsigned=True)
        kept = [threshold(h, "percentile", unsigned=False, percentile=p) for p in (90, 99, 99.9, 99.99, 100)]
        assert kept == sorted(kept)
        assert kept[-1] == float(h.amax)


def test_counts_beyond_32_bits_have_the_same_thresholds():
    h = of(np.random.default_rng(0).standard_normal(10_000))
    many = h
    for _ in range(27):
        many = merge_jit(many, many)
    assert many.to_numpy().counts.sum() > 10**12
    for method in METHODS:
        assert threshold(many, method, unsigned=False) == threshold(h, method, unsigned=False)


def test_unknown_method_and_percentile():
    h = of([1.0])
    with pytest.raises(ValueError, match="unknown calibration method 'median'"):
        threshold(h, "median", unsigned=False)
    with pytest.raises(ValueError, match="percentile is 0"):
        threshold(h, "percentile", unsigned=False, percentile=0)
