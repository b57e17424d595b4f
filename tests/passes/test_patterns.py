"""The patterns hold on Flax's own layers, Linen and NNX: a change in Flax breaks a test and does not silently match
nothing. Each case is a network and the nodes that must be left of it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import images, nnx_module
from rewriting import X, linen, norm, shown, simplified

from jaxq import passes
from jaxq.graph.trace import trace

FROM_FLAX = pytest.mark.usefixtures("standard_promotion")

CASES = {
    "conv": ([lambda x: nn.Conv(5, (3, 3))(x)], ["conv: bias"]),
    "conv without bias": ([lambda x: nn.Conv(5, (3, 3), use_bias=False)(x)], ["conv"]),
    "conv norm": ([lambda x: norm()(nn.Conv(5, (3, 3))(x))], ["conv: bias"]),
    "conv norm relu": ([lambda x: nn.relu(norm()(nn.Conv(5, (3, 3), use_bias=False)(x)))], ["conv: bias relu"]),
    "conv norm relu6": ([lambda x: nn.relu6(norm()(nn.Conv(5, (3, 3))(x)))], ["conv: bias relu6"]),
    "norm without scale": ([lambda x: norm(use_scale=False)(nn.Conv(5, (3, 3))(x))], ["conv: bias"]),
    "norm without bias": ([lambda x: norm(use_bias=False)(nn.Conv(5, (3, 3))(x))], ["conv: bias"]),
    "norm before conv": ([lambda x: nn.Conv(5, (3, 3), padding="VALID")(norm()(x))], ["conv: bias"]),
    "norm before padded conv": ([lambda x: nn.Conv(5, (3, 3))(norm()(x))], ["affine: bias", "conv: bias"]),
    "depthwise": ([lambda x: nn.relu6(norm()(nn.Conv(6, (3, 3), feature_group_count=6)(x)))], ["conv: bias relu6"]),
    "grouped": ([lambda x: norm()(nn.Conv(4, (3, 3), feature_group_count=2)(x))], ["conv: bias"]),
    "dilated": ([lambda x: norm()(nn.Conv(4, (3, 3), kernel_dilation=2)(x))], ["conv: bias"]),
    "transposed": ([lambda x: nn.relu(norm()(nn.ConvTranspose(4, (3, 3), (2, 2))(x)))], ["conv: bias relu"]),
    "dense": ([lambda x: nn.relu(nn.Dense(5)(x))], ["dot: bias relu"]),
    "dense norm": ([lambda x: norm()(nn.Dense(5)(x))], ["dot: bias"]),
    "norm dense": ([lambda x: nn.Dense(5)(norm()(x))], ["dot: bias"]),
    "clip": ([lambda x: jnp.clip(nn.Conv(5, (3, 3))(x), -0.5, 0.7)], ["conv: bias clip"]),
    "maximum": ([lambda x: jnp.maximum(nn.Conv(5, (3, 3))(x), 0.0)], ["conv: bias relu"]),
    "hard_tanh": ([lambda x: nn.hard_tanh(nn.Dense(5)(x))], None),
    "residual": ([lambda x: nn.relu(x + nn.Conv(6, (3, 3))(x))], ["conv: bias residual relu"]),
    "residual of norm": ([lambda x: norm()(nn.Conv(6, (3, 3))(x)) + x], ["conv: bias residual"]),
    "projection": (
        [lambda x: nn.relu(norm()(nn.Conv(4, (1, 1))(x)) + norm()(nn.Conv(4, (3, 3))(nn.Conv(4, (3, 3))(x))))],
        ["conv: bias", "conv: bias", "conv: bias residual relu"],
    ),
    "mean": ([lambda x: x.mean((1, 2))], ["sum"]),
    "max pool": ([lambda x: nn.max_pool(x, (2, 2), (2, 2))], ["reduce_window_max"]),
    "split": ([lambda x: jnp.concatenate(jnp.split(x, 2, -1)[::-1], -1)], ["slice", "slice", "concatenate"]),
    "scales in a row": ([lambda x: (nn.Dense(5)(x) * 2.0 - 1.0) / 4.0], ["dot: bias"]),
    "constant minus": ([lambda x: 1.0 - nn.Dense(5)(x)], ["dot: bias"]),
    "einsum": ([lambda x: nn.Einsum((6, 5), "bhwc,cd->bhwd")(x)], None),
    "several contracted": ([lambda x: nn.DenseGeneral(5, axis=(-2, -1))(x)], None),
    "several features": ([lambda x: nn.DenseGeneral((2, 3))(x)], None),
}


@pytest.mark.parametrize("name", CASES)
def test_linen(name):
    layers, expected = CASES[name]
    graph = simplified(*linen(*layers), X)
    if expected is not None:
        assert shown(graph) == expected
    assert not any(node.op in ("dot_general", "conv_general_dilated") for node in graph.nodes)


@FROM_FLAX
def test_average_pool():
    graph = simplified(*linen(lambda x: nn.avg_pool(x, (2, 2), (2, 2))), X)
    assert shown(graph) == ["window_sum"]


class NnxLayers(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(6, 6, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
        self.dense = nnx.Linear(6, 5, rngs=rngs)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda m, x: m.conv(x), ["conv"]),
        (lambda m, x: nnx.relu(m.norm(m.conv(x))), ["conv: bias relu"]),
        (lambda m, x: nnx.relu6(m.norm(m.conv(x)) + x), ["conv: bias residual relu6"]),
        (lambda m, x: nnx.relu(m.dense(x)), ["dot: bias relu"]),
        (lambda m, x: m.dense(m.norm(x)), ["dot: bias"]),
        (lambda m, x: m.dense(x.mean((1, 2))), ["sum", "dot: bias"]),
    ],
)
def test_nnx(call, expected):
    model = nnx_module(NnxLayers)
    model.norm.scale[...] = np.linspace(-2, 2, 6, dtype=np.float32)
    graph_def, state = nnx.split(model)
    graph = simplified(lambda state, x: call(nnx.merge(graph_def, state), x), state, X)
    assert shown(graph) == expected


def test_a_value_with_two_readers_is_not_absorbed():
    graph = simplified(*linen(lambda x: (lambda y: jnp.concatenate([nn.relu(y), y]))(nn.Dense(6)(x))), X)
    assert shown(graph) == ["dot: bias", "affine: relu", "concatenate"]


def test_the_passes_are_idempotent(small_cnn):
    graph = passes.simplify(trace(small_cnn.model.apply, small_cnn.variables, (small_cnn.x,)).graph)
    again = passes.simplify(graph)
    assert shown(again) == shown(graph)
    assert [node.name for node in again.nodes] == [node.name for node in graph.nodes]


def test_a_map_folds_into_a_dot_that_is_transposed_behind():
    """The rule for the dot puts it below a transpose; the map before it folds all the same."""

    def fun(params, x):
        return jnp.tensordot(params["w"], x * params["scale"] + params["bias"], ((0,), (1,)))

    params = {"w": images(4, 5), "scale": images(4, seed=1), "bias": images(4, seed=2)}
    graph = passes.simplify(trace(fun, params, (images(3, 4),)).graph)
    assert "affine" not in [node.op for node in graph.nodes]


def test_nothing_is_left_of_a_bound_at_infinity():
    """jax.nn.softmax has a maximum with -inf."""
    graph = simplified(lambda params, x: jax.nn.softmax(x), {}, X)
    assert "affine" not in shown(graph)


def test_what_depends_on_positions_alone_is_a_constant():
    def fun(params, x):
        mask = jnp.tril(jnp.ones((8, 8), bool))[..., None]
        return jnp.where(mask, x + params["positions"][jnp.arange(8)], 0.0)

    graph = simplified(fun, {"positions": images(16, 6)}, X)
    assert [node.op for node in graph.nodes if node.inputs and node.op != "broadcast_in_dim"] == ["affine", "select_n"]
