"""What measuring chooses. The times are made up: the choice is what they make it, on any machine."""

import re

import cheap
import jax
import made_up
import networks
import numpy as np
import pytest
from flax import linen as nn
from networks import decibels, images

import jaxq
from jaxq.plan import tune

WEIGHTS = {
    name: images(3, 3, inputs, outputs, seed=i) for i, (name, inputs, outputs) in enumerate([("a", 3, 8), ("b", 8, 16)])
} | {"c": images(16, 5, seed=3)}
X = images(4, 8, 8, 3)


def network(params, x):
    for name in "ab":
        x = jax.nn.relu(
            jax.lax.conv_general_dilated(x, params[name], (1, 1), "SAME", None, None, ("NHWC", "HWIO", "NHWC"))
        )
    return x.mean((1, 2)) @ params["c"]


@pytest.fixture
def times(monkeypatch, tmp_path):
    """Sets what every comparison gives: seconds by a regular expression on what is timed, 1 ms for all else."""
    monkeypatch.setenv("JAXQ_CACHE_DIR", str(tmp_path))

    def set_times(whole, **by_pattern):
        patterns = {pattern.replace("_", ".*"): seconds for pattern, seconds in by_pattern.items()}
        alone = lambda what: next((s for p, s in patterns.items() if re.match(p, what)), 1e-3)  # noqa: E731
        return made_up.set_times(monkeypatch, alone, whole)

    return set_times


def tuned(tune="fast", **kwargs):
    return jaxq.quantize(network, WEIGHTS, [X], config=jaxq.QuantConfig(method="mse"), tune=tune, **kwargs)


def precisions(qmodel):
    return {row.name: row.precision for row in qmodel.summary().nodes if row.op in ("conv", "dot")}


def test_int8_where_it_is_as_fast(times):
    times({"int8": 1.02, "float": 1.0, "function": 0.5})
    qmodel = tuned()
    plain = jaxq.quantize(network, WEIGHTS, [X], config=jaxq.QuantConfig(method="mse"))
    np.testing.assert_array_equal(qmodel(X), plain(X))
    assert qmodel.summary().tuning.chosen == "int8"
    assert "tuned: int8, at batch 4 on" in str(qmodel.summary())
    assert plain.summary().tuning is None


def test_float_where_int8_never_pays(times, tmp_path):
    times({"int8": 3.0, "float": 1.0}, conv_int8=5e-3, dot_int8=5e-3)
    qmodel = tuned()
    assert set(precisions(qmodel).values()) == {"float"}
    assert all(np.dtype(value.dtype) != np.int8 for value in jax.tree.leaves(qmodel.params))
    np.testing.assert_allclose(qmodel(X), cheap.jit(network)(WEIGHTS, X), rtol=1e-5, atol=1e-5)
    assert "float is faster: 1 ms alone, 5 ms quantized" in str(qmodel.summary())
    qmodel.save(tmp_path / "net.jaxq")
    loaded = jaxq.load(tmp_path / "net.jaxq")
    np.testing.assert_array_equal(loaded(X), qmodel(X))
    assert loaded.summary() == qmodel.summary()


def test_the_layers_in_float_where_int8_loses(times):
    """The second conv alone, which its borders do not outweigh."""
    whole = {"int8": 3.0, "float": 2.0, "mixed": 1.0}
    faster = {"conv_ of xint8": 1e-4, "dot_ of xuint8": 1e-4, "sum_ of xuint8": 1e-4}
    times(whole, **faster, **{"conv_ of xuint8": 9e-3, "quantize": 1e-5, "dequantize": 1e-5})
    qmodel = tuned()
    assert precisions(qmodel) == {"a": "int8", "b": "float", "c": "int8"}
    assert qmodel.summary().tuning.seconds == {"int8": 3.0, "float": 2.0, "mixed": 1.0, "function": 9.0}
    assert decibels(cheap.jit(network)(WEIGHTS, X), qmodel(X)) > 30


def test_no_layer_where_the_borders_outweigh_it(times):
    whole = {"int8": 1.0, "float": 2.0}
    times(whole, **{"conv_ of xuint8": 2e-3, "quantize": 1e-2, "dequantize": 1e-2})
    assert tuned().summary().tuning.seconds.keys() == {"int8", "float", "function"}


def test_the_batch_size(times):
    timed = times({"int8": 1.0})
    assert tuned(tune_batch=7).summary().tuning.batch == 7
    assert timed and all("7, " in what for what in timed if what.startswith("conv"))


def test_real_times(monkeypatch, tmp_path):
    """Whatever they are: a plan that runs, timings in the cache, and the same ones taken from there."""
    monkeypatch.setenv("JAXQ_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tune.Budget, "networks", 0.5)
    for part in ("layers", "tactics"):  # so that all is timed at the first time, however busy the machine
        monkeypatch.setattr(tune.Budget, part, 600.0)
    qmodel = tuned()
    tuning = qmodel.summary().tuning
    assert tuning.chosen in tuning.seconds
    assert tuning.layers
    exact = cheap.jit(network)(WEIGHTS, X)
    assert np.linalg.norm(exact - qmodel(X)) < 0.1 * np.linalg.norm(exact)  # 0 in float
    assert tuned().summary().tuning.timings.items() >= tuning.timings.items()


@pytest.mark.parametrize("given", ["quick", None, 0, -1.0, float("inf"), True])
def test_budgets_that_are_none(given):
    with pytest.raises(jaxq.UnsupportedError, match=r"tune: takes one of \('off', 'fast', 'full'\) or a number"):
        jaxq.quantize(network, WEIGHTS, [X], tune=given)
    with pytest.raises(jaxq.UnsupportedError, match="tune_batch: takes a positive integer"):
        jaxq.quantize(network, WEIGHTS, [X], tune="fast", tune_batch=0)


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        return nn.RNN(nn.SimpleCell(8))(nn.gelu(nn.Dense(8)(x)))


@pytest.mark.parametrize(("model", "shape"), [(networks.SmallCNN(), (4, 12, 12, 3)), (Attention(), (4, 5, 8))])
def test_a_plan_in_float_is_the_function(times, model, shape):
    """Concatenations, residuals, tables, products of values and loops, too."""
    times({"float": 1.0, "int8": 2.0})
    x = images(*shape)
    variables = networks.variables(model, x)
    qmodel = jaxq.quantize(model, variables, [x], config=jaxq.QuantConfig(method="mse"), tune="fast")
    assert not [row for row in qmodel.summary().nodes if row.precision == "int8"]
    np.testing.assert_allclose(qmodel(x), cheap.jit(model.apply)(variables, x), rtol=1e-4, atol=1e-5)
