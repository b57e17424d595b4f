"""Dots that read rows with scales of their own (`activation_scales="token"`): where they stand, what holds of them."""

import cheap
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import decibels, images, mlp, mlp_params, variables

import jaxq
from jaxq.backends import CUSTOM_CALLS
from jaxq.errors import UnsupportedError
from jaxq.plan.lift import lift

TOKEN = jaxq.QuantConfig(method="amax", activation_scales="token")


class Attention(nn.Module):
    """One head of pre-norm attention, and a dense layer that its result takes to integers for a convolution."""

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        query, key, value = (nn.Dense(16, name=name)(y) for name in ("query", "key", "value"))
        weights = nn.softmax(query @ key.swapaxes(-1, -2) / 4)
        x = x + nn.Dense(16, name="output")(weights @ value)
        return nn.Conv(8, (3,), name="conv")(nn.gelu(nn.Dense(32, name="hidden")(x)))


@pytest.fixture(scope="module")
def attention():
    x = images(4, 6, 16)
    params = variables(Attention(), x)
    calibration = jaxq.calibrate(Attention(), params, [x], config=TOKEN)
    return params, calibration, x, jaxq.quantize(Attention(), params, calibration=calibration, config=TOKEN)


def test_what_is_by_row_and_what_is_static(attention):
    qmodel = attention[-1]
    rows = {row.name: row for row in qmodel.summary().nodes}
    by_row = {name for name, row in rows.items() if "per token" in row.fused}
    assert by_row == {f"Attention/{name}" for name in ("{query,key,value}", "output", "hidden")}
    assert rows["Attention/{query,key,value}"].fused == ("per token", "bias", "requantize", "merged:3")
    assert rows["Attention/output"].fused == ("per token", "bias", "residual")
    # The table is that of int8, in the epilogue of the rows, since a convolution reads its result.
    assert rows["Attention/hidden"].fused == ("per token", "bias", "gelu", "requantize")
    static = [row for row in rows.values() if row.op in ("matmul", "conv")]
    assert len(static) == 3 and all(row.precision == "int8" and "per token" not in row.fused for row in static)
    # What query, key and value read is quantized once.
    assert sum(row.op == "row_scale" for row in rows.values()) == 3
    assert all(row.scale is None for row in rows.values() if row.op in ("row_scale", "quantize_rows"))


def test_it_is_near_the_function(attention):
    params, _, _, qmodel = attention
    other = images(4, 6, 16, seed=1)
    assert decibels(cheap.jit(Attention().apply)(params, other), qmodel(other)) > 25


def test_rules_choose_by_layer(attention):
    params, calibration, _, _ = attention
    rules = (jaxq.LayerRule("query", activation_scales="tensor"), jaxq.LayerRule("key", quantize=False))
    config = jaxq.QuantConfig(method="amax", activation_scales="token", rules=rules)
    qmodel = jaxq.quantize(Attention(), params, calibration=calibration, config=config)
    rows = {row.name: row for row in qmodel.summary().nodes}
    assert "per token" not in rows["Attention/query"].fused and rows["Attention/query"].precision == "int8"
    assert rows["Attention/key"].precision == "float"
    assert "per token" in rows["Attention/value"].fused
    with pytest.raises(UnsupportedError, match="LayerRule.*activation_scales='row'"):
        jaxq.LayerRule("query", activation_scales="row")


def test_every_transform_gives_the_same_bits(attention, tmp_path):
    *_, x, qmodel = attention
    expected = np.asarray(qmodel(x))
    np.testing.assert_array_equal(jax.jit(qmodel)(x), expected)
    np.testing.assert_array_equal(jax.jit(jax.vmap(qmodel))(x[:, None])[:, 0], expected)
    qmodel.save(tmp_path / "token.jaxq")
    np.testing.assert_array_equal(jaxq.load(tmp_path / "token.jaxq")(x), expected)
    checks = [jax.export.DisabledSafetyCheck.custom_call(target) for target in CUSTOM_CALLS]
    exported = jax.export.export(jax.jit(qmodel.apply), disabled_checks=checks)(qmodel.params, x)
    np.testing.assert_array_equal(exported.call(qmodel.params, x), expected)


def test_lifted_it_is_float(attention):
    graph = lift(attention[-1].plan.graph)
    assert not {node.op for node in graph.nodes} & {"row_scale", "quantize_rows"}


def test_simulated_rows_are_rounded(attention):
    """Of all layers in int8, the error is about that of the plan."""
    params, _, x, qmodel = attention
    measured = jaxq.sensitivity(qmodel, [x]).decibels
    assert abs(measured - decibels(cheap.jit(Attention().apply)(params, x), qmodel(x))) < 1


# -------------------------------------------------------------------------------------------------------- properties

SIZES = (24, 40, 8)
LINEAR = [weight for weight, _ in mlp_params(*SIZES)]


def homogeneous(weights, x):
    """Without biases: what scales its rows scales its results."""
    return jax.nn.relu(x @ weights[0]) @ weights[1]


@pytest.fixture(scope="module")
def rows():
    """A function of 6 rows by the plan, compiled once for any rows."""
    return jaxq.quantize(homogeneous, LINEAR, [images(8, SIZES[0])], config=TOKEN)


def drawn(seed):
    """Rows of very different sizes, outliers in them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_t(2, (6, SIZES[0])) * 10.0 ** rng.integers(-4, 5, (6, 1))
    return x.astype(np.float32)


seeds = st.integers(0, 2**16)


@settings(max_examples=20, deadline=None)
@given(seeds, st.lists(st.integers(-20, 20), min_size=6, max_size=6))
def test_a_row_times_a_power_of_two_gives_the_result_times_it(rows, seed, exponents):
    x, factors = drawn(seed), np.exp2(np.array(exponents, np.float32))[:, None]
    np.testing.assert_array_equal(rows(x * factors), np.asarray(rows(x)) * factors)


@settings(max_examples=20, deadline=None)
@given(seeds, st.permutations(range(6)))
def test_rows_in_another_order_give_results_in_that_order(rows, seed, order):
    x = drawn(seed)
    np.testing.assert_array_equal(rows(x[order]), np.asarray(rows(x))[order])


@settings(max_examples=10, deadline=None)
@given(seeds, st.sampled_from([1, 2, 3]))
def test_a_row_hangs_on_no_other(rows, seed, size):
    x = drawn(seed)
    parts = [rows(x[i : i + size]) for i in range(0, 6, size)]
    np.testing.assert_array_equal(np.concatenate(parts), rows(x))


def test_rows_that_are_not_finite(rows):
    """NaN counts as 0, an infinity as the largest number, and no row as more than itself."""
    x = drawn(0)
    odd = x.copy()
    odd[0, 3], odd[1, 5], odd[2] = np.nan, -np.inf, 0
    cleaned = odd.copy()
    cleaned[0, 3] = 0
    found = np.asarray(rows(odd))
    assert np.all(np.isfinite(found))
    np.testing.assert_array_equal(found[[0, 3, 4, 5]], np.asarray(rows(cleaned))[[0, 3, 4, 5]])
    np.testing.assert_array_equal(found[2], np.zeros(SIZES[-1]))


def test_it_needs_no_calibrated_scale():
    """One batch of zeros: there is nothing to calibrate, and no threshold in the plan."""
    params = mlp_params(12, 20, 5)
    qmodel = jaxq.quantize(mlp, params, [np.zeros((2, 12), np.float32)], config=TOKEN)
    x = images(16, 12)
    assert decibels(mlp(params, jnp.asarray(x)), qmodel(x)) > 30
    assert qmodel.summary().methods == {}
