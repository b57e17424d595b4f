"""Folding in every spelling: a row of a table is a spelling, and what the graph of it must be.

The rewritten graph of every row computes what the function computes (`simplified` checks it at two batch sizes).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from jax import lax
from rewriting import X, linen, norm, shown, simplified

from jaxq import passes
from jaxq.config import QuantConfig
from jaxq.graph.trace import trace
from jaxq.passes.place import place

MEAN, VAR, SCALE, BIAS = (networks.images(6, seed=seed) for seed in range(1, 5))
VAR, POSITIVE = np.exp(VAR), np.abs(SCALE) + 0.1
ONE_EACH = SCALE.reshape(1, 1, 1, 6)
TOKENS = X.reshape(4, 64, 6)


def conv(features=6, kernel=(3, 3), **kwargs):
    return nn.Conv(features, kernel, **kwargs)


def frozen_norm(x, shape):
    weight = SCALE * lax.rsqrt(jnp.asarray(VAR) + 1e-5)
    return x * weight.reshape(shape) + (BIAS - MEAN * weight).reshape(shape)


def by_division(x, shape):
    deviation = jnp.sqrt(jnp.asarray(VAR) + 1e-5)
    return (x - MEAN.reshape(shape)) / deviation.reshape(shape) * SCALE.reshape(shape) + BIAS.reshape(shape)


def broadcast(x):
    return x * jnp.broadcast_to(SCALE, x.shape) + jnp.broadcast_to(BIAS, x.shape)


BEHIND = {
    "frozen norm": (lambda x: nn.relu(frozen_norm(conv()(x), (6,))), ["conv: bias relu"]),
    "frozen norm, four axes": (lambda x: nn.relu(frozen_norm(conv()(x), (1, 1, 1, 6))), ["conv: bias relu"]),
    "by division": (lambda x: by_division(conv()(x), (6,)), ["conv: bias"]),
    "by division, four axes": (lambda x: by_division(conv()(x), (1, 1, 1, 6)), ["conv: bias"]),
    "broadcast to the batch": (lambda x: broadcast(conv()(x)), ["conv: bias"]),
    "a full array of one number": (lambda x: (lambda y: y * jnp.full_like(y, 2.0))(conv()(x)), ["conv: bias"]),
    "maximum with zeros": (lambda x: (lambda y: jnp.maximum(y, jnp.zeros_like(y)))(conv()(x)), ["conv: bias relu"]),
    "stored for every pixel": (lambda x: conv()(x) * np.tile(ONE_EACH, (1, 8, 8, 1)), ["conv: bias"]),
    "scale, then bias": (lambda x: nn.relu(conv(use_bias=False)(x) * SCALE + BIAS), ["conv: bias relu"]),
    "LayerScale": (lambda x: x + conv(kernel=(1, 1))(x) * SCALE, ["conv: bias residual"]),
    "LayerScale on the left": (lambda x: SCALE * nn.Dense(6)(x) + x, ["dot: bias residual"]),
    "negative": (lambda x: -conv()(x), ["conv: bias"]),
    "weight norm": (lambda x: nn.WeightNorm(conv())(x), ["conv: bias"]),
    "behind a transpose": (
        lambda x: nn.Dense(6)(x).transpose(0, 3, 1, 2) * SCALE[:, None, None], ["dot: bias", "transpose"]),
    "bias behind the residual": (
        lambda x: nn.relu(x + nn.Dense(6, use_bias=False)(x) + BIAS), ["dot: bias residual relu"]),
    "scale behind the residual": (
        lambda x: (x + nn.Dense(6)(x)) * SCALE, ["dot: bias residual", "affine"]),
    "one number behind a reshape": (
        lambda x: jnp.sum(x, 1).reshape(-1, 48) * 3.0 + 1.0, ["sum: bias", "reshape"]),
    "relu, then scale": (lambda x: nn.relu(conv()(x)) * POSITIVE, ["conv: bias relu"]),
    "relu, then another sign": (lambda x: nn.relu(conv()(x)) * SCALE, ["conv: bias relu", "affine"]),
    "hard sigmoid": (lambda x: nn.hard_sigmoid(conv()(x)), ["conv: bias clip"]),
    "hard sigmoid, as a product": (lambda x: nn.relu6(conv()(x) + 3.0) * (1 / 6), ["conv: bias clip"]),
    "clip, then negative": (lambda x: 1.0 - jnp.clip(conv()(x), -0.5, 0.7), ["conv: bias clip"]),
}  # fmt: skip

BEFORE = {
    "constants": (lambda x: conv(padding="VALID")((x - MEAN) / POSITIVE), ["conv: bias"]),
    "numbers": (lambda x: conv(padding="VALID")((x / 255.0 - 0.5) / 0.25), ["conv: bias"]),
    "scale before padding": (lambda x: conv()(x / 255.0), ["conv: bias"]),
    "bias before padding": (lambda x: conv()((x - MEAN) / POSITIVE), ["affine: bias", "conv: bias"]),
    "depthwise": (lambda x: conv(12, feature_group_count=6, padding="VALID")(x * SCALE + BIAS), ["conv: bias"]),
    "grouped": (lambda x: conv(4, feature_group_count=2, padding="VALID")(x * SCALE + BIAS), ["conv: bias"]),
    "grouped, padded": (lambda x: conv(4, feature_group_count=2)(x * SCALE), ["conv: bias"]),
    "transposed": (lambda x: nn.ConvTranspose(4, (3, 3), (2, 2))(x * SCALE), ["conv: bias"]),
    "behind relu": (lambda x: conv()(nn.relu(x) * SCALE), ["affine: relu", "conv: bias"]),
}


def two(x):
    return [conv(4)(x), conv(5, (1, 1))(x)]


def together(x, axis=-1):
    return jnp.concatenate(two(x) if axis == -1 else [conv()(x), conv()(x)], axis)


POOL = {"window_shape": (2, 2), "strides": (2, 2)}
ALONE = {"window_shape": (2, 2), "strides": (2, 2), "padding": ((2, 0), (0, 0))}  # a row of it sees padding alone
AROUND = {
    "norm of a concat": (lambda x: norm()(together(x)), ["conv: bias", "conv: bias", "concatenate"]),
    "norm and relu of a concat": (
        lambda x: nn.relu(norm()(together(x))), ["conv: bias relu", "conv: bias relu", "concatenate"]),
    "of rows": (lambda x: norm()(together(x, 1)), ["conv: bias", "conv: bias", "concatenate"]),
    "of a concat in a concat": (
        lambda x: nn.relu(jnp.concatenate([together(x), conv(3)(x)], -1)),
        ["conv: bias relu", "conv: bias relu", "concatenate", "conv: bias relu", "concatenate"]),
    "of values that relu made": (
        lambda x: norm()(nn.relu(together(x))),
        ["conv: bias relu", "conv: bias relu", "concatenate", "affine: bias"]),
    "of a value read twice": (
        lambda x: (lambda y: nn.relu(norm()(jnp.concatenate([y, conv()(y)], -1))))(conv()(x)),
        ["conv: bias", "conv: bias", "concatenate", "affine: bias relu"]),
    "of an input": (
        lambda x: nn.relu(jnp.concatenate([x, conv()(x)], -1)), ["conv: bias", "concatenate", "affine: relu"]),
    "relu behind a max pool": (
        lambda x: nn.relu(nn.max_pool(conv()(x), **POOL)), ["conv: bias relu", "reduce_window_max"]),
    "scale behind a max pool": (
        lambda x: nn.max_pool(conv()(x), **POOL) * POSITIVE, ["conv: bias", "reduce_window_max"]),
    "another sign behind a max pool": (
        lambda x: nn.max_pool(conv()(x), **POOL) * SCALE, ["conv: bias", "reduce_window_max", "affine"]),
    "relu of a padding": (
        lambda x: nn.relu(nn.max_pool(conv()(x), **ALONE)), ["conv: bias", "reduce_window_max", "affine: relu"]),
    "relu behind both": (
        lambda x: nn.relu(nn.max_pool(together(x), **POOL)),
        ["conv: bias relu", "conv: bias relu", "concatenate", "reduce_window_max"]),
}  # fmt: skip

GEOMETRY = {
    "one axis": (lambda x: nn.relu(norm()(conv(5, (3,))(x))), TOKENS, ["conv: bias relu"]),
    "dilated, asymmetric": (
        lambda x: norm()(conv(5, (3,), kernel_dilation=2, padding=((4, 0),))(x)), TOKENS, ["conv: bias"]),
    "three axes": (
        lambda x: nn.relu(norm()(conv(5, (3, 3, 3))(x))), X.reshape(4, 4, 4, 4, 6), ["conv: bias relu"]),
    "strided": (lambda x: conv(5, padding=((0, 1), (2, 0)), strides=2)(x), X, ["conv: bias"]),
    "transposed": (
        lambda x: norm()(nn.ConvTranspose(5, (4, 4), (2, 2), transpose_kernel=True)(x)), X, ["conv: bias"]),
    "einsum": (lambda x: nn.relu(nn.Einsum((6, 5), "blc,cd->bld")(x)), TOKENS, ["dot: bias relu"]),
    "constant on the left": (lambda x: jnp.einsum("oc,blc->blo", X[0, :5, 0], x) + 1.0, TOKENS, ["dot: bias"]),
    "tokens mixed": (
        lambda x: nn.relu(nn.Dense(5)(x.swapaxes(1, 2))).swapaxes(1, 2), TOKENS,
        ["transpose", "dot: bias relu", "transpose"]),
    "a matrix a head": (
        lambda x: jnp.einsum("blhd,hdk->blhk", x, networks.images(8, 6, 5)), X, ["reshape", "conv", "reshape"]),
    "a matrix a head, on the left": (
        lambda x: jnp.einsum("hdk,bhd->hbk", networks.images(8, 6, 5), x[:, :, 0]), X,
        ["slice", "squeeze", "reshape", "conv", "reshape", "transpose"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BEHIND)
def test_behind(name):
    layers, expected = BEHIND[name]
    assert shown(simplified(*linen(layers), X)) == expected


@pytest.mark.parametrize("name", BEFORE)
def test_before(name):
    layers, expected = BEFORE[name]
    assert shown(simplified(*linen(layers), X)) == expected


@pytest.mark.parametrize("name", AROUND)
def test_around_concats_and_pools(name):
    layers, expected = AROUND[name]
    assert shown(simplified(*linen(layers), X)) == expected


def test_a_layer_norm_gives_its_scale_and_bias_to_the_one_layer_behind_it():
    def roles(fun):
        graph = simplified(*linen(fun), X, tolerance=1e-4)
        assert {"mul", "product", "affine"}.isdisjoint(node.op for node in graph.nodes)
        (found,) = (node for node in graph.nodes if node.op == "layer_norm")
        return found.roles

    assert roles(lambda x: nn.Dense(5)(nn.LayerNorm()(x))) == ("x",)
    assert roles(lambda x: conv(padding="VALID")(nn.LayerNorm()(x))) == ("x",)
    assert roles(lambda x: conv()(nn.LayerNorm()(x))) == ("x", "scale", "bias")
    assert roles(lambda x: (lambda y: nn.Dense(5)(y) + nn.Dense(5)(y))(nn.LayerNorm()(x))) == ("x", "scale", "bias")


@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry(name):
    layers, x, expected = GEOMETRY[name]

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layers(x)

    model = Net()
    graph = simplified(model.apply, networks.variables(model, x), x)
    assert shown(graph) == expected
    weighted = [node for node in graph.nodes if node.op in ("conv", "dot")]
    assert weighted and place(graph, QuantConfig()).int8 >= set(weighted)


@pytest.mark.usefixtures("standard_promotion")  # Flax's batch norm subtracts a float32 mean
@pytest.mark.parametrize(("dtype", "lsb"), [(jnp.bfloat16, 2**-8), (jnp.float16, 2**-11)])
@pytest.mark.parametrize("stored", ["float32", "half"])
def test_half_precision(dtype, lsb, stored):
    """Within 8 LSB of the dtype: the model rounds after each of its steps, the rewritten graph once a layer."""
    kinds = {"dtype": dtype, "param_dtype": jnp.float32 if stored == "float32" else dtype}

    def layers(x):
        x = nn.relu(norm(**kinds)(conv(**kinds)(x)))
        x = nn.relu(norm(**kinds)(conv(**kinds)(x)) + x)
        return nn.Dense(5, **kinds)(x.mean((1, 2)))

    graph = simplified(*linen(layers), X.astype(dtype), tolerance=8 * lsb)
    assert shown(graph) == ["conv: bias relu", "conv: bias residual relu", "sum", "dot: bias"]


def channels_first(x, seed):
    numbers = ("NCHW", "OIHW", "NCHW")
    weight = networks.images(8, 8, 3, 3, seed=seed) / 8
    return lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=numbers)


def block(x):
    weight, bias = networks.images(2, 8, 1, 1, seed=5)
    return jax.nn.relu(channels_first(x, 1) * weight + bias)


def pooled(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


FIRST = {
    "one": (block, ["transpose", "conv: bias relu", "transpose"]),
    "two": (lambda x: channels_first(block(x), 2), ["transpose", "conv: bias relu", "conv", "transpose"]),
    "pool": (
        lambda x: channels_first(pooled(block(x)), 2),
        ["transpose", "conv: bias relu", "reduce_window_max", "conv", "transpose"],
    ),
    "residual": (
        lambda x: (lambda y: jax.nn.relu(y + channels_first(y, 2)))(block(x)),
        ["transpose", "conv: bias relu", "conv: residual relu", "transpose"],
    ),
    "concat": (
        lambda x: (lambda y: channels_first(jnp.concatenate([y[:, :4], channels_first(y, 3)[:, 4:]], 1), 2))(block(x)),
        ["transpose", "conv: bias relu", "slice", "conv", "slice", "concatenate", "conv", "transpose"],
    ),
    "mean": (
        lambda x: block(x).mean((2, 3)) @ networks.images(8, 5),
        ["transpose", "conv: bias relu", "sum", "dot"],
    ),
}


@pytest.mark.parametrize("name", FIRST)
def test_channels_first(name):
    fun, expected = FIRST[name]
    graph = simplified(lambda params, x: fun(x), {}, networks.images(4, 8, 6, 6))
    assert shown(graph) == expected


def test_a_conv_that_groups_its_batch_says_so():
    def fun(params, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, params["w"], (1, 1), "SAME", dimension_numbers=numbers, batch_group_count=2)

    graph = passes.simplify(trace(fun, {"w": networks.images(3, 3, 6, 4)}, (X,)).graph)
    (reason,) = place(graph, QuantConfig()).reasons.values()
    assert reason == "it groups its batch, or has more than three spatial axes"
