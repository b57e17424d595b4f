"""The bodies of scan, while and cond: int8 with constant weights, calibrated turn by turn, the same in every bit."""

import cheap
import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from jax import lax
from networks import images, variables

import jaxq
from jaxq import passes
from jaxq.calibration.batches import Batches
from jaxq.calibration.observe import observe_all
from jaxq.config import LayerRule, QuantConfig
from jaxq.errors import CalibrationError, UnsupportedError
from jaxq.graph.node import CONTROL
from jaxq.graph.trace import trace
from jaxq.passes import scales
from jaxq.passes.place import place

WEIGHTS = {name: images(6, 6, seed=seed) / 3 for seed, name in enumerate("abc")}


def rnn(p, x):
    """h = relu(x a + h b) over axis 1, and h c of every turn."""

    def step(h, x):
        h = jnp.maximum(x @ p["a"] + h @ p["b"], 0)
        return h, h @ p["c"]

    ys = lax.scan(step, jnp.zeros_like(x[:, 0]), jnp.moveaxis(x, 1, 0))[1]
    return jnp.moveaxis(ys, 0, 1)


def fixed_point(p, x):
    """z = relu(z a + x), until it hardly changes."""

    def turn(state):
        i, _, z = state
        return i + 1, z, jnp.maximum(z @ p["a"] + x, 0)

    def goes_on(state):
        i, before, z = state
        return (i < 4) | (jnp.max(jnp.abs(z - before)) > 10)

    return lax.while_loop(goes_on, turn, (0, jnp.zeros_like(x), x))[2]


def branches(p, x, flag):
    return lax.cond(flag, lambda x: jax.nn.relu(x @ p["a"]) @ p["b"], lambda x: x @ p["c"], jnp.sin(x))


TRUE, FALSE = np.bool_(True), np.bool_(False)
X, STEPS = images(8, 6), images(8, 5, 6)
CASES = {
    "rnn": (rnn, [(STEPS,)]),
    "while": (fixed_point, [(X,)]),
    "cond": (branches, [(X, TRUE), (X, FALSE)]),
}


@pytest.fixture(scope="module")
def calibrated():
    return {name: jaxq.calibrate(fun, WEIGHTS, batches) for name, (fun, batches) in CASES.items()}


@pytest.fixture(scope="module")
def quantized(calibrated):
    return {name: jaxq.quantize(fun, WEIGHTS, calibration=calibrated[name]) for name, (fun, _) in CASES.items()}


def rows_of(qmodel, op="dot"):
    return [row for row in qmodel.summary().nodes if row.op == op]


def oracle(qmodel, *args):
    return jax.jit(qmodel.plan.evaluate)(qmodel.params, args)


@pytest.mark.parametrize("case", CASES)
def test_the_dots_of_bodies_are_int8_and_the_bits_those_of_the_oracle(case, quantized, tmp_path):
    fun, batches = CASES[case]
    qmodel = quantized[case]
    assert all(row.precision == "int8" for row in rows_of(qmodel))
    assert {row.name for row in rows_of(qmodel)} == {"rnn": {"a", "b", "c"}, "while": {"a"}, "cond": {*"abc"}}[case]
    qmodel.save(tmp_path / "net.jaxq")
    loaded = jaxq.load(tmp_path / "net.jaxq")
    exact = cheap.jit(fun)
    for args in batches:
        y = qmodel(*args)
        np.testing.assert_array_equal(y, oracle(qmodel, *args))
        np.testing.assert_array_equal(y, loaded(*args))
        assert networks.decibels(exact(WEIGHTS, *args), y) > 30
        fewer = (args[0][:3], *args[1:])  # another batch size
        if case != "while":  # which makes as many turns as its worst example needs
            np.testing.assert_array_equal(qmodel(*fewer), y[:3])


def test_vmap(quantized):
    xs = STEPS.reshape(2, 4, 5, 6)
    np.testing.assert_array_equal(jax.vmap(quantized["rnn"])(xs).reshape(8, 5, 6), quantized["rnn"](STEPS))


@pytest.mark.parametrize("case", CASES)
def test_weights_in_bodies_are_arguments(case, quantized):
    qmodel = quantized[case]
    args = CASES[case][1][0]
    assert {"a/weight"} <= qmodel.params.keys()
    zeros = {name: np.zeros(array.shape, array.dtype) for name, array in qmodel.params.items()}
    assert not np.array_equal(qmodel.apply(zeros, *args), qmodel(*args))
    closed = jax.make_jaxpr(qmodel.apply)(qmodel.params, *args)
    assert not any(np.shape(array) for array in closed.consts)
    int8 = [eqn for eqn in networks.equations(closed.jaxpr) if eqn.primitive.name == "dot_general"]
    assert {str(var.aval.dtype) for eqn in int8 for var in eqn.invars} == {"int8"}
    with pytest.raises(jaxq.PlanError, match="'a/weight' is missing"):
        qmodel.apply({name: array for name, array in qmodel.params.items() if name != "a/weight"}, *args)


def simplified(fun, params, *args):
    return passes.simplify(trace(fun, params, args).graph)


def statistics_of(graph, batches):
    return observe_all(graph, scales.observed(graph, place(graph, QuantConfig())), Batches(batches), 0)


def test_observers_in_a_scan_see_what_they_see_in_the_turns_written_out():
    def by_hand(p, x):
        h = jnp.zeros_like(x[:, 0])
        for i in range(5):
            h = jnp.maximum(x[:, i] @ p["a"] + h @ p["b"], 0)
        return h @ p["c"]

    loop, written_out = simplified(rnn, WEIGHTS, STEPS), simplified(by_hand, WEIGHTS, STEPS)
    seen = statistics_of(loop, [STEPS[:4], STEPS[4:]]).histograms
    hidden = next(node.operand("x").name for node in loop.all_nodes if node.name == "c")
    turns = [
        node.operand("x").name for node in written_out.all_nodes if node.op == "dot" and node.name.startswith("b#")
    ]
    last = next(node.operand("x").name for node in written_out.all_nodes if node.name == "c")
    apart = statistics_of(written_out, [STEPS]).histograms
    counts = seen[hidden].to_numpy()
    assert counts.counts.sum() + counts.zeros == STEPS.size
    assert counts.amax == pytest.approx(max(float(apart[name].amax) for name in {*turns, last}), rel=1e-6)


def test_a_branch_that_was_never_taken_stays_in_float_and_is_listed(tmp_path):
    calibration = jaxq.calibrate(branches, WEIGHTS, [(X, TRUE)])
    calibration.save(tmp_path / "calibration")
    for given in (calibration, jaxq.Calibration.load(tmp_path / "calibration")):
        qmodel = jaxq.quantize(branches, WEIGHTS, calibration=given)
        reasons = {row.name: (row.precision, row.reason) for row in rows_of(qmodel)}
        assert reasons == {"a": ("int8", ""), "b": ("int8", ""), "c": ("float", "calibration never took this branch")}
        assert "calibration never took this branch: c" in str(qmodel.summary())
        np.testing.assert_allclose(qmodel(X, FALSE), cheap.jit(branches)(WEIGHTS, X, FALSE), rtol=1e-5, atol=1e-6)
        assert given.statistics.unseen
        assert not given.statistics.unseen & given.thresholds().keys()


def test_a_loop_that_never_ran_stays_in_float():
    def fun(p, x, turns):
        return lax.while_loop(lambda s: s[0] > 0, lambda s: (s[0] - 1, s[1] @ p["a"]), (turns, x @ p["b"]))[1]

    qmodel = jaxq.quantize(fun, WEIGHTS, [(X, np.int32(0))])
    found = {row.name: row.reason for row in rows_of(qmodel)}
    assert found == {"a": "calibration never took this loop", "b": ""}

    def only_loop(p, x, turns):
        return lax.while_loop(lambda s: s[0] > 0, lambda s: (s[0] - 1, s[1] @ p["a"]), (turns, x))[1]

    with pytest.raises(UnsupportedError, match="calibration never took this loop"):
        jaxq.quantize(only_loop, WEIGHTS, [(X, np.int32(0))])


def test_loops_in_loops_and_branches_in_loops():
    def fun(p, x):
        def step(h, x):
            h = lax.cond(x.sum() > 0, lambda h: h @ p["a"], lambda h: h @ p["b"], h)
            h = lax.fori_loop(0, 2, lambda i, h: jnp.maximum(h @ p["c"], 0), h + x)
            return h, None

        return lax.scan(step, jnp.ones_like(x[:, 0]), jnp.moveaxis(x, 1, 0))[0]

    qmodel = jaxq.quantize(fun, WEIGHTS, [STEPS])
    assert {row.name: row.precision for row in rows_of(qmodel)} == dict.fromkeys("abc", "int8")
    assert networks.decibels(cheap.jit(fun)(WEIGHTS, STEPS), qmodel(STEPS)) > 25
    macs = {row.name: row.macs for row in rows_of(qmodel)}
    assert macs == {"a": 5 * 36, "b": 5 * 36, "c": 5 * 2 * 36}


def test_rules_reach_into_bodies(calibrated):
    graph = simplified(rnn, WEIGHTS, STEPS)
    config = QuantConfig(rules=(LayerRule("^b$", quantize=False), LayerRule("nothing")))
    placement = place(graph, config)
    assert {node.name for node in placement.int8 if node.op == "dot"} == {"a", "c"}
    assert {reason for node, reason in placement.reasons.items() if node.name == "b"} == {"rule '^b$'"}
    with pytest.warns(UserWarning, match=r"LayerRule\('nothing'\) matched no layer"):
        jaxq.quantize(rnn, WEIGHTS, calibration=calibrated["rnn"], config=config)


def test_auto_takes_mse_in_bodies_without_a_warning(calibrated, quantized):
    assert quantized["rnn"].summary().methods == {"mse": 4}
    calibration = calibrated["rnn"]
    assert calibration.thresholds("auto") == calibration.thresholds("mse") == calibration.thresholds()


@pytest.mark.parametrize("turn", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_a_nan_in_a_body_names_the_layer(turn):
    """x holds a negative number in one turn, of which the layer in the loop takes the root."""

    def fun(p, x):
        def step(h, x):
            h = h @ p["a"] + jnp.sqrt(x) @ p["b"]
            return jnp.maximum(h, 0), None

        return lax.scan(step, jnp.ones_like(x[:, 0]), jnp.moveaxis(x, 1, 0))[0] @ p["c"]

    x = np.abs(STEPS)
    x[2, turn, 1] = -1
    with pytest.raises(CalibrationError, match="layer 'sqrt' makes NaN"):
        jaxq.quantize(fun, WEIGHTS, [x])


def test_an_overflow_in_a_while_names_the_layer():
    def fun(p, x):
        return lax.fori_loop(0, 60, lambda i, z: (z * 10) @ p["a"], x)

    with pytest.raises(CalibrationError, match=r"layer '(mul|a)' makes Inf"):
        jaxq.quantize(fun, {"a": 10 * np.eye(6, dtype=np.float32)}, [X])


def test_flax_recurrence_has_the_names_of_its_layers():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="head")(nn.RNN(nn.OptimizedLSTMCell(8), name="rnn")(x))

    model = Net()
    params = variables(model, STEPS)
    qmodel = jaxq.quantize(model, params, [STEPS])
    rows = rows_of(qmodel)
    assert all(row.precision == "int8" for row in rows)
    cell = "Net/rnn/OptimizedLSTMCell_0"
    assert all(row.name.startswith(cell) or row.name == "Net/head" for row in rows)
    np.testing.assert_array_equal(qmodel(STEPS), oracle(qmodel, STEPS))
    assert networks.decibels(cheap.jit(model.apply)(params, STEPS), qmodel(STEPS)) > 25


def test_calls_are_inlined():
    """remat, custom_vjp, custom_jvp and nested jit are no borders: the activation behind them is fused."""

    @jax.custom_vjp
    def layer(x, w):
        return x @ w

    layer.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))

    def fun(p, x):
        x = jnp.maximum(layer(x, p["a"]), 0)
        x = jax.nn.relu(jax.checkpoint(lambda x, w: jax.jit(jnp.matmul)(x, w))(x, p["b"]))
        return jax.jit(lambda x: jax.jit(lambda x: x @ p["c"])(x))(x)

    graph = simplified(fun, WEIGHTS, X)
    assert [(node.name, node.attrs["lo"]) for node in graph.nodes if node.op == "dot"] == [
        ("a", 0.0),
        ("b", 0.0),
        ("c", -np.inf),
    ]
    assert not any(node.op in {*CONTROL, "opaque"} for node in graph.nodes)


def test_a_key_value_cache_is_an_input_and_a_result():
    """A decoder's step: the cache comes in, one row of it is written, and it goes out."""

    def step(p, cache, position, token):
        keys = lax.dynamic_update_slice_in_dim(cache["keys"], (token @ p["a"])[:, None], position, axis=1)
        values = lax.dynamic_update_slice_in_dim(cache["values"], (token @ p["b"])[:, None], position, axis=1)
        scores = jnp.einsum("bc,btc->bt", token, keys)
        scores = jnp.where(jnp.arange(4) <= position, scores, -jnp.inf)
        y = jnp.einsum("bt,btc->bc", jax.nn.softmax(scores), values)
        return y @ p["c"], {"keys": keys, "values": values}

    def decode(run):
        cache, ys = {name: np.zeros((8, 4, 6), np.float32) for name in ("keys", "values")}, []
        for position in range(4):
            y, cache = run(cache, np.int32(position), STEPS[:, position])
            ys.append(y)
        return np.stack(ys), cache

    batches, in_float = [], cheap.jit(step)

    def recorded(*args):
        batches.append(args)
        return in_float(WEIGHTS, *args)

    exact, exact_cache = decode(recorded)
    qmodel = jaxq.quantize(step, WEIGHTS, batches)
    assert {row.name for row in rows_of(qmodel) if row.precision == "int8"} >= {"c"}
    ours, cache = decode(qmodel)
    assert networks.decibels(exact, ours) > 20
    for name, array in cache.items():
        assert array.dtype == jnp.float32
        assert networks.decibels(exact_cache[name], array) > 30
