"""Weight-only dots: float activations times int8 or int4 weights with a scale for each group of inputs."""

import cheap
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import decibels, images

import jaxq
from jaxq import numerics
from jaxq.backends import xla
from jaxq.config import LayerRule, QuantConfig
from jaxq.graph.evaluate import evaluate, reference
from jaxq.graph.node import Aval, Node, constant, is_int8
from jaxq.graph.verify import verify
from jaxq.plan.lift import lift

PARAMS = {"a": images(70, 40) / 8, "bias": images(40), "b": images(40, 70, seed=1) / 6, "c": images(70, 5, seed=2) / 8}
X = images(6, 70)


def network(params, x):
    y = jax.nn.relu(x @ params["a"] + params["bias"])
    return (x + y @ params["b"]) @ params["c"]


def weight_only(**choices):
    return QuantConfig(weight_only=True, group_size=32, **choices)


@pytest.fixture(scope="module", params=[8, 4])
def qmodel(request):
    return jaxq.quantize(network, PARAMS, [X], config=weight_only(weight_bits=request.param))


def dequantized(params, bits):
    """The float parameters with weights as the plan has them."""

    def rounded(weight):
        levels, scale = numerics.quantize_groups(weight.T, group_size=32, bits=bits)
        return np.asarray(numerics.dequantize_groups(levels, scale, 32)).T

    return {name: rounded(value) if value.ndim == 2 else value for name, value in params.items()}


def bits_of(qmodel):
    return {node.attrs["bits"] for node in qmodel.plan.graph.nodes if node.op == "weight_only_dot"}.pop()


def test_it_is_the_float_function_of_rounded_weights(qmodel):
    bits = bits_of(qmodel)
    expected = cheap.jit(network)(dequantized(PARAMS, bits), X)
    np.testing.assert_allclose(qmodel(X), expected, rtol=1e-5, atol=1e-5)
    assert decibels(cheap.jit(network)(PARAMS, X), qmodel(X)) > {8: 40, 4: 15}[bits]


def test_nothing_else_is_quantized(qmodel):
    bits = bits_of(qmodel)
    rows = {row.name: row for row in qmodel.summary().nodes}
    assert {name: (row.op, row.precision, row.fused, row.macs) for name, row in rows.items()} == {
        "a": ("dot", f"int{bits} weight-only", ("bias", "relu"), 2800),
        "b": ("dot", f"int{bits} weight-only", ("residual",), 2800),
        "c": ("dot", f"int{bits} weight-only", (), 350),
    }
    assert not any(map(is_int8, qmodel.plan.graph.nodes))
    assert qmodel.summary().methods == {}
    assert f"int{bits} weight-only: 3 dot; 100.0% of 5,950" in str(qmodel.summary())
    assert repr(qmodel) == "QuantizedModel(3 of 3 nodes quantized)"


def test_the_plan_holds_packed_weights(qmodel):
    weights = {node.name: node.operand("weight").aval for node in qmodel.plan.graph.nodes if node.roles}
    int8 = {"a": (40, 70), "b": (70, 40), "c": (5, 70)}
    if bits_of(qmodel) == 8:
        assert weights == {name: Aval(shape, np.dtype(np.int8)) for name, shape in int8.items()}
    else:
        assert weights == {name: Aval((n, k // 2), np.dtype(np.uint8)) for name, (n, k) in int8.items()}


def test_saved_and_loaded_it_gives_the_same_bits(qmodel, tmp_path):
    qmodel.save(tmp_path / "net.jaxq")
    loaded = jaxq.load(tmp_path / "net.jaxq")
    np.testing.assert_array_equal(loaded(X), qmodel(X))
    assert loaded.summary() == qmodel.summary()


def test_every_transform(qmodel):
    y = np.asarray(qmodel(X))
    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(jax.jit(qmodel)(X), y, **close)
    np.testing.assert_allclose(jax.vmap(qmodel)(X.reshape(2, 3, 70)).reshape(6, 5), y, **close)
    np.testing.assert_allclose(qmodel(X[0]), y[0], **close)
    np.testing.assert_allclose(qmodel.apply(qmodel.params, X[:2]), y[:2], **close)
    exported = qmodel.export(platforms=("cpu",))
    np.testing.assert_allclose(exported.call(X), y, **close)
    with pytest.raises(jaxq.JaxqError, match="no derivative"):
        jax.grad(lambda x: jnp.sum(qmodel(x)))(X)


def test_a_calibration_serves_it_and_int8(qmodel):
    calibration = jaxq.calibrate(network, PARAMS, [X])
    again = jaxq.quantize(network, PARAMS, calibration=calibration, config=weight_only(weight_bits=bits_of(qmodel)))
    np.testing.assert_array_equal(again(X), qmodel(X))
    assert jaxq.quantize(network, PARAMS, calibration=calibration).summary().nodes[-1].precision == "int8"


def test_a_rule_chooses_it_for_one_layer():
    """Between int8 layers it reads what they made, in float."""
    config = QuantConfig(method="amax", rules=(LayerRule("^b$", weight_only=True, weight_bits=4, group_size=16),))
    qmodel = jaxq.quantize(network, PARAMS, [X], config=config)
    precision = {row.name: row.precision for row in qmodel.summary().nodes if row.op == "dot"}
    assert precision == {"a": "int8", "b": "int4 weight-only", "c": "int8"}
    (node,) = (node for node in qmodel.plan.graph.nodes if node.op == "weight_only_dot")
    assert node.operand("scale").aval.shape == (70, 3)
    np.testing.assert_allclose(qmodel(X), cheap.oracle(qmodel, X), rtol=1e-4, atol=1e-4)
    assert decibels(cheap.jit(network)(PARAMS, X), qmodel(X)) > 15


def test_what_has_no_such_form_stays_in_float():
    def fun(params, x):
        x = jax.lax.conv_general_dilated(x, params["kernel"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
        return (x @ x.swapaxes(1, 2)) @ params["dense"]

    params = {"kernel": images(3, 4, 6), "dense": images(8, 5)}
    x = images(2, 8, 4)
    qmodel = jaxq.quantize(fun, params, [x], config=QuantConfig(weight_only=True))
    reasons = {row.op: row.reason for row in qmodel.summary().nodes if row.precision == "float"}
    assert reasons == {
        "conv": "weight_only: there is no such form of a conv",
        "matmul": "weight_only: there is no such form of a matmul",
    }
    config = QuantConfig(weight_only=True, rules=(LayerRule("dense", quantize=False),))
    with pytest.raises(jaxq.UnsupportedError, match="nothing to quantize: .*weight_only: there is no such form"):
        jaxq.quantize(fun, params, [x], config=config)


def test_the_body_of_a_loop():
    def fun(params, x):
        def turn(h, x):
            h = jnp.tanh(x @ params["in"] + h @ params["hidden"])
            return h, h

        return jax.lax.scan(turn, jnp.zeros((x.shape[0], 20)), x.swapaxes(0, 1))[1]

    params, x = {"in": images(6, 20) / 3, "hidden": images(20, 20, seed=1) / 5}, images(3, 5, 6)
    qmodel = jaxq.quantize(fun, params, [x], config=QuantConfig(weight_only=True))
    dots = {row.name: row.macs for row in qmodel.summary().nodes if row.precision == "int8 weight-only"}
    assert dots == {"in": 600, "hidden": 2000}
    assert decibels(cheap.jit(fun)(params, x), qmodel(x)) > 35


def test_its_part_of_the_error_is_measured():
    found = jaxq.sensitivity(jaxq.quantize(network, PARAMS, [X], config=weight_only(weight_bits=4)), [X])
    assert {row.name for row in found.rows} == {"a", "b", "c"}
    expected = decibels(cheap.jit(network)(PARAMS, X), cheap.jit(network)(dequantized(PARAMS, 4), X))
    assert found.decibels == pytest.approx(expected, abs=0.1)


def test_max_drop_puts_it_into_float():
    exact = cheap.jit(network)(PARAMS, X)
    metric = lambda f: np.sum((f(X) - exact) ** 2) < 0.003 * np.sum(exact**2)  # noqa: E731
    qmodel = jaxq.quantize(network, PARAMS, [X], config=weight_only(weight_bits=4), max_drop=0.0, metric=metric)
    kept = {row.name for row in qmodel.summary().nodes if row.precision == "float"}
    assert kept and kept == set(qmodel.summary().accuracy.layers)


def test_lifted_it_computes_on_the_dequantized_weight(qmodel):
    graph = verify(lift(qmodel.plan.graph), "quantized")
    assert {node.op for node in graph.nodes if node.roles} == {"dot"}
    (y,) = evaluate(graph.bind(len(X)), graph.params, [jnp.asarray(X)])
    np.testing.assert_allclose(y, qmodel(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("choice", [{"weight_only": 1}, {"group_size": 0}, {"group_size": 24}, {"group_size": 32.0}])
def test_what_no_choice_is(choice):
    ((name, value),) = choice.items()
    for make in (QuantConfig, lambda **c: LayerRule("x", **c)):
        with pytest.raises(jaxq.UnsupportedError, match=f"{name}={value!r} is "):
            make(**choice)


# ------------------------------------------------------------------------------------------------------------- backends


def node_of(x, weight, bits, size, bias, residual, lo=-np.inf):
    """A weight-only dot and its operands."""
    levels, scale = numerics.quantize_groups(weight, group_size=size, bits=bits)
    operands = {"x": x, "weight": levels if bits == 8 else numerics.pack_int4(levels), "scale": scale}
    if bias:
        operands["bias"] = images(len(weight), seed=3)
    if residual:
        operands["residual"] = images(*x.shape[:-1], len(weight), seed=4).astype(x.dtype)
    attrs = {"precision": None, "bits": bits, "group_size": size, "lo": lo, "hi": np.inf}
    aval = Aval((*x.shape[:-1], len(weight)), x.dtype)
    nodes = {role: constant(value, role).replace(op="input", attrs={}) for role, value in operands.items()}
    return Node("weight_only_dot", (), attrs, aval, "dot").with_operands(nodes), [*map(jnp.asarray, operands.values())]


@settings(max_examples=25)
@given(st.data())
def test_xla_gives_what_the_definition_gives(data):
    """Within the rounding of float32 sums, which each adds in an order of its own."""
    draw = data.draw
    depth, channels = draw(st.sampled_from([1, 2, 15, 33, 130])), draw(st.sampled_from([1, 3, 17]))
    rows = draw(st.sampled_from([(1,), (2, 3), ()]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    x = rng.normal(size=(*rows, depth)).astype(np.float32)
    weight = rng.normal(size=(channels, depth)).astype(np.float32)
    choices = draw(st.tuples(st.sampled_from([8, 4]), st.sampled_from([16, 48]), st.booleans(), st.booleans()))
    node, operands = node_of(x, weight, *choices, lo=draw(st.sampled_from([-np.inf, 0.0])))
    expected, found = cheap.jit(reference(node))(*operands), jax.jit(xla.lower(node))(*operands)
    assert found.shape == node.aval.shape
    bound = 2.0**-22 * np.sqrt(depth) * (np.abs(x) @ np.abs(weight).T + 4)
    assert np.all(np.abs(found - expected) <= bound)


@pytest.mark.parametrize("bits", [8, 4])
def test_xla_keeps_no_float_weight(bits):
    """Neither while it runs nor, where the weight is a constant, in what is compiled; also some channels at a time."""
    node, (x, weight, scale) = node_of(images(2, 1024), images(1025, 1024), bits, 128, bias=False, residual=False)
    run = xla.lower(node)
    float_bytes = 4 * 1024 * 1025
    compiled = jax.jit(run).lower(x, weight, scale).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.6 * float_bytes
    closed = jax.jit(lambda x: run(x, weight, scale)).lower(x).compile()
    assert "f32[1025,1024]" not in closed.as_text()
    bound = 2.0**-22 * 32 * (np.abs(x) @ np.abs(images(1025, 1024)).T)
    assert np.all(np.abs(compiled(x, weight, scale) - reference(node)(x, weight, scale)) <= bound)
