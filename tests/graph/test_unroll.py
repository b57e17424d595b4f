"""A scan over stacked weights is the network written out by hand: its nodes, its names, its bits."""

import cheap
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from networks import images, nnx_module, variables

from jaxq import passes
from jaxq.config import QuantConfig
from jaxq.graph.evaluate import evaluate
from jaxq.graph.node import CONTROL
from jaxq.graph.trace import trace
from jaxq.models import as_function
from jaxq.passes.lower import lower
from jaxq.passes.merge import merge
from jaxq.passes.place import place
from jaxq.passes.scales import choices_of

X = images(4, 6)
STACK = {"w": images(3, 6, 6), "b": images(3, 6, seed=1)}


def rows(stack, length=3):
    """A tree of stacked arrays as the list of its rows."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(length)]


def layer(x, p):
    return jax.nn.relu(x @ p["w"] + p["b"])


def int8_graph(fun, params, *args):
    """With thresholds that are all different, so that a scale in the wrong place is seen."""
    graph = passes.simplify(trace(fun, params, args).graph)
    placement = place(graph, QuantConfig())
    thresholds = {group.name: 2 + i / 7 for i, group in enumerate(placement.scale_groups)}
    return merge(lower(graph, placement, choices_of(placement, thresholds), QuantConfig()))


def run(graph, *args):
    return cheap.jit(lambda params, *args: evaluate(graph.bind(args[0].shape[0]), params, args))(graph.params, *args)


def shape_of(graph):
    return [(node.op, node.name, str(node.aval), node.fused) for node in graph.nodes]


def assert_same_network(ours, by_hand, *args):
    """Two functions with their parameters: the same int8 nodes, names, and bits."""
    one, other = int8_graph(*ours, *args), int8_graph(*by_hand, *args)
    assert shape_of(one) == shape_of(other)
    assert not any(node.op in CONTROL for node in one.nodes)
    for ours_y, theirs in zip(run(one, *args), run(other, *args), strict=True):
        np.testing.assert_array_equal(ours_y, theirs)
    return one


def test_plain_scan():
    def scanned(p, x):
        return lax.scan(lambda x, p: (layer(x, p), None), x, p["layers"])[0] @ p["head"]

    def by_hand(p, x):
        for one in p["layers"]:
            x = layer(x, one)
        return x @ p["head"]

    head = images(6, 2)
    params = {"layers": STACK, "head": head}
    graph = assert_same_network((scanned, params), (by_hand, {"layers": rows(STACK), "head": head}), X)
    assert [node.name for node in graph.nodes if node.op == "dot"] == ["layers/0", "layers/1", "layers/2", "head"]


def test_reversed_with_results_of_every_turn_and_data_beside_the_weights():
    def turn(x, p, bias):
        x = layer(x + bias, p)
        return x, x * 2

    def scanned(p, x, biases):
        return lax.scan(lambda x, s: turn(x, *s), x, (p, jnp.moveaxis(biases, 1, 0)), reverse=True)

    biases = images(4, 3, 6)
    graph = trace(scanned, STACK, (X, biases)).graph
    assert [node.name for node in graph.nodes if node.op == "dot_general"] == ["2", "1", "0"]
    for size in (4, 2):
        exact = cheap.jit(scanned)(STACK, X[:size], biases[:size])
        for ours, theirs in zip(run(graph, X[:size], biases[:size]), exact, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_scan_in_a_scan():
    stack = {"w": images(2, 3, 6, 6), "b": images(2, 3, 6, seed=1)}

    def scanned(p, x):
        def outer(x, p):
            return lax.scan(lambda x, p: (layer(x, p), None), x, p)[0], None

        return lax.scan(outer, x, p["layers"])[0]

    def by_hand(p, x):
        for group in p["layers"]:
            for one in group:
                x = layer(x, one)
        return x

    lists = [rows(group) for group in rows(stack, 2)]
    assert_same_network((scanned, {"layers": stack}), (by_hand, {"layers": lists}), X)


def test_weights_that_follow_from_stacked_parameters():
    def scanned(p, x):
        normed = p["w"] / jnp.linalg.norm(p["w"], axis=1, keepdims=True)
        return lax.scan(lambda x, w: (x @ w, None), x, normed.astype(jnp.float32))[0]

    graph = int8_graph(scanned, STACK, X)
    assert [node.op for node in graph.nodes if node.op in CONTROL | {"dot", "slice"}] == ["dot"] * 3


def test_data_is_no_reason_to_write_out():
    """A scan over constants that no dot reads, and one over data with constant weights, stay loops."""

    def positions(p, x):
        return lax.scan(lambda x, b: (x @ p["w"][0] + b, None), x, p["b"])[0]

    def recurrent(p, x):
        return lax.scan(lambda h, x: (jnp.tanh(h @ p["w"][0] + x), None), x[:, 0], jnp.moveaxis(x, 1, 0))[0]

    for fun, x in ((positions, X), (recurrent, images(4, 5, 6))):
        graph = int8_graph(fun, STACK, x)
        assert [node.op for node in graph.all_nodes].count("scan") == 1
        assert [node.op for node in graph.all_nodes].count("dot") == 1


def test_layers_inside_a_loop_over_time():
    def fun(p, x):
        def step(h, x):
            return lax.scan(lambda h, p: (layer(h, p), None), h + x, p["layers"])[0], None

        return lax.scan(step, x[:, 0], jnp.moveaxis(x, 1, 0))[0]

    graph = int8_graph(fun, {"layers": STACK}, images(4, 5, 6))
    assert [node.name for node in graph.all_nodes if node.op == "dot"] == ["layers/0", "layers/1", "layers/2"]
    assert [node.op for node in graph.all_nodes].count("scan") == 1


class Block(nn.Module):
    """A transformer's block, and None for `nn.scan`."""

    @nn.compact
    def __call__(self, x, _=None):
        x = x + nn.MultiHeadDotProductAttention(2, name="attn")(nn.LayerNorm()(x))
        y = nn.relu(nn.Dense(16, name="up")(nn.LayerNorm()(x)))
        return x + nn.Dense(8, name="down")(y), None


class Scanned(nn.Module):
    length: int = 3
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Block) if self.remat else Block
        stack = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.length)
        return nn.Dense(4, name="head")(stack(name="layers")(x, None)[0])


class ByHand(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(3):
            x = Block(name=f"layers_{i}")(x)[0]
        return nn.Dense(4, name="head")(x)


@pytest.mark.parametrize("remat", [False, True])
def test_a_scanned_transformer(remat):
    model, x = Scanned(remat=remat), images(2, 5, 8)
    stacked = variables(model, x)
    layers = {f"layers_{i}": row for i, row in enumerate(rows(stacked["params"]["layers"]))}
    by_hand = {"params": layers | {"head": stacked["params"]["head"]}}
    one, other = int8_graph(model.apply, stacked, x), int8_graph(ByHand().apply, by_hand, x)
    names = [node.name for node in one.nodes if node.op == "dot"]
    assert "Scanned/layers/1/attn/{query,key,value}" in names
    assert "Scanned/layers/2/up" in names
    assert names == [
        node.name.replace("ByHand/layers_", "Scanned/layers/").replace("ByHand", "Scanned")
        for node in other.nodes
        if node.op == "dot"
    ]
    assert [node.op for node in one.nodes] == [node.op for node in other.nodes]
    np.testing.assert_array_equal(*(run(graph, x)[0] for graph in (one, other)))


def test_nnx_names_come_from_the_weights():
    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.up, self.down = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 6, rngs=rngs)

        def __call__(self, x):
            return x + self.down(nnx.relu(self.up(x)))

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.vmap(Layer, in_axes=0, out_axes=0)(rngs.split(3))

        def __call__(self, x):
            return nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.layers)

    fun, params = as_function(nnx_module(Net), None, {})
    graph = int8_graph(fun, params, X)
    names = [node.name for node in graph.nodes if node.op == "dot"]
    assert names == [f"layers/{i}/{name}" for i in range(3) for name in ("up", "down")]


@pytest.mark.slow
def test_forty_eight_layers_cost_what_their_number_says():
    import time

    def seconds(length):
        model, x = Scanned(length=length), images(2, 5, 8)
        stacked = variables(model, x)
        start = time.perf_counter()
        graph = int8_graph(model.apply, stacked, x)
        assert sum(node.op == "dot" for node in graph.nodes) == 4 * length + 1
        return time.perf_counter() - start

    seconds(2)
    few, many = seconds(12), seconds(48)
    assert many < 20
    assert many < 8 * few
