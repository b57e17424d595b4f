"""GPTQ: the rounding of a weight by the examples' second moments, and the step on networks in 4 bits."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from networks import decibels, images

import jaxq
from jaxq.refine.gptq import in_order

BOUNDS = (-8, 7)


def moments(inputs, rows, mixed, seed):
    """X'X of rows that are all made of `mixed` numbers, with something on its diagonal."""
    x = images(rows, mixed, seed=seed) @ images(mixed, inputs, seed=seed + 1)
    return x.T.astype(np.float64) @ x + 0.01 * rows * np.eye(inputs)


def error(weight, levels, unit, hessian):
    off = weight - levels * unit
    return np.einsum("nk,kl,nl->n", off, hessian, off)


@given(st.integers(1, 300), st.integers(1, 4), st.integers(0, 99))
def test_inputs_that_do_not_move_together_are_rounded_to_the_nearest(inputs, channels, seed):
    weight = images(channels, inputs, seed=seed).astype(np.float64)
    unit = np.full((channels, 1), 0.3)
    hessian = np.diag(1 + np.abs(images(inputs, seed=seed)).astype(np.float64))
    np.testing.assert_array_equal(in_order(weight, unit, hessian, BOUNDS), np.clip(np.rint(weight / unit), *BOUNDS))


@given(st.integers(2, 300), st.integers(0, 99))
def test_levels_lie_within_the_bounds(inputs, seed):
    weight = 9 * images(3, inputs, seed=seed).astype(np.float64)
    levels = in_order(weight, np.full_like(weight, -0.5), moments(inputs, 64, 3, seed), BOUNDS)
    assert np.array_equal(levels, np.rint(levels)) and levels.min() >= -8 and levels.max() <= 7


@pytest.mark.parametrize("inputs", [40, 300])
def test_inputs_that_move_together_make_up_for_one_another(inputs):
    weight, unit = images(16, inputs).astype(np.float64), np.full((16, 1), 0.5)
    hessian = moments(inputs, 512, inputs // 4, 0)
    nearest = np.clip(np.rint(weight / unit), *BOUNDS)
    before, after = (error(weight, q, unit, hessian) for q in (nearest, in_order(weight, unit, hessian, BOUNDS)))
    assert np.all(after < before / 2)


def mlp(params, x):
    return np.float32(1) * (x @ params["up"]).clip(0) @ params["down"]


PARAMS = {"up": images(32, 64) / 6, "down": images(64, 32, seed=1) / 8}
X, NEW = (images(256, 6, seed=seed) @ images(6, 32, seed=3) for seed in (0, 9))


@pytest.mark.parametrize("how", [{"weight_only": True, "group_size": 16}, {}, {"activation_scales": "channel"}])
def test_in_4_bits(how):
    steps = ("channels",) if how.get("activation_scales") else ()
    found = {}
    for recipe in (steps, (*steps, "gptq")):
        config = jaxq.QuantConfig(method="amax", weight_bits=4, recipe=recipe, **how)
        found[recipe] = jaxq.quantize(mlp, PARAMS, [X], config=config)
    nearest, rounded = found.values()
    assert {gain.step: gain.kept for gain in rounded.summary().recipe}["gptq"]
    before, after = (decibels(mlp(PARAMS, NEW), qmodel(NEW)) for qmodel in (nearest, rounded))
    assert after > before + 3


def test_weights_of_8_bits_are_left_alone():
    qmodel = jaxq.quantize(mlp, PARAMS, [X], config=jaxq.QuantConfig(method="amax", recipe="gptq"))
    (gain,) = qmodel.summary().recipe
    assert not gain.kept and gain.after == gain.before


@pytest.mark.parametrize("how", [{"weight_only": True, "group_size": 16}, {}])
def test_biases_corrected_before_are_not_again(how):
    """The step fits the means of the results; on float values they would be corrected to what it took away."""
    after = {}
    for recipe in ("gptq", ("biases", "gptq")):
        config = jaxq.QuantConfig(method="amax", weight_bits=4, recipe=recipe, **how)
        after[recipe] = decibels(mlp(PARAMS, NEW), jaxq.quantize(mlp, PARAMS, [X], config=config)(NEW))
    assert after["biases", "gptq"] == pytest.approx(after["gptq"], abs=1e-3)
