"""Functions of one value: found in any spelling, given their word, and made tables; steep ones stay what they are."""

import cheap
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import decibels, images

import jaxq
from jaxq import numerics, passes
from jaxq.graph.evaluate import evaluate
from jaxq.graph.trace import trace
from jaxq.passes.elementwise import collapse

PARAMS = {"a": images(6, 8), "b": images(8, 4, seed=1)}
X = images(16, 6, seed=2)
CONFIG = jaxq.QuantConfig(method="mse")

SPELLINGS = {
    "gelu": (
        nn.gelu,
        lambda x: nn.gelu(x, approximate=False),
        lambda x: 0.5 * x * (1 + jax.lax.erf(x / np.float32(np.sqrt(2)))),
        lambda x: 0.5 * x * (1.0 + jnp.tanh(0.7978845608 * (x + 0.044715 * x**3))),
    ),
    "silu": (nn.silu, nn.swish, lambda x: x * nn.sigmoid(x), lambda x: x / (1 + jnp.exp(-x))),
    "sigmoid": (nn.sigmoid, lambda x: 1 / (1 + jnp.exp(-x))),
    "hard_swish": (nn.hard_swish, lambda x: x * nn.relu6(x + 3) / 6, lambda x: x * jnp.clip(x / 6 + 0.5, 0, 1)),
    "leaky_relu": (nn.leaky_relu, lambda x: jnp.where(x > 0, x, 0.2 * x), lambda x: jnp.maximum(x, 0.1 * x)),
    "tanh": (jnp.tanh, lambda x: 0.5 * (jnp.tanh(0.5 * x) + 1)),  # what is affine goes into the layers around it
    "elu": (nn.elu, lambda x: jnp.where(x > 0, x, jnp.expm1(x))),
    "softplus": (nn.softplus,),
    "soft_sign": (nn.soft_sign,),
    "elementwise": (lambda x: jnp.sin(x) * jnp.tanh(x),),
}


def mlp(activation):
    return lambda params, x: activation(x @ params["a"]) @ params["b"]


def simplified(fun, *args):
    return passes.simplify(trace(fun, PARAMS, args).graph)


@pytest.mark.parametrize(("word", "activation"), [(w, f) for w, fs in SPELLINGS.items() for f in fs])
def test_every_spelling_is_the_end_of_the_epilogue(word, activation):
    graph = simplified(mlp(activation), X)
    assert [node.op for node in graph.nodes if not node.is_constant] == ["input", "dot", "elementwise", "dot"]
    (function,) = [node for node in graph.nodes if node.op == "elementwise"]
    assert function.attrs["word"] == word

    @cheap.jit
    def both(simple, params, x):
        return evaluate(graph.bind(16), simple, [x])[0], mlp(activation)(params, x)

    np.testing.assert_allclose(*both(graph.params, PARAMS, X), rtol=1e-5, atol=1e-5)


def test_a_table_in_the_epilogue():
    qmodel = jaxq.quantize(mlp(nn.gelu), PARAMS, [X])
    rows = [(row.op, row.precision, row.fused) for row in qmodel.summary().nodes]
    assert rows == [("quantize", "int8", ()), ("dot", "int8", ("gelu", "requantize")), ("dot", "int8", ())]
    result = qmodel(X)
    np.testing.assert_array_equal(result, cheap.oracle(qmodel, X))
    np.testing.assert_array_equal(result, jax.vmap(qmodel)(X))
    assert decibels(cheap.jit(mlp(nn.gelu))(PARAMS, X), result) > 30


def test_a_table_after_a_layout_op_is_a_node_of_its_own():
    def fun(params, x):
        return nn.silu(jnp.concatenate([x @ params["a"], x @ -params["a"]])) @ params["b"]

    qmodel = jaxq.quantize(fun, PARAMS, [X], config=CONFIG)
    assert [row.op for row in qmodel.summary().nodes if row.op == "silu"] == ["silu"]
    np.testing.assert_array_equal(qmodel(X), cheap.oracle(qmodel, X))


def test_a_function_that_is_not_negative_has_bytes():
    rows = jaxq.quantize(mlp(nn.sigmoid), PARAMS, [X], config=CONFIG).summary().nodes
    assert [row.dtypes[1] for row in rows if "sigmoid" in row.fused] == ["uint8"]


@pytest.mark.parametrize("steep", [jnp.exp, jnp.sign, lambda x: jax.lax.rsqrt(jnp.abs(x) + 1e-6)])
def test_a_steep_function_stays_in_float(steep):
    rows = jaxq.quantize(mlp(steep), PARAMS, [X], config=CONFIG).summary().nodes
    (reason,) = {row.reason for row in rows if row.precision == "float"}
    assert reason.startswith("a table of it would be too coarse: ")


@given(st.floats(1e-3, 1e3))
def test_a_scale_makes_no_function_steeper(factor):
    graphs = [simplified(lambda params, x, f=f: jnp.sort(f * jnp.tanh(x)), X) for f in (1.0, np.float32(factor))]
    attrs = [node.attrs for graph in graphs for node in graph.nodes if node.op == "elementwise"]
    assert [item["word"] for item in attrs] == ["tanh", "tanh"]
    assert attrs[0]["steepness"] == pytest.approx(attrs[1]["steepness"], rel=1e-5)


def test_an_op_in_two_functions_has_two_names():
    def fun(params, x):
        y = jnp.tanh(x @ params["a"])
        return [jnp.cumsum(f(y), -1) for f in (jnp.sin, jnp.cos, lambda y: y)]

    names = [row.name for row in jaxq.quantize(fun, PARAMS, [X], config=CONFIG).summary().nodes]
    assert len(names) == len(set(names))


def test_affine_maps_alone_are_no_function():
    graph = simplified(lambda params, x: nn.relu(jnp.sort(x) * 2 + 1) * 3, X)
    assert "elementwise" not in {node.op for node in graph.nodes}


def test_functions_of_several_values_are_not_collapsed():
    graph = simplified(lambda params, x: jnp.tanh(x @ params["a"]) / (x @ params["a"][:, ::-1]), X)
    assert [node.attrs["word"] for node in graph.nodes if node.op == "elementwise"] == ["tanh"]


def test_collapsing_twice_is_collapsing_once():
    graph = simplified(mlp(nn.gelu), X)
    assert [node.op for node in collapse(graph).nodes] == [node.op for node in graph.nodes]


@given(st.sampled_from(["int8", "uint8"]), st.integers(0, 2**32 - 1))
def test_a_table_has_an_entry_for_every_byte(dtype, seed):
    entries = np.random.default_rng(seed).integers(-127, 128, 256).astype(np.int8)
    levels = numerics.levels(dtype)
    np.testing.assert_array_equal(numerics.lookup(jnp.asarray(levels.astype(dtype)), jnp.asarray(entries)), entries)
    assert sorted(levels) == list(range(levels.min(), levels.min() + 256))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_functions_in_half_precision(dtype):
    def fun(params, x):
        return nn.gelu(x @ params["a"]) @ params["b"]

    params, x = jax.tree.map(lambda w: w.astype(dtype), (PARAMS, X))
    qmodel = jaxq.quantize(fun, params, [x], config=CONFIG)
    assert [row.fused for row in qmodel.summary().nodes if row.op == "dot"] == [("gelu", "requantize"), ()]
    assert qmodel(x).dtype == dtype


def test_an_op_of_several_float_functions_is_there_once():
    def fun(params, x):
        half = jnp.tanh(x) * 0.5
        return half, jnp.exp(half), jnp.sin(half), jax.nn.relu(x @ params["a"])

    rows = jaxq.quantize(fun, PARAMS, [X], config=CONFIG).summary().nodes
    assert sorted(row.op for row in rows if row.precision == "float") == ["affine", "exp", "sin", "tanh"]


def test_an_op_in_int8_and_as_a_part_of_a_float_function():
    def fun(params, x):
        y = nn.silu(x @ params["a"])
        return y @ params["b"], jnp.exp(4.0 * y)

    qmodel = jaxq.quantize(fun, PARAMS, [X], config=CONFIG)
    assert decibels(cheap.jit(fun)(PARAMS, X)[1], qmodel(X)[1]) > 25
