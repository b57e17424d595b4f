import cheap
import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxq.errors import TraceError
from jaxq.graph.evaluate import evaluate
from jaxq.graph.node import Dim
from jaxq.graph.trace import trace

X = networks.images(4, 6)
BATCH = Dim(1, 0)


def check(fun, params, *args):
    """The traced graph computes the function at the traced batch size and at another."""
    traced = trace(fun, params, args)

    @cheap.jit
    def both(ours, params, args):
        results = []
        for size in (args[0].shape[0], 3):
            cut = jax.tree.map(lambda leaf, size=size: leaf[:size], args)
            results.append((evaluate(traced.graph.bind(size), ours, jax.tree.leaves(cut)), fun(params, *cut)))
        return results

    for ours, expected in both(traced.graph.params, params, args):
        for one, other in zip(ours, jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    return traced


def test_dimensions_follow_the_batch():
    def fun(params, x):
        return jnp.concatenate([x, params["w"][None]], 0).reshape(-1, 2), x.reshape(2, -1, 3)[0]

    traced = trace(lambda p, x: (x.reshape(-1, 2), jnp.pad(x, ((1, 2), (0, 0)))), {}, (X,))
    assert [node.aval.shape for node in traced.graph.outputs] == [(Dim(3, 0), 2), (Dim(1, 3), 6)]
    assert traced.fixed_because is None
    traced = trace(fun, {"w": X[0]}, (X,))
    assert traced.graph.outputs[0].aval.shape == (Dim(3, 3), 2)


@pytest.mark.parametrize(
    ("fun", "why"),
    [
        (lambda p, x: x.reshape(2, 12), "fails at other batch sizes"),
        (lambda p, x: x * x.shape[0], "depends on the batch size|at batch size"),
        (lambda p, x: jnp.tile(x, (x.shape[0], 1)), "batch size"),
        (lambda p, x: jnp.exp(x) if x.shape[0] % 2 else x, "other operations"),
    ],
)
def test_a_batch_that_cannot_be_followed_is_fixed(fun, why):
    traced = trace(fun, {}, (X,))
    assert traced.fixed_because is not None
    import re

    assert re.search(why, traced.fixed_because)
    np.testing.assert_allclose(evaluate(traced.graph, {}, [X])[0], fun({}, X), rtol=1e-6)


def test_an_index_that_is_a_number_leaves_the_batch_free():
    """JAX writes the sizes that negative indices are counted from into the function."""

    def fun(params, cache, row, position):
        return lax.dynamic_update_slice(cache, row, (0, position, 0)), jnp.zeros((len(cache), 3)).at[0, 2].set(1.0)

    args = (networks.images(4, 8, 3), networks.images(4, 1, 3), np.int32(2))
    assert trace(fun, {}, args).fixed_because is None


def test_calls_are_inlined():
    @jax.custom_vjp
    def double(x):
        return 2 * x

    double.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))

    def fun(params, x):
        y = jax.jit(lambda x: jax.nn.relu(x) @ params["w"])(x)
        return jax.checkpoint(lambda y: jnp.sin(double(y)))(y)

    traced = check(fun, {"w": networks.images(6, 3)}, X)
    ops = [node.op for node in traced.graph.nodes if not node.is_constant and node.op != "input"]
    assert ops == ["max", "dot_general", "mul", "sin"]


def test_control_flow_keeps_its_bodies_as_graphs():
    params = {"w": networks.images(3, 6, 6)}

    def fun(params, x):
        y, _ = lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, params["w"])
        y = lax.fori_loop(0, 3, lambda i, c: c * 0.5 + i.astype(c.dtype), y)
        return lax.cond(params["w"].sum() > 1e9, lambda y: y * 2, lambda y: y + 1, y)

    traced = check(fun, params, X)
    assert {"scan", "cond"} <= {node.op for node in traced.graph.nodes}


def test_linen_names():
    model = networks.SmallCNN()
    x = networks.images(2, 8, 8, 3)
    v = networks.variables(model, x)
    graph = trace(model.apply, v, (x,)).graph
    names = [node.name for node in graph.nodes if node.op in ("conv_general_dilated", "dot_general")]
    assert names[0] == "SmallCNN/ConvNorm_0/Conv_0"
    assert "SmallCNN/Residual_1/ConvNorm_2/Conv_0" in names
    assert names[-1] == "SmallCNN/head"
    every = [node.name for node in graph.nodes if node.op != "const"]
    assert len(every) == len(set(every))


def test_the_nth_use_of_a_layer():
    class Shared(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(6, name="layer")
            return layer(nn.relu(layer(x)))

    v = networks.variables(Shared(), X)
    graph = trace(Shared().apply, v, (X,)).graph
    assert [n.name for n in graph.nodes if n.op == "dot_general"] == ["Shared/layer", "Shared/layer#2"]


def test_plain_functions_are_named_by_their_parameters():
    params = {
        "enc": {"w1": networks.images(6, 5), "w2": networks.images(5, 4)},
        "dec": {"kernel": networks.images(4, 3)},
    }

    def fun(p, x):
        return x @ p["enc"]["w1"] @ p["enc"]["w2"] @ p["dec"]["kernel"].T.T

    graph = trace(fun, params, (X,)).graph
    assert [n.name for n in graph.nodes if n.op == "dot_general"] == ["enc/w1", "enc/w2", "dec"]


def test_the_value_layer_of_an_attention_keeps_its_name():
    """An NNX variable's attribute is called `value`, and so is a layer of every attention."""
    arrays = {name: networks.images(6, 6) for name in ("query", "key", "value")}
    x, attention = networks.images(2, 3, 6), nnx.MultiHeadAttention(2, 6, decode=False, rngs=nnx.Rngs(0))
    graph_def, state = nnx.split(attention)
    in_nnx = trace(lambda state, x: nnx.merge(graph_def, state)(x), state, (x,)).graph
    plain = trace(lambda p, x: [x @ p["attention"][name] for name in arrays], {"attention": arrays}, (x,)).graph
    assert {"query", "key", "value", "out"} <= {node.name for node in in_nnx.nodes}
    assert [node.name for node in plain.outputs] == [f"attention/{name}" for name in arrays]


def test_statistics_over_the_batch_are_refused_but_not_a_mean_that_is_returned():
    with pytest.raises(TraceError, match="statistics over the batch"):
        trace(lambda p, x: x - x.mean(0), {}, (X,))
    assert trace(lambda p, x: x.sum(0), {}, (X,)).fixed_because is None


def test_random_numbers_are_refused():
    def noisy(p, x):
        return x + jax.random.normal(jax.random.key(0), x.shape)

    def noisy_loop(p, x):
        return lax.scan(lambda c, _: (noisy(p, c), None), x, None, length=2)[0]

    for fun in (noisy, noisy_loop):
        with pytest.raises(TraceError, match="draws random numbers"):
            trace(fun, {}, (X,))


def test_a_condition_over_the_batch_is_no_statistic():
    traced = trace(lambda p, x: jnp.where(jnp.sum(x) > 1e9, 0.0, 1.0) * x, {}, (X,))
    assert traced.fixed_because is None


def test_the_batch_is_the_leading_size_that_may_vary():
    mask, table, w = networks.images(1, 6), networks.images(3, 6), networks.images(6, 6)
    traced = trace(lambda w, mask, x, table: x * mask + (table @ w)[0], w, (mask, X, table))
    assert traced.fixed_because is None
    assert [node.aval.shape[0] for node in traced.graph.inputs] == [1, BATCH, 3]
