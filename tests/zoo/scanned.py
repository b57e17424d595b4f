"""A transformer whose layers are one scan over stacked weights, by `nn.scan`, by `lax.scan`, and the same unrolled."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class Layer(nn.Module):
    """A pre-norm block as the body of a scan: (carry, nothing) to (carry, nothing)."""

    heads: int

    @nn.compact
    def __call__(self, x, _):
        width = x.shape[-1]
        x = x + nn.MultiHeadDotProductAttention(self.heads, name="attention")(nn.LayerNorm(name="norm1")(x))
        y = nn.gelu(nn.Dense(4 * width, name="up")(nn.LayerNorm(name="norm2")(x)))
        return x + nn.Dense(width, name="down")(y), None


class Scanned(nn.Module):
    """Embeddings (N, T, width) to logits (N, T, classes)."""

    layers: int = 12
    heads: int = 6
    classes: int = 1000

    @nn.compact
    def __call__(self, x):
        stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.layers)
        x, _ = stack(self.heads, name="layers")(x, None)
        return nn.Dense(self.classes, name="head")(nn.LayerNorm(name="norm")(x))


class Unrolled(nn.Module):
    """`Scanned` as a Python loop: layer i has the weights `layers{i}`."""

    layers: int = 12
    heads: int = 6
    classes: int = 1000

    @nn.compact
    def __call__(self, x):
        for i in range(self.layers):
            x, _ = Layer(self.heads, name=f"layers{i}")(x, None)
        return nn.Dense(self.classes, name="head")(nn.LayerNorm(name="norm")(x))


def unstacked(variables):
    """The variables of `Scanned` as those of `Unrolled`."""
    params = dict(variables["params"])
    stack = params.pop("layers")
    length = jax.tree.leaves(stack)[0].shape[0]
    return {"params": params | {f"layers{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(length)}}


def normalised(p, x):
    """LayerNorm, plainly."""
    mean = jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), -1, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 1e-6) * p["scale"] + p["bias"]


def plain(variables, x):
    """`Scanned` as a plain function of the same variables: `lax.scan` over a layer that is written out."""

    def layer(x, p):
        attention, y = p["attention"], normalised(p["norm1"], x)
        query, key, value = (
            jnp.einsum("btc,chd->bthd", y, attention[name]["kernel"]) + attention[name]["bias"]
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
        context = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)
        x = x + jnp.einsum("bqhd,hdc->bqc", context, attention["out"]["kernel"]) + attention["out"]["bias"]
        y = jax.nn.gelu(normalised(p["norm2"], x) @ p["up"]["kernel"] + p["up"]["bias"])
        return x + (y @ p["down"]["kernel"] + p["down"]["bias"]), None

    p = variables["params"]
    x, _ = lax.scan(layer, x, p["layers"])
    return normalised(p["norm"], x) @ p["head"]["kernel"] + p["head"]["bias"]
