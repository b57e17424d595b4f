"""A plan's layers in float again: nearer to the float function than int8, whichever they are."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chosen import by_channel, model_from, state_of
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import decibels, images

import jaxq
from jaxq import numerics
from jaxq.graph.evaluate import evaluate
from jaxq.graph.node import WEIGHTED, constant, is_int8
from jaxq.graph.verify import verify
from jaxq.passes.elementwise import WORDS
from jaxq.plan.lift import is_liftable, lift, named

CONFIG = jaxq.QuantConfig(method="mse")


def run(graph, *arrays):
    bound = graph.bind(len(arrays[0]))
    return jax.jit(lambda params, leaves: evaluate(bound, params, leaves))(graph.params, arrays)


def functions(params, x):
    """Tables behind dense layers, one behind a sum (which does not tell the table's scale), and one of no name."""
    x = jax.nn.gelu(x @ params["a"])
    x = jax.nn.silu(x + jnp.tanh(x @ params["b"]))
    y = jnp.sin(x) * x
    return jnp.concatenate([x, y], -1) @ params["wide"]


PARAMS = {
    name: np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for name, shape in {"a": (6, 6), "b": (6, 6), "wide": (12, 4)}.items()
}
X = images(64, 6)


@pytest.fixture(scope="module")
def qmodel():
    return jaxq.quantize(functions, PARAMS, [X], config=CONFIG)


def test_nearer_than_int8(small_cnn):
    """Merged layers of several activations, residuals, pools, a mean."""
    graph = verify(lift(small_cnn.qmodel.plan.graph), "quantized")
    assert not any(map(is_int8, graph.all_nodes))
    exact = small_cnn.model.apply(small_cnn.variables, small_cnn.x)
    (found,) = run(graph, small_cnn.x)
    assert found.dtype == jnp.float32
    assert decibels(exact, found) > max(40, decibels(exact, small_cnn.qmodel(small_cnn.x)))


def test_functions_in_float(qmodel):
    tables = [node for node in qmodel.plan.graph.nodes if node.get("table") is not None]
    assert [is_liftable(node) for node in tables] == [True, True, False, False]
    graph = verify(lift(qmodel.plan.graph), "quantized")
    assert len([node for node in graph.nodes if node.get("table") is not None]) == 2
    exact = jax.jit(functions)(PARAMS, X)
    assert decibels(exact, run(graph, X)[0]) > decibels(exact, qmodel(X)) > 20


def test_nothing_in_float_is_the_plan(qmodel):
    graph = verify(lift(qmodel.plan.graph, {}), "quantized")
    np.testing.assert_array_equal(run(graph, X)[0], qmodel(X))


def branches(params, x):
    """Merged layers of several activations, a residual, a concatenation and a product of values."""
    x = jax.nn.relu(x @ params["a"])
    y = jnp.concatenate([jax.nn.relu6(x @ params["b"]), x @ params["a"], jax.nn.relu(x @ params["b"] + x)], -1)
    y = y[:, :12] @ params["wide"]
    return jax.nn.sigmoid(y) * y @ params["wide"].T


@pytest.fixture(scope="module")
def merged():
    return jaxq.quantize(branches, PARAMS, [X], config=CONFIG)


@settings(max_examples=6)
@given(st.data())
def test_any_layers(merged, data):
    """Each of them is in float, with its reason; the others are as they were, and the borders are in their places."""
    plan = merged.plan
    liftable = [node.name for node in plan.graph.nodes if is_liftable(node)]
    reasons = dict.fromkeys(data.draw(st.sets(st.sampled_from(liftable))), "drawn")
    graph = verify(lift(plan.graph, reasons), "quantized")
    found = {node.name: node for node in graph.nodes}
    for name in liftable:
        assert is_int8(found[name]) == (name not in reasons)
        assert found[name].reason == ("drawn" if name in reasons else "")
    exact = branches(PARAMS, X)
    assert decibels(exact, run(graph, X)[0]) > decibels(exact, merged(X)) - 2


def test_bytes_loops_and_gathers():
    def fun(params, image, index):
        x = image.astype(jnp.float32).reshape(-1, 6) / 255 @ params["a"]
        x = jax.lax.fori_loop(0, 2, lambda _, x: jnp.tanh(x @ params["b"]), x)
        x = jnp.pad(jax.nn.relu(x @ params["a"])[:, index], ((0, 0), (1, 1)))
        return x @ params["b"][:4]

    rng = np.random.default_rng(0)
    args = rng.integers(0, 256, (16, 2, 3)).astype(np.uint8), np.array([1, 3], np.int32)
    qmodel = jaxq.quantize(fun, PARAMS, [args], config=CONFIG)
    graph = verify(lift(qmodel.plan.graph), "quantized")
    assert [node.op for node in graph.all_nodes if is_int8(node)] == ["dequantize"]  # of the image's bytes
    exact = fun(PARAMS, *args)
    assert decibels(exact, run(graph, *args)[0]) > max(35, decibels(exact, qmodel(*args)))


@pytest.mark.parametrize("factor", [1.0, -0.3])
def test_functions_that_have_a_name(factor):
    x = numerics.levels("int8") * 0.04
    for word, f in {**WORDS, "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.1)}.items():
        y = factor * np.asarray(f(jnp.asarray(x if factor > 0 else -x, jnp.float32)))
        step = np.max(np.abs(y)) / 120  # a few entries are cut off, as a threshold does
        table = np.clip(np.round(y / step), -110, 110).astype(np.int8)
        table[np.abs(table) == 110] = np.sign(table[np.abs(table) == 110]) * 127
        found = named(word, x, table, float(step))
        assert found is not None, word
        assert np.max(np.abs(np.asarray(found(jnp.asarray(x, jnp.float32))) - y)) < 2 * step, word
        assert named("elementwise", x, table, float(step)) is None
    assert named("tanh", x, np.roll(table, 7), float(step)) is None


def test_scales_by_channel(small_cnn):
    """In float they are gone: what is left is the function of the weights that were rounded by them."""
    state = state_of(small_cnn.qmodel)
    state = replace(state, choices=by_channel(state, np.random.default_rng(0)))
    graph = lift(model_from(state, small_cnn.qmodel).plan.graph)
    assert not any(map(is_int8, graph.all_nodes))

    weights = state.simulated.levels(state.choices, state.config).weights

    def rounded(node):
        if node.op not in WEIGHTED:
            return node
        weight = constant(weights[node.name], f"{node.name}/weight")
        return node.with_operands({**dict(zip(node.roles, node.inputs, strict=True)), "weight": weight})

    exact, found = (run(g, small_cnn.x)[0] for g in (state.graph.map(rounded), graph))
    assert decibels(exact, found) > 90
