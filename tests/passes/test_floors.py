"""What gelu and the like read: lower values than their floor count as that, in histograms and in the integers."""

import everywhere
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import decibels, images

import jaxq
from jaxq.graph.evaluate import evaluate
from jaxq.passes import floors as floors_module
from jaxq.passes.floors import floors
from jaxq.plan.lift import lift

WIDTH, HIDDEN, EXAMPLES = 24, 96, 256
X, NEW = images(EXAMPLES, WIDTH), images(EXAMPLES, WIDTH, seed=7)
# Far more of it below zero than above.
PARAMS = {"up": images(WIDTH, HIDDEN), "bias": -1 - np.abs(images(HIDDEN)), "down": images(HIDDEN, 8, seed=1) / 7}


def network(function):
    def mlp(params, x):
        return function(x @ params["up"] + params["bias"]) @ params["down"]

    return mlp


def quantized(fun, **config):
    return jaxq.quantize(fun, PARAMS, [X], config=jaxq.QuantConfig(**{"method": "amax"} | config))


def floors_of(fun):
    return {node.name: floor for node, floor in floors(quantized(fun).origin.graph).items()}


@pytest.mark.parametrize(
    ("function", "floor"),
    [(jax.nn.gelu, -3.2), (jax.nn.silu, -7.5), (jax.nn.hard_swish, -3.0), (jax.nn.elu, -4.2)],
    ids=["gelu", "silu", "hard_swish", "elu"],
)
def test_where_functions_begin(function, floor):
    (found,) = floors_of(network(function)).values()
    assert found == pytest.approx(floor, abs=0.1)
    x = np.linspace(-40, found, 99, dtype=np.float32)
    assert np.ptp(np.asarray(function(x))) <= -np.min(np.asarray(function(np.linspace(-9, 0, 999)))) / 60


@pytest.mark.parametrize("function", [jnp.tanh, jax.nn.sigmoid])
def test_functions_that_begin_nowhere(function):
    assert not floors_of(network(function))


@pytest.mark.parametrize(("sign", "found"), [(1, True), (-1, False)])
def test_functions_that_fall(sign, found):
    """The sign of what no layer makes cannot go into one."""

    def fun(params, x):
        return jax.nn.gelu(sign * x) @ params["up"]

    (function,) = (node for node in quantized(fun).origin.graph.nodes if node.op == "elementwise")
    assert np.isfinite(floors_module.flat_below(function)) == found


def read_twice(params, x):
    hidden = x @ params["up"] + params["bias"]
    return (jax.nn.gelu(hidden) + hidden) @ params["down"] + (hidden @ params["down"])


def a_result(params, x):
    hidden = x @ params["up"] + params["bias"]
    return hidden, jax.nn.gelu(hidden) @ params["down"]


@pytest.mark.parametrize("fun", [read_twice, a_result])
def test_values_that_others_see(fun):
    assert not floors_of(fun)


def hidden(qmodel):
    """What the integers of the first dot's results stand for."""
    choices = qmodel.origin.choices.qtypes
    return next(choices[name] for name in choices if name.startswith("up") or "dot" in name)


def test_the_integers_begin_at_the_floor():
    fun = network(jax.nn.gelu)
    plain, floored = (quantized(fun, activation_scales=kind) for kind in ("tensor", "auto"))
    before, after = hidden(plain), hidden(floored)
    assert before.dtype == after.dtype == "int8" and before.zero_point == 0
    assert -3.3 < after.scale * (-127 - after.zero_point) < -3.0
    assert after.scale < before.scale
    exact = fun(PARAMS, NEW)
    assert decibels(exact, floored(NEW)) > decibels(exact, plain(NEW)) + 1


def test_all_give_the_same_bits(tmp_path):
    qmodel = quantized(network(jax.nn.gelu))
    assert hidden(qmodel).zero_point
    assert [row.fused for row in qmodel.summary().nodes if row.op == "dot"] == [("bias", "gelu", "requantize"), ()]
    everywhere.check(qmodel, NEW, tmp_path)


def test_lifted_from_the_plan_it_is_the_function():
    """The table alone tells the zero point of what it reads."""
    qmodel = quantized(network(jax.nn.gelu))
    graph = lift(qmodel.plan.graph)
    (found,) = evaluate(graph.bind(EXAMPLES), jax.device_put(graph.params), [NEW])
    assert decibels(network(jax.nn.gelu)(PARAMS, NEW), found) > 30


def test_lifted_of_merged_layers(tmp_path):
    """Two layers read x, and two functions each of them, so that no table is in their epilogue."""
    params = PARAMS | {"other": images(WIDTH, HIDDEN, seed=2)}

    def fun(params, x):
        a, b = x @ params["up"] + params["bias"], x @ params["other"] + params["bias"]
        return sum(f(y) @ params["down"] for f in (jax.nn.gelu, jax.nn.silu) for y in (a, b))

    qmodel = jaxq.quantize(fun, params, [X], config=jaxq.QuantConfig(method="amax"))
    graph = lift(qmodel.plan.graph)
    (found,) = evaluate(graph.bind(EXAMPLES), jax.device_put(graph.params), [NEW])
    assert decibels(fun(params, NEW), found) > 30
    assert decibels(fun(params, NEW), qmodel(NEW)) > 25


def test_functions_without_a_floor_are_lifted_without_a_zero_point():
    """On narrow inputs many zero points fit a sigmoid's table."""
    narrow = PARAMS | {"up": PARAMS["up"] / 500, "bias": np.zeros(HIDDEN, np.float32)}
    qmodel = jaxq.quantize(network(jax.nn.sigmoid), narrow, [X], config=jaxq.QuantConfig(method="amax"))
    graph = lift(qmodel.plan.graph)
    (bias,) = (node.get("bias") for node in graph.nodes if node.op == "dot" and node.aval.shape[-1] == HIDDEN)
    assert bias is None or np.abs(bias.value).max() < 1e-6


@pytest.mark.parametrize("bias", [0, -3, -8])
@pytest.mark.parametrize("method", ["amax", "mse", "entropy", "percentile", "auto"])
def test_every_method_gains(method, bias):
    """What is below the floor is no value that a threshold is chosen by. (Where clipping makes nearly all of the
    error, as by entropy, finer levels bring nothing.)"""
    fun, params = network(jax.nn.gelu), PARAMS | {"bias": bias - np.abs(images(HIDDEN))}
    plain, floored = (
        jaxq.quantize(fun, params, [X], config=jaxq.QuantConfig(method=method, activation_scales=kind))
        for kind in ("tensor", "auto")
    )
    exact = fun(params, NEW)
    assert decibels(exact, floored(NEW)) > decibels(exact, plain(NEW)) - 1


def test_a_rule_for_the_layer_gives_it_no_floor():
    rules = (jaxq.LayerRule("^up$", activation_scales="tensor"),)
    assert hidden(quantized(network(jax.nn.gelu), rules=rules)).zero_point == 0


def test_histograms_count_what_is_lower_as_the_floor():
    calibration = jaxq.calibrate(network(jax.nn.gelu), PARAMS, [X])
    (floor,) = floors_of(network(jax.nn.gelu)).values()
    before = X @ PARAMS["up"] + PARAMS["bias"]
    (histogram,) = (h for name, h in calibration.histograms.items() if "add" in name or "up" in name)
    assert before.min() < -10 < floor
    assert histogram.amax == pytest.approx(max(-floor, before.max()), rel=1e-6)
