"""Small parameters of a region as one array: the same bits, in calls of fewer arrays."""

import jax
import numpy as np
import pytest

import jaxq
from jaxq.backends import cpu
from jaxq.qmodel import QuantizedModel, model_of

pytestmark = pytest.mark.skipif(cpu.available() is not None, reason=str(cpu.available()))


def test_a_bundle_holds_the_small_parameters_of_a_region(small_cnn):
    qmodel = small_cnn.qmodel
    bundled, weights = qmodel._bundled, [name for name in qmodel.params if name.endswith("/weight")]
    (name,) = bundled.keys() - qmodel.params.keys()
    assert bundled.keys() == {name, *weights}
    whole = np.asarray(bundled[name])
    for vector in qmodel.params.keys() - weights:
        values = np.asarray(qmodel.params[vector])
        assert any(np.array_equal(whole[start : start + values.size], values) for start in range(0, whole.size, 16))
    np.testing.assert_array_equal(qmodel(small_cnn.x), qmodel.apply(qmodel.params, small_cnn.x))


def test_parameters_of_all_dtypes_and_shapes(every_node_is_a_region):
    """Tables are bytes; what is added to the tokens of every example has two axes."""
    rng = np.random.default_rng(0)
    params = {
        "first": rng.normal(0, 0.3, (12, 16)).astype(np.float32),
        "second": rng.normal(0, 0.3, (16, 16)).astype(np.float32),
        "third": rng.normal(0, 0.3, (16, 8)).astype(np.float32),
        "fourth": rng.normal(0, 0.3, (8, 8)).astype(np.float32),
        "added": rng.normal(0, 1, (4, 8)).astype(np.float32),
    }

    def function(params, x):
        x = jax.nn.gelu(x @ params["first"])
        x = jax.nn.gelu(x @ params["second"])
        return (jax.nn.relu(x @ params["third"]) + params["added"]) @ params["fourth"]

    x = rng.normal(0, 1, (8, 4, 12)).astype(np.float32)
    qmodel = jaxq.quantize(function, params, [x])
    plan = qmodel.plan
    members = [name for names in plan._bundles.members.values() for name in names]
    arrays = [qmodel.params[name] for name in members]
    assert {array.dtype.name for array in arrays} == {"float32", "uint8"}
    assert {array.shape for array in arrays} >= {(16,), (256,), (1, 4, 8)}
    np.testing.assert_array_equal(qmodel(x), jax.jit(plan.evaluate)(qmodel.params, (x,)))


def test_other_parameters_in_the_same_plan(small_cnn):
    qmodel = small_cnn.qmodel
    half = {name: value / 2 if name.endswith("multiplier") else value for name, value in qmodel.params.items()}
    other = model_of(qmodel.plan, half)
    assert other._bundled.keys() == qmodel._bundled.keys()
    np.testing.assert_array_equal(other(small_cnn.x), qmodel.apply(half, small_cnn.x))
    assert not np.array_equal(other(small_cnn.x), qmodel(small_cnn.x))


def test_the_first_call_is_traced(small_cnn):
    """And the second is not: nothing of the trace is left in the model."""
    qmodel, x = model_of(small_cnn.qmodel.plan, small_cnn.qmodel.params), small_cnn.x
    np.testing.assert_array_equal(jax.jit(lambda x: qmodel(x))(x), small_cnn.qmodel(x))
    np.testing.assert_array_equal(qmodel(x), small_cnn.qmodel(x))


def test_a_model_that_is_an_argument_is_not_bundled(small_cnn):
    def call(qmodel, x):
        return qmodel(x)

    text = str(jax.make_jaxpr(call)(small_cnn.qmodel, small_cnn.x))
    assert "concatenate" not in text
    np.testing.assert_array_equal(jax.jit(call)(small_cnn.qmodel, small_cnn.x), small_cnn.qmodel(small_cnn.x))


def test_a_compiled_model_takes_bundles(small_cnn):
    qmodel = small_cnn.qmodel
    compiled = qmodel.compile(8)
    assert len(compiled._params) < len(qmodel.params)
    np.testing.assert_array_equal(compiled(small_cnn.x), qmodel(small_cnn.x))


def test_parameters_that_the_plan_does_not_take(small_cnn):
    params = small_cnn.qmodel.params
    missing = QuantizedModel({name: params[name] for name in list(params)[1:]}, small_cnn.qmodel.plan)
    with pytest.raises(jaxq.PlanError, match="is missing"):
        missing(small_cnn.x)
