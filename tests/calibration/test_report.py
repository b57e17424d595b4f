"""The report against numpy on the raw samples, and what "settled" and "under-sampled" say."""

import math

import numpy as np
import pytest
from networks import decibels, images, mlp, mlp_params

import jaxq
from jaxq.config import METHODS

PARAMS = mlp_params(6, 50, 4)
STABLE = [images(512, 6, seed=seed) for seed in range(8)]
LEVELS = {"int8": 127, "uint8": 255}


@pytest.fixture(scope="module")
def calibration():
    return jaxq.calibrate(mlp, PARAMS, STABLE)


@pytest.fixture(scope="module")
def values():
    """What the two tensors hold, by name."""
    x = np.concatenate(STABLE)
    return {"input": x, "0": np.maximum(x @ PARAMS[0][0] + PARAMS[0][1], 0)}


def fake_quantized(x, threshold, levels):
    scale = threshold / levels
    return np.clip(np.rint(x / scale), -levels, levels) * scale


@pytest.mark.parametrize("method", METHODS)
def test_rows_are_what_numpy_finds(calibration, values, method):
    report = calibration.report(method)
    assert [(row.name, row.dtype) for row in report.rows] == [("input", "int8"), ("0", "uint8")]
    assert {row.name: row.threshold for row in report.rows} == calibration.thresholds(method)
    for row in report.rows:
        x = np.abs(values[row.name]).astype(np.float64)
        assert row.method in METHODS[1:] and method in ("auto", row.method)
        assert row.amax == pytest.approx(x.max(), rel=1e-6)
        assert row.samples == pytest.approx(np.count_nonzero(x), rel=1e-4)  # numpy rounds otherwise than XLA
        assert row.clipped == pytest.approx(np.mean(x > row.threshold), abs=1e-4)
        assert row.sqnr == pytest.approx(decibels(x, fake_quantized(x, row.threshold, LEVELS[row.dtype])), abs=0.15)


def test_a_clipping_threshold(calibration, values):
    for row in calibration.report("percentile", percentile=90).rows:
        x = np.abs(values[row.name]).astype(np.float64)
        assert row.clipped == pytest.approx(0.1, abs=1e-3)
        assert row.sqnr == pytest.approx(decibels(x, fake_quantized(x, row.threshold, LEVELS[row.dtype])), abs=0.15)


def test_nothing_is_clipped_by_amax(calibration):
    assert all(row.clipped == 0 and row.threshold == row.amax for row in calibration.report("amax").rows)


def test_under_sampled_layers_are_listed(calibration):
    report = calibration.report("mse")
    assert [row.under_sampled for row in report.rows] == [True, False]  # of 24,576 and about 100,000 nonzero values
    assert "under-sampled, 1 of 2: input; calibrate with more examples" in str(report)
    report = calibration.report("mse", percentile=99)
    assert not any(row.under_sampled for row in report.rows)
    assert "under-sampled" not in str(report)


def test_beyond_percentile_100_there_is_nothing_to_sample(calibration):
    for method in ("percentile", "mse"):
        assert not any(row.under_sampled for row in calibration.report(method, percentile=100).rows)


def test_stable_batches_settle(calibration):
    report = calibration.report("mse", percentile=99)
    assert report.settled
    assert (report.num_examples, report.num_batches, report.compared) == (4096, 8, 2048)
    assert all(abs(row.moved) < 0.1 and row.lost < 0.1 for row in report.rows)
    assert "settled: the thresholds after 2048 examples would cost at most 0.1 dB" in str(report)


def test_what_moved_is_since_half_of_the_examples(calibration):
    half = jaxq.calibrate(mlp, PARAMS, STABLE[:4], config=jaxq.QuantConfig(method="mse"))
    for row in calibration.report("mse").rows:
        assert row.moved == calibration.thresholds("mse")[row.name] / half.thresholds("mse")[row.name] - 1


def test_drifting_batches_do_not_settle():
    drifting = [2**i * images(64, 6, seed=i) for i in range(8)]
    report = jaxq.calibrate(mlp, PARAMS, drifting, config=jaxq.QuantConfig(method="mse")).report("mse")
    assert not report.settled
    assert all(row.moved > 3 and row.lost > 3 for row in report.rows)
    assert "not settled, 2 of 2: input, 0; the thresholds after 256 examples would cost more than 0.1 dB" in str(report)


@pytest.mark.parametrize("value", [3.0, 6.0, 2.0**-4])
def test_nothing_is_clipped_at_the_largest_value_seen(value):
    """Where many values are equal to it and it is the edge of a bin, as after a ReLU6."""
    c = jaxq.calibrate(mlp, PARAMS, [np.full((8, 6), value, np.float32)], config=jaxq.QuantConfig(method="mse"))
    for method in ("amax", "mse"):
        assert c.report(method).rows[0].threshold == value
        assert c.report(method).rows[0].clipped == 0


def test_one_batch_cannot_tell():
    report = jaxq.calibrate(mlp, PARAMS, STABLE[:1], config=jaxq.QuantConfig(method="mse")).report("mse")
    assert report.compared is None and not report.settled
    assert all(row.moved is None and row.lost is None for row in report.rows)
    assert "too few batches to tell whether the thresholds have settled" in str(report)


def test_a_tensor_of_zeros():
    """Nothing is lost on it, and it settles; a dead layer is no reason to calibrate on."""
    params = [(np.zeros_like(PARAMS[0][0]), np.zeros_like(PARAMS[0][1])), PARAMS[1]]
    report = jaxq.calibrate(mlp, params, STABLE, config=jaxq.QuantConfig(method="mse")).report("mse", percentile=99)
    row = report.rows[1]
    assert (row.threshold, row.amax, row.samples, row.clipped, row.moved, row.lost) == (1, 0, 0, 0, 0, 0)
    assert math.isinf(row.sqnr) and report.settled
    assert "inf" not in str(report)


def test_it_is_a_table(calibration):
    lines = str(calibration.report("mse")).splitlines()
    assert lines[0].split() == ["tensor", "dtype", "method", "threshold", "amax", "clipped", "SQNR", "moved"]
    assert lines[2].split()[:3] == ["input", "int8", "mse"] and lines[2].endswith("under-sampled")
    assert lines[3].split()[:3] == ["0", "uint8", "mse"]
    assert lines[5] == "4096 examples in 8 batches"
    assert not any(line != line.rstrip() for line in lines)


def read_until_settled(batches, **config):
    read = []
    c = jaxq.calibrate(
        mlp, PARAMS, (read.append(b) or b for b in batches), config=jaxq.QuantConfig(**config), until="settled"
    )
    return c, len(read)


@pytest.mark.parametrize("method", ["auto", "mse"])
def test_it_stops_when_settled(method):
    c, count = read_until_settled(STABLE * 10, method=method, percentile=99)
    assert count < 20
    assert c.num_examples == 512 * count
    assert c.report("mse", percentile=99).settled


def test_few_samples_of_a_heavy_tail_do_not_settle():
    """Those of half may agree with them by chance."""
    draw = np.random.default_rng(0)
    batches = [draw.laplace(size=(1, 6)).astype(np.float32) for _ in range(100)]
    c, count = read_until_settled(batches, method="mse")
    assert count == 100
    assert all(row.under_sampled for row in c.report("mse").rows) and not c.report("mse").settled


def test_it_goes_on_while_it_drifts():
    _, count = read_until_settled([1.5**i * images(64, 6, seed=i) for i in range(12)], method="mse")
    assert count == 12


def test_until_something_else():
    with pytest.raises(jaxq.UnsupportedError, match="until: takes 'settled' or None, not 'tired'"):
        jaxq.calibrate(mlp, PARAMS, STABLE, until="tired")
