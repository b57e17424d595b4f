"""Small networks in the ways Flax users write them, with weights and batch statistics that are not the initial ones."""

import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class ConvNorm(nn.Module):
    features: int
    kernel: int = 3
    strides: int = 1

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(self.features, (self.kernel,) * 2, self.strides, use_bias=False)(x)
        return nn.BatchNorm(use_running_average=not train)(x)


class Residual(nn.Module):
    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x, train=False):
        y = nn.relu(ConvNorm(self.features, strides=self.strides)(x, train))
        y = ConvNorm(self.features)(y, train)
        if x.shape != y.shape:
            x = ConvNorm(self.features, 1, self.strides)(x, train)
        return nn.relu(x + y)


class Inception(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        a = nn.relu(ConvNorm(8, 1)(x, train))
        b = nn.relu(ConvNorm(8)(nn.relu(ConvNorm(4, 1)(x, train)), train))
        c = nn.relu(ConvNorm(8, 5)(nn.relu(ConvNorm(4, 1)(x, train)), train))
        d = nn.relu(ConvNorm(8, 1)(nn.max_pool(x, (3, 3), (1, 1), "SAME"), train))
        return jnp.concatenate([a, b, c, d], -1)


class SmallCNN(nn.Module):
    """Residual blocks with and without projection, an Inception block, a dense head."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu6(ConvNorm(16)(x, train))
        x = Residual(16)(x, train)
        x = Residual(24, 2)(x, train)
        x = Inception()(x, train)
        return nn.Dense(10, name="head")(x.mean((1, 2)))


class InvertedResidual(nn.Module):
    """The block of MobileNet and EfficientNet: depthwise between two 1x1 convs, linear at its end."""

    @nn.compact
    def __call__(self, x, train=False):
        y = nn.relu6(ConvNorm(24, 1)(x, train))
        y = nn.Conv(24, (3, 3), feature_group_count=24, use_bias=False)(y)
        y = nn.relu6(nn.BatchNorm(use_running_average=not train)(y))
        return x + ConvNorm(x.shape[-1], 1)(y, train)


class MobileCNN(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu6(ConvNorm(12, strides=2)(x, train))
        x = InvertedResidual()(InvertedResidual()(x, train), train)
        return nn.Dense(7)(x.mean((1, 2)))


class NnxCNN(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.blocks = nnx.List([nnx.Conv(8, 8, (3, 3), rngs=rngs) for _ in range(2)])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = nnx.relu(x + block(x))
        return self.head(self.dropout(jnp.mean(x, (1, 2))))


def images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def variables(model: nn.Module, *args: Any, seed: int = 0) -> Any:
    """Random variables of the model's shapes; none is the 0 or 1 that an initialiser would give. (Flax's own
    initialisers take seconds to compile.)"""
    return drawn(jax.eval_shape(model.init, jax.random.key(seed), *args), seed)


def nnx_module(make: Callable[[nnx.Rngs], nnx.Module], seed: int = 0) -> Any:
    """The module that `make` builds, in inference mode, its state drawn as `variables` draws it."""
    graph_def, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(seed))))
    module = nnx.merge(graph_def, drawn(state, seed))
    module.eval()
    return module


def drawn(shapes: Any, seed: int = 0) -> Any:
    """A pytree of random arrays of the given shapes, of a size that suits the names in their paths."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):  # the state of dropout
            is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            return jax.random.key(seed) if is_key else np.zeros(leaf.shape, leaf.dtype)
        kind = [key.key for key in path if hasattr(key, "key")][-1]
        value = rng.normal(size=leaf.shape)
        if kind in ("scale", "var"):
            value = np.exp(0.3 * value)
        elif leaf.ndim > 1:
            value *= np.sqrt(2 / np.prod(leaf.shape[:-1]))
        else:
            value *= 0.3
        return value.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def mlp(params: Any, x: jax.Array) -> jax.Array:
    """A plain function of a list of (weight, bias)."""
    for w, b in params[:-1]:
        x = jnp.maximum(x @ w + b, 0)
    w, b = params[-1]
    return x @ w + b


def mlp_params(*sizes: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(m, n)).astype(np.float32), rng.normal(size=n).astype(np.float32))
        for m, n in itertools.pairwise(sizes)
    ]


def equations(jaxpr: Any) -> Any:
    """Every equation of a jaxpr and of those inside it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            if hasattr(inner, "eqns"):
                yield from equations(inner)
            elif hasattr(inner, "jaxpr"):
                yield from equations(inner.jaxpr)


def decibels(exact: Any, approximate: Any) -> float:
    """The signal to quantization noise ratio."""
    exact = np.asarray(exact, np.float64)
    return float(10 * np.log10(np.sum(exact**2) / np.sum((exact - np.asarray(approximate, np.float64)) ** 2)))
