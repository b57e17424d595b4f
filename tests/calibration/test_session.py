"""`jaxq.calibrate(checkpoint=...)`: what a stopped calibration leaves in the file serves the next."""

import io
import re
import sys
import time

import jax
import numpy as np
import pytest
from networks import images, mlp, mlp_params

import jaxq

BATCHES = [images(4, 6, seed=i) for i in (0, 1, 1, 2)]


def calibrate(batches, path=None, method="auto", seed=0, percentile=99.99, **options):
    config = jaxq.QuantConfig(method=method, percentile=percentile)
    return jaxq.calibrate(mlp, mlp_params(6, 8, 3, seed=seed), batches, config=config, checkpoint=path, **options)


def assert_same(ours, theirs):
    assert ours.num_examples == theirs.num_examples
    assert ours.errors == theirs.errors
    assert ours.statistics.digests == theirs.statistics.digests
    jax.tree.map(np.testing.assert_array_equal, dict(ours.histograms), dict(theirs.histograms))


def stopped(batches, error):
    yield from batches
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the disk is gone")])
def test_a_stopped_calibration_goes_on(tmp_path, error):
    path = tmp_path / "checkpoint"
    with pytest.raises(type(error)):
        calibrate(stopped(BATCHES[:2], error), path)
    assert_same(calibrate(BATCHES, path), calibrate(BATCHES))


def test_a_finished_calibration_counts_nothing_twice(tmp_path):
    path = tmp_path / "checkpoint"
    assert_same(calibrate(BATCHES, path), calibrate(BATCHES, path))


def test_a_checkpoint_of_other_variables(tmp_path):
    path = tmp_path / "checkpoint"
    calibrate(BATCHES, path)
    with pytest.raises(jaxq.CalibrationError, match="another network or of other variables: variable '0/.*differs"):
        calibrate(BATCHES, path, seed=1)


@pytest.mark.parametrize("counted", [1, 3, 4])
def test_a_checkpoint_without_samples_gets_those_that_auto_needs(tmp_path, counted):
    path = tmp_path / "checkpoint"
    calibrate(BATCHES[:counted], path, method="mse")
    ours, theirs = calibrate(BATCHES, path), calibrate(BATCHES)
    assert_same(ours, theirs)
    jax.tree.map(np.testing.assert_array_equal, ours.statistics.samples, theirs.statistics.samples)
    assert ours.thresholds() == theirs.thresholds()


def test_a_checkpoint_without_samples_and_no_batch_to_take_them_from(tmp_path):
    path = tmp_path / "checkpoint"
    calibrate(BATCHES, path, method="mse")
    with pytest.raises(jaxq.CalibrationError, match="kept no samples for 'auto', and no batch came"):
        calibrate([BATCHES[0][:0]], path)


def test_a_checkpoint_that_is_no_path():
    with pytest.raises(jaxq.UnsupportedError, match="checkpoint: takes a path or None, not a int"):
        calibrate(BATCHES, 5)


def test_a_rule_that_matches_nothing_is_said_by_calibrate_too():
    config = jaxq.QuantConfig(method="mse", rules=(jaxq.LayerRule("nowhere"),))
    with pytest.warns(UserWarning, match="nowhere"):
        jaxq.calibrate(mlp, mlp_params(6, 8, 3), BATCHES, config=config)


def test_a_checkpoint_in_no_folder(tmp_path):
    with pytest.raises(jaxq.CalibrationError, match="is no folder"):
        calibrate(BATCHES, tmp_path / "missing" / "checkpoint")


def test_a_network_that_settles_ends_early_and_stays_so(tmp_path):
    path, batches = tmp_path / "checkpoint", [BATCHES[0]] * 40
    once = calibrate(batches, path, percentile=80, until="settled")
    assert once.num_examples < 160
    assert_same(calibrate(batches, path, percentile=80, until="settled"), once)


def test_a_settled_checkpoint_without_samples_reads_what_it_counted(tmp_path):
    path, batches = tmp_path / "checkpoint", [BATCHES[0]] * 40
    calibrate(batches, path, method="mse", percentile=80, until="settled")
    once = calibrate(batches, percentile=80, until="settled")
    assert once.num_examples < 160
    assert_same(calibrate(batches, path, percentile=80, until="settled"), once)


# ----------------------------------------------------------------------------------------------------------- progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Slow(list):
    def __iter__(self):
        for batch in super().__iter__():
            time.sleep(0.15)
            yield batch


def test_progress_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    calibrate(Slow(BATCHES))
    shown = sys.stderr.getvalue()
    assert re.search(r"calibrating:  50%.* 2/4 \[00:\d\d<00:\d\d, .*, 8 examples\]", shown)
    assert re.search(r"calibrating: 100%.* 4/4 \[00:\d\d<00:00, .*, 16 examples\]\n$", shown)


def test_progress_of_a_stopped_generator(monkeypatch):
    """The number of batches is unknown, and what is printed next begins a line."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(KeyboardInterrupt):
        calibrate(stopped(BATCHES[:3], KeyboardInterrupt()))
    assert re.search(r"calibrating: 3batch \[00:\d\d, .*, 12 examples\]\n$", sys.stderr.getvalue())


def test_no_progress_without_a_terminal(capfd):
    calibrate(BATCHES)
    assert capfd.readouterr() == ("", "")
