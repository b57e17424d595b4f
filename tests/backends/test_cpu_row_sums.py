"""Embeddings and pooling beside the CPU's kernels: rows looked up and added up, and sums over rows."""

import cheap
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from networks import images

import jaxq
from jaxq import passes
from jaxq.backends import choose, cpu, gather
from jaxq.backends.cpu.edges import adds, looks_up, sums
from jaxq.graph.evaluate import evaluate
from jaxq.graph.node import Aval, Graph, Node, QType, constant
from jaxq.graph.trace import trace

pytestmark = [
    pytest.mark.skipif(cpu.available() is not None, reason=str(cpu.available())),
    pytest.mark.usefixtures("every_node_is_a_region"),
]


def graph_of(fun, params, *args):
    return passes.simplify(trace(fun, params, args).graph).bind(len(args[0]))


def quantized(graph):
    """The graph with its result as bytes, which are made of floats by a kernel."""
    (x,) = graph.outputs
    aval = Aval(x.aval.shape, np.dtype(np.int8))
    inputs = (x, constant(np.float32(20.0)))
    return Graph(graph.inputs, (Node("quantize", inputs, {}, aval, "q", ("x", "multiplier"), QType("int8", 0.05)),))


def dequantized(graph):
    """The graph of bytes, which a kernel makes the floats of its first argument of."""
    x, *others = graph.inputs
    q = Node("input", (), {}, Aval(x.aval.shape, np.dtype(np.int8)), "q", qtype=QType("int8", 0.05))
    inputs = (q, constant(np.float32(0.05)))
    moved = {x: Node("dequantize", inputs, {}, x.aval, "x", ("x", "scale")), **{other: other for other in others}}
    for node in graph.nodes:
        if node not in moved:
            moved[node] = node.replace(inputs=tuple(moved[source] for source in node.inputs))
    return Graph((q, *others), tuple(moved[node] for node in graph.outputs))


def both(graph, *args):
    """What the region gives, and the definition."""
    params = {name: jnp.asarray(value) for name, value in graph.params.items()}
    found = jax.jit(lambda params, *args: evaluate(gather(graph), params, args, choose)[0])(params, *args)
    return found, cheap.jit(lambda params, *args: evaluate(graph, params, args)[0])(params, *args)


def outside(graph):
    """The ops that are left to XLA."""
    return {node.op for node in gather(graph).nodes if not node.is_constant} - {"input", "region", "item"}


SUMS = {
    "one": lambda words, positions, kinds: words,
    "left": lambda words, positions, kinds: words + positions + kinds,
    "right": lambda words, positions, kinds: positions + (words + kinds),
    "both": lambda words, positions, kinds: (words + positions) + (kinds + positions),
    "clipped": lambda words, positions, kinds: jax.nn.relu(words + positions) + kinds,
    "relu last": lambda words, positions, kinds: jax.nn.relu6(words + positions),
    "many": lambda words, positions, kinds: sum([words, kinds] * 6, start=positions),
}


@pytest.mark.parametrize("name", SUMS)
@settings(max_examples=3, deadline=None, phases=[Phase.generate])
@given(st.data())
def test_embeddings(name, data):
    """Rows that no table has are all NaN, or the nearest row."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    batch, length = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 5, 70]))
    channels, mode = data.draw(st.sampled_from([1, 7, 64, 200])), data.draw(st.sampled_from(["fill", "clip"]))
    shape = data.draw(st.sampled_from([(length, channels), (1, length, channels), (channels,), (length, 1)]))
    params = {"words": images(50, channels), "kinds": images(2, channels, seed=1), "positions": images(*shape, seed=2)}
    tokens = rng.integers(-60, 60, (batch, length)).astype(np.int32)

    def fun(params, tokens):
        words = jnp.take(params["words"], tokens, axis=0, mode=mode)
        return SUMS[name](words, params["positions"], params["kinds"][tokens % 2])

    graph = quantized(graph_of(fun, params, tokens))
    assert not outside(graph) & {"gather", "affine", "quantize"}
    np.testing.assert_array_equal(*both(graph, tokens))


def test_a_sum_that_xla_reads_is_its_own():
    table, tokens = images(50, 8), np.arange(10, dtype=np.int32).reshape(2, 5)
    graph = graph_of(lambda table, tokens: jnp.cumsum(table[tokens], -1), table, tokens)
    assert {"gather", "cumsum"} <= outside(quantized(graph))


@pytest.mark.parametrize(
    "fun",
    [
        lambda table, tokens: table[:, tokens[0]] + 1,  # columns
        lambda table, tokens: jax.lax.dynamic_slice(table, (tokens[0, 0], 0), (5, 8)),
        lambda table, tokens: table.astype(jnp.bfloat16)[tokens],
        lambda table, tokens: jnp.take(table, tokens, axis=0, mode="fill", fill_value=2.0),
        lambda table, tokens: table.reshape(-1)[tokens],
    ],
)
def test_other_lookups_are_xlas(fun):
    graph = graph_of(fun, images(50, 8), np.arange(10, dtype=np.int32).reshape(2, 5))
    assert not any(looks_up(node) for node in graph.nodes)


POOLS = {
    "sum": lambda x, weight: x.sum(-2),
    "mean": lambda x, weight: x.mean(-2),
    "masked": lambda x, weight: (x * weight[..., :1]).sum(-2),
    "weighted": lambda x, weight: jax.nn.relu((x * weight).sum(-2)),
    "of images": lambda x, weight: (x.reshape(3, 1, *x.shape[1:]) * weight[:, None]).sum((1, 2)),
}


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize(("length", "channels"), [(1, 1), (33, 7), (70, 384), (300, 65)])
def test_sums_over_rows(name, length, channels):
    rng = np.random.default_rng(length)
    q = rng.integers(-127, 128, (3, length, channels)).astype(np.int8)
    weight = images(3, length, channels)
    graph = dequantized(
        graph_of(lambda _, x, weight: POOLS[name](x, weight), {}, np.zeros(q.shape, np.float32), weight)
    )
    assert not outside(graph) & {"sum", "product", "dequantize"}
    found, expected = both(graph, q, weight)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * length**0.5)


def test_sums_of_what_xla_made_are_its_own():
    graph = graph_of(lambda _, x: (jnp.cumsum(x, -1) * x).sum(-2), {}, images(3, 5, 8))
    assert any(map(sums, graph.nodes)) and outside(graph) == {"cumsum", "product", "sum"}
    assert not any(adds(node) or looks_up(node) for node in graph.nodes)


def test_an_encoder_of_sentences(monkeypatch):
    """Its float edges stand inside the region; and examples have the same bits in blocks, and under vmap."""
    monkeypatch.undo()  # regions as they are
    shapes = {"words": (50, 16), "positions": (6, 16), "a": (16, 32), "b": (32, 16)}
    params = {name: images(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}

    def norm(x):
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)

    def fun(params, tokens):
        x = norm(params["words"][tokens] + params["positions"])
        x = norm(x + jax.nn.relu(x @ params["a"]) @ params["b"])
        mask = (tokens > 0)[..., None].astype(jnp.float32)
        return (x * mask).sum(1) / mask.sum(1)

    tokens = np.random.default_rng(0).integers(0, 50, (4, 6)).astype(np.int32)
    qmodel = jaxq.quantize(fun, params, [tokens], config=jaxq.QuantConfig(method="amax"))
    gathered = [node.op for node in qmodel.plan.gathered.nodes if not node.is_constant]
    assert gathered.count("region") == 1 and not {"gather", "affine", "product"} & set(gathered)
    found = np.asarray(qmodel(tokens))
    np.testing.assert_allclose(found, cheap.oracle(qmodel, tokens), atol=0.05)
    np.testing.assert_array_equal(found, np.concatenate([qmodel(tokens[:1]), qmodel(tokens[1:])]))
    np.testing.assert_array_equal(found.reshape(2, 2, -1), jax.vmap(qmodel)(tokens.reshape(2, 2, 6)))
