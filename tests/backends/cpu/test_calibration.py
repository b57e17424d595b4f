"""The CPU library computes what calibration defines: its histograms and trials in every bit."""

import cheap
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxq
from jaxq import backends
from jaxq.backends import cpu
from jaxq.calibration.histogram import from_samples
from jaxq.calibration.kernels import XLA, Kernels

pytestmark = pytest.mark.skipif(cpu.available() is not None, reason=f"no CPU kernels: {cpu.available()}")

TINY = float(np.finfo(np.float32).tiny)
SIZES = [0, 1, 3, 63, 64, 65, 1000]  # around the block of 64; each is compiled once


def compiled(kernels):
    return Kernels(jax.jit(kernels.count), jax.jit(kernels.trials, static_argnums=2), jax.jit(kernels.trial_errors))


OURS, THEIRS = compiled(backends.calibration()), compiled(XLA)
reference = cheap.jit(from_samples)

floats = st.floats(width=32) | st.floats(-4, 4, width=32) | st.sampled_from([0.0, -0.0, TINY, TINY / 2, 2.0**-120, 6.0])


def check(x):
    ours, theirs = OURS.count(x), reference(x)
    np.testing.assert_array_equal(ours.counts, theirs.counts)
    assert ours.amax.tobytes() == theirs.amax.tobytes()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from(SIZES), st.integers(-126, 120))
def test_any_values(data, size, exponent):
    some = np.float32(data.draw(st.lists(floats, max_size=min(size, 70))))
    rest = np.random.default_rng(size).standard_normal(size - len(some)).astype(np.float32)
    check(np.concatenate([some, np.ldexp(rest, exponent)]))


@pytest.mark.parametrize("where", [0, 12345, 299_999, None])
def test_many_threads(where):
    """Pieces of 16,384, whose ranges differ, and perhaps an infinite value in one of them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(300_000) * 2.0 ** rng.integers(-40, 40, 300_000).cumsum().clip(-100, 100)
    x = np.where(rng.random(x.size) < 0.3, 0, x).astype(np.float32)
    if where is not None:
        x[where] = np.inf
    check(x.reshape(3, 100, 1000))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_value_of_a_16_bit_type(dtype):
    x = np.arange(2**16).astype(np.uint16).view(dtype)
    check(x)
    check(x[np.isfinite(x.astype(np.float32))])


def test_calibration_calls_it():
    """In the body of a scan, too, whose turns it sees one after another."""

    def fun(params, x):
        x = jax.nn.relu(x @ params["w"])
        return jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ params["v"]), x)

    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(9, 8)).astype(np.float32), "v": rng.normal(size=(8, 8)).astype(np.float32)}
    x = rng.normal(size=(64, 9)).astype(np.float32)
    config = jaxq.QuantConfig(method="mse")
    ours = jaxq.calibrate(fun, params, [x], config=config)
    text = OURS.count.lower(x).as_text()
    assert text.count("@jaxq_histogram") == 1 and "while" not in text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "available", lambda: "left out")
        theirs = jaxq.calibrate(fun, params, [x], config=config)
    jax.tree.map(np.testing.assert_array_equal, dict(ours.histograms), dict(theirs.histograms))
    assert sorted(int(h.counts.sum()) for h in ours.histograms.values()) == [64 * 9, 3 * 64 * 8]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from([0, 1, 65, 1000]), st.sampled_from(["int8", "uint8"]), st.integers(-60, 60))
def test_trials(data, size, dtype, exponent):
    some = np.float32(data.draw(st.lists(floats, max_size=min(size, 70))))
    halves = np.random.default_rng(size).integers(-600, 600, size - len(some)) / 2
    scales = np.ldexp(np.float32([1, 0.3, 7]), exponent)
    x = np.concatenate([some, np.ldexp(np.float32(halves), exponent)])
    ours, theirs = (np.asarray(kernels.trials(x, scales, dtype)) for kernels in (OURS, THEIRS))
    normal = ~((x != 0) & (np.abs(x) < TINY))  # XLA may flush others
    np.testing.assert_array_equal(ours[0].view(np.int32)[normal], theirs[0].view(np.int32)[normal])
    np.testing.assert_array_equal(ours[1:].view(np.int32), theirs[1:].view(np.int32))


@pytest.mark.parametrize("shape", [(2, 0), (3, 7), (5, 3, 100, 300)])
@pytest.mark.parametrize("exponent", [-50, 0, 100])
def test_trial_errors(shape, exponent):
    rng = np.random.default_rng(0)
    y = np.ldexp(
        rng.normal(size=shape[1:])
        + rng.normal(size=shape) * np.logspace(-4, 0, shape[0]).reshape(-1, *[1] * (len(shape) - 1)),
        exponent,
    )
    y = y.astype(np.float32)
    y[1] = y[0]
    flat = y.reshape(len(y), -1).astype(np.float64)
    squares = np.sum((flat[1:] - flat[0]) ** 2, axis=1)
    expected = [np.linalg.norm(flat[0]), *(squares / max(np.sum(flat[0] ** 2), 1e-300))]
    for kernels in (OURS, THEIRS):
        exact, found = kernels.trial_errors(y)
        np.testing.assert_array_equal(exact, y[0])
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert found[1] == 0


@pytest.mark.parametrize("where", [(0, 4), (1, 4)])
def test_trial_errors_of_what_is_not_finite(where):
    y = np.ones((2, 9), np.float32)
    y[where] = np.inf
    for kernels in (OURS, THEIRS):
        assert not np.isfinite(kernels.trial_errors(y)[1]).all()


def test_auto_measures_the_same():
    """A product of one value with itself, whose two operands are disturbed, too."""

    def fun(params, x):
        h = jax.nn.relu(x @ params["w"]) @ params["v"]
        return h @ jnp.swapaxes(h, -1, -2)

    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(9, 8)).astype(np.float32), "v": rng.normal(size=(8, 8)).astype(np.float32)}
    x = rng.laplace(size=(64, 12, 9)).astype(np.float32)
    ours = jaxq.calibrate(fun, params, [x])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "available", lambda: "left out")
        theirs = jaxq.calibrate(fun, params, [x])
    assert ours.errors.keys() == theirs.errors.keys() and len(ours.errors) == 3
    for name, by_threshold in ours.errors.items():
        for threshold, by_reader in by_threshold.items():
            assert by_reader == pytest.approx(theirs.errors[name][threshold], rel=1e-3)
