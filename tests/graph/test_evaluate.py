"""The oracle, and the float form of every int8 node beside it."""

import jax
import numpy as np
import pytest

from jaxq.graph.evaluate import evaluate, fake_quantized
from jaxq.graph.primitives import BY_NAME, TABLE


def test_fake_quantized_agrees_to_one_lsb_node_by_node(small_cnn):
    """Each node is fed the int8 graph's own inputs: end to end the two drift apart."""
    qmodel, x = small_cnn.qmodel, small_cnn.x
    graph = qmodel.plan.graph.bind(x.shape[0])
    values = dict(zip(graph.inputs, [x], strict=True))
    values.update({n: qmodel.params[n.name] for n in graph.nodes if n.op == "param"})
    values.update({n: n.value for n in graph.nodes if n.op == "const"})
    evaluate(graph, qmodel.params, [x], tap=values.__setitem__)
    checked = 0
    for node in graph.nodes:
        if "multiplier" in node.roles and node.op != "quantize" and node.qtype is not None:
            real = np.asarray(fake_quantized(node)(*(jax.numpy.asarray(values[s]) for s in node.inputs)))
            assert np.max(np.abs(real - np.asarray(values[node], np.float32))) <= 1.0, node
            checked += 1
    assert checked == 11


def test_primitive_names_are_unique():
    assert all(BY_NAME[row.name] is row for row in TABLE.values())


PRIMITIVES = {
    "gather": lambda x: x[:, np.array([2, 0])],
    "dynamic_slice": lambda x: jax.lax.dynamic_slice(x, (0, 1), (2, 2)),
    "sort": lambda x: jax.numpy.sort(x, axis=1),
    "top_k": lambda x: jax.lax.top_k(x, 2),
    "argmax": lambda x: x.argmax(1),
    "cumsum": lambda x: x.cumsum(1),
    "scatter": lambda x: jax.numpy.asarray(x).at[:, 1].set(0.0),
    "scatter_add": lambda x: jax.numpy.asarray(x).at[:, 1].add(1.0),
    "split": lambda x: jax.numpy.split(x, 2, axis=1),
    "softmax": lambda x: jax.nn.softmax(x),
    "gelu": lambda x: jax.nn.gelu(x),
    "layer_norm": lambda x: jax.nn.standardize(x),
    "iota": lambda x: x + jax.numpy.arange(6, dtype=x.dtype),
    "round": lambda x: jax.numpy.round(x),
    "where": lambda x: jax.numpy.where(x > 0, x, 0.1 * x),
    "logsumexp": lambda x: jax.nn.logsumexp(x, axis=1),
    "clip": lambda x: jax.numpy.clip(x, -0.5, 0.5),
    "power": lambda x: (x**2, x**3, jax.numpy.abs(x) ** 0.5),
    "reduce_window": lambda x: jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 2), (1, 2), "VALID"),
    "tile": lambda x: jax.numpy.tile(x, (1, 2)),
    "stack": lambda x: jax.numpy.stack([x, x], 1),
    "unstack": lambda x: jax.numpy.unstack(x, axis=1),
    "log2": lambda x: jax.numpy.log2(jax.numpy.abs(x)),
    "rev": lambda x: x[:, ::-1],
    "isnan": lambda x: jax.numpy.isnan(x),
    "one_hot": lambda x: jax.nn.one_hot(x.argmax(1), 6, dtype=x.dtype),
}


@pytest.mark.parametrize("name", PRIMITIVES)
def test_primitives_are_rebound_by_name(name):
    from jaxq.graph.trace import trace

    fun = PRIMITIVES[name]
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    traced = trace(lambda p, x: fun(x), {}, (x,))
    assert not any(node.op == "opaque" for node in traced.graph.nodes)
    for size in (4, 2) if traced.fixed_because is None else (4,):
        graph = traced.graph.bind(size)
        for ours, theirs in zip(evaluate(graph, graph.params, [x[:size]]), jax.tree.leaves(fun(x[:size])), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
