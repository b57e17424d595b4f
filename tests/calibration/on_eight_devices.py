"""Tests that need eight devices: ../test_eight_devices.py runs them in a process that has as many."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from networks import images, mlp, mlp_params

import jaxq
from jaxq.calibration.histogram import empty, from_samples, observe, psum

PARAMS = mlp_params(6, 16, 3)
DEVICES = np.array(jax.devices())
LINE = Mesh(DEVICES, ("batch",))
X = images(48, 6)


def calibrate(batches, mesh=None, fun=mlp, params=PARAMS):
    return jaxq.calibrate(fun, params, batches, mesh=mesh, config=jaxq.QuantConfig(method="mse"))


def split(x, size):
    return [x[i : i + size] for i in range(0, len(x), size)]


def assert_same(ours, theirs):
    assert ours.num_examples == theirs.num_examples
    jax.tree.map(np.testing.assert_array_equal, dict(ours.histograms), dict(theirs.histograms))


@functools.cache
def by_twos():
    """What each of eight devices sees of batches of 16."""
    return calibrate(split(X, 2))


def test_there_are_eight():
    assert len(DEVICES) == 8


@pytest.mark.parametrize(
    "mesh", [LINE, Mesh(DEVICES[::-1].reshape(2, 2, 2), ("a", "b", "c"))], ids=["one axis", "three axes"]
)
def test_a_mesh_counts_what_its_devices_would(mesh):
    assert_same(calibrate([X[:16], X[16:32], X[32:]], mesh), by_twos())


def test_a_mesh_of_some_of_the_devices():
    assert_same(
        calibrate(split(X, 12), Mesh(DEVICES[3:6], ("batch",))),
        calibrate(split(X, 4)),
    )


def test_what_is_left_over_runs_on_one_device():
    assert_same(calibrate([X[:19], X[19:24]], LINE), calibrate([*split(X[:16], 2), X[16:19], X[19:24]]))


def test_a_batch_smaller_than_the_mesh():
    assert_same(calibrate([X[:5], X[5:6]], LINE), calibrate([X[:5], X[5:6]]))


def test_empty_batches():
    assert_same(calibrate([X[:16], X[:0], X[16:32], X[32:], X[:0]], LINE), by_twos())


def with_other_arguments(params, temperature, x, shift, ids):
    return ((x + shift) @ params["w"]) / temperature + params["table"][ids]


def test_arguments_without_a_batch_axis_or_of_other_dtypes():
    """Whole on every device, which counts it as a pass of its own would."""
    params = {"w": images(6, 4), "table": images(5, 4, seed=1)}
    temperature, shift, ids = np.float32(2), images(6, seed=2), np.arange(48, dtype=np.int32) % 5

    def batches(size):
        return [(temperature, X[i : i + size], shift, ids[i : i + size]) for i in range(0, 48, size)]

    over_mesh = calibrate(batches(16), LINE, with_other_arguments, params)
    assert_same(over_mesh, calibrate(batches(2), None, with_other_arguments, params))


def test_bfloat16():
    params, x = {"w": jnp.asarray(images(6, 4), jnp.bfloat16)}, jnp.asarray(X, jnp.bfloat16)

    def fun(params, x):
        return x @ params["w"]

    assert_same(calibrate([x[:16]], LINE, fun, params), calibrate(split(x[:16], 2), None, fun, params))


def test_samples_do_not_depend_on_the_mesh():
    over_mesh, whole = jaxq.calibrate(mlp, PARAMS, [X], mesh=LINE), jaxq.calibrate(mlp, PARAMS, [X])
    jax.tree.map(np.testing.assert_array_equal, over_mesh.statistics.samples, whole.statistics.samples)


def test_a_pass_that_stopped_on_one_device_goes_on_over_a_mesh(tmp_path):
    def calibrate(batches, mesh=None):
        config = jaxq.QuantConfig(method="mse")
        return jaxq.calibrate(mlp, PARAMS, batches, mesh=mesh, config=config, checkpoint=tmp_path / "checkpoint")

    calibrate(split(X[:16], 2))
    assert_same(calibrate([X[16:32], X[32:]], LINE), by_twos())


def test_a_layer_that_makes_nan_on_one_device():
    x = np.abs(X[:16])
    x[11] = -1
    with pytest.raises(jaxq.CalibrationError, match="batch 1: layer 'log' makes NaN"):
        calibrate(
            [np.abs(X[:16]), x], LINE, lambda params, x: jnp.log(x @ params["w"]), {"w": np.eye(6, dtype=np.float32)}
        )


def test_an_observed_value_that_is_infinite_on_one_device():
    x = np.abs(X[:16])
    x[11] = 0
    with pytest.raises(jaxq.CalibrationError, match="batch 0: layer 'div' makes Inf"):
        calibrate([x], LINE, lambda params, x: (1 / x) @ params["w"], {"w": images(6, 4)})


def test_a_fixed_batch():
    def fun(params, x):
        return x @ params["w"] if x.shape[0] < 6 else (x @ params["w"]) * 2

    with pytest.raises(jaxq.UnsupportedError, match="fixed batch"):
        calibrate([X[:16]], LINE, fun, {"w": images(6, 4)})


observe_jit = jax.jit(observe)
psum_jit = jax.jit(
    jax.shard_map(
        lambda x: psum(from_samples(x), "batch"),
        mesh=LINE,
        in_specs=PartitionSpec("batch"),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
)


@pytest.mark.parametrize("broken", [None, np.nan, np.inf])
def test_psum(broken):
    x = X.reshape(8, -1) * np.float32(2) ** np.arange(-4, 4, dtype=np.float32)[:, None]
    if broken is not None:
        x[3, 5] = broken
    jax.tree.map(np.testing.assert_array_equal, psum_jit(x), observe_jit(empty(), x))
