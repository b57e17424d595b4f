"""The fewest layers in float that hold the accuracy."""

import re

import jax
import made_up
import numpy as np
import pytest
from networks import decibels, images

import jaxq
from jaxq.accuracy import _ordered
from jaxq.attribution import LayerError
from jaxq.plan.tune import Twins

CONFIG = jaxq.QuantConfig(method="amax")
SIZES = 6
X = images(32, 6)
PARAMS = {str(i): images(6, 6, seed=i) for i in range(SIZES)}
# One value that "3" reads is far above the others, which then have few of the levels: it errs most, and "5" after it.
for made, read, factor in (("2", "3", 300), ("4", "5", 30)):
    PARAMS[made][:, 3] = factor * np.abs(PARAMS[made][:, 3])
    PARAMS[read][3] /= factor


def network(params, x):
    for i in range(SIZES):
        x = jax.nn.relu(x @ params[str(i)]) if i < SIZES - 1 else x @ params[str(i)]
    return x


EXACT = network(PARAMS, X)


def metric(predict):
    """The signal to noise ratio of the results, at most 50 dB."""
    return min(decibels(EXACT, predict(X)), 50.0) if np.any(predict(X) != EXACT) else 50.0


def quantized(max_drop, **kwargs):
    kwargs = {"config": CONFIG} | kwargs
    return jaxq.quantize(network, PARAMS, [X], max_drop=max_drop, metric=metric, **kwargs)


def in_float(qmodel):
    return {row.name for row in qmodel.summary().nodes if row.precision == "float"}


def test_no_layer_where_int8_is_accurate_enough(capsys):
    qmodel = quantized(49.0)
    assert not in_float(qmodel)
    np.testing.assert_array_equal(qmodel(X), jaxq.quantize(network, PARAMS, [X], config=CONFIG)(X))
    assert qmodel.summary().accuracy.layers == ()
    assert re.search(r"max_drop: all layers in int8: [\d.]+, 50 in float", capsys.readouterr().err)


def test_the_layers_that_err_most(capsys):
    int8 = metric(jaxq.quantize(network, PARAMS, [X], config=CONFIG))
    one, two = (quantized(50.0 - int8 - gain) for gain in (6.0, 30.0))
    assert one.summary().accuracy.layers == ("3",)
    assert two.summary().accuracy.layers == ("3", "5")
    err = capsys.readouterr().err
    for qmodel in (one, two):
        accuracy = qmodel.summary().accuracy
        count = len(accuracy.layers)
        assert in_float(qmodel) == set(accuracy.layers)
        assert metric(qmodel) == pytest.approx(accuracy.frontier[count])
        assert accuracy.drop(count) <= accuracy.max_drop < accuracy.drop(count - 1)
        assert all(f"max_drop: {n} of {SIZES} layers in float" in err for n in accuracy.frontier if n)
        assert "for max_drop: " in str(qmodel.summary())
        assert "accuracy by the number of layers in float: 0: " in str(qmodel.summary())


def test_all_layers_where_nothing_less_will_do():
    qmodel = quantized(0.0)
    assert len(qmodel.summary().accuracy.layers) == SIZES
    assert not [row for row in qmodel.summary().nodes if row.precision == "int8"]
    assert metric(qmodel) == 50.0


def test_it_is_saved(tmp_path):
    qmodel = quantized(20.0)
    qmodel.save(tmp_path / "net.jaxq")
    loaded = jaxq.load(tmp_path / "net.jaxq")
    assert loaded.summary() == qmodel.summary()
    np.testing.assert_array_equal(loaded(X), qmodel(X))


@pytest.fixture
def times(monkeypatch, tmp_path):
    """Sets what whole networks take; every layer alone takes 1 ms."""
    monkeypatch.setenv("JAXQ_CACHE_DIR", str(tmp_path))
    return lambda **whole: made_up.set_times(monkeypatch, lambda what: 1e-3, whole)


def test_the_fastest_that_is_accurate_enough(times):
    times(int8=2.0, float=1.0)
    qmodel = quantized(20.0, tune="fast")
    assert qmodel.summary().tuning.chosen == "float"
    times(int8=1.0, float=2.0)
    qmodel = quantized(20.0, tune="fast")
    summary = qmodel.summary()
    assert summary.tuning.chosen == "int8"
    assert set(summary.accuracy.layers) <= in_float(qmodel) and summary.accuracy.layers
    assert summary.accuracy.drop(len(summary.accuracy.layers)) <= 20.0


def test_a_calibration_serves_while_it_holds_its_examples(tmp_path):
    calibration = jaxq.calibrate(network, PARAMS, [X])
    qmodel = jaxq.quantize(network, PARAMS, calibration=calibration, max_drop=20.0, metric=metric)
    assert metric(qmodel) >= 30.0
    calibration.save(tmp_path / "net.calibration")
    loaded = jaxq.Calibration.load(tmp_path / "net.calibration")
    with pytest.raises(jaxq.CalibrationError, match="max_drop: this calibration keeps no examples"):
        jaxq.quantize(network, PARAMS, calibration=loaded, max_drop=20.0, metric=metric)


@pytest.mark.parametrize("max_drop", [None, -0.1, "1 %", True, float("nan"), float("inf")])
def test_a_drop_that_is_none(max_drop):
    with pytest.raises(jaxq.UnsupportedError, match="max_drop: takes a number from 0 on"):
        jaxq.quantize(network, PARAMS, [X], max_drop=max_drop, metric=metric)


def test_a_metric_that_is_none():
    for given, says in ((None, "takes a function"), (0.5, "takes a function"), (lambda _: "good", "returned 'good'")):
        with pytest.raises(jaxq.UnsupportedError, match=f"metric: {says}"):
            jaxq.quantize(network, PARAMS, [X], max_drop=0.1, metric=given)


def test_a_metric_that_is_not_one_number_for_one_function():
    numbers = iter(range(100, 0, -1))
    with pytest.raises(jaxq.UnsupportedError, match="must give the same number for the same function"):
        jaxq.quantize(network, PARAMS, [X], config=CONFIG, max_drop=0.5, metric=lambda _: next(numbers))


def test_where_tuning_measured_times_they_count():
    """What float costs nothing goes there first, then what errs most for each second that it costs."""
    errors = {"cheap": 0.1, "dear": 0.3, "free": 1e-6}
    twins = Twins({"cheap": 1.0, "dear": 1.0, "free": 2.0}, {"cheap": 2.0, "dear": 9.0, "free": 1.0})
    rows = [LayerError(name, "dot", error, 0.0) for name, error in errors.items()]
    assert _ordered(rows, None) == ["dear", "cheap", "free"]
    assert _ordered(rows, twins) == ["free", "cheap", "dear"]
