"""ViT (Dosovitskiy et al. 2020): patches by a strided conv, a class token, pre-norm blocks of attention and MLP."""

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx


class Mlp(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        return nn.Dense(width)(nn.gelu(nn.Dense(self.hidden)(x)))


class Block(nn.Module):
    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
        return x + Mlp(self.hidden)(nn.LayerNorm()(x))


class ViT(nn.Module):
    """Images (N, H, W, 3) to logits (N, classes). The defaults are ViT-S/16."""

    patch: int = 16
    width: int = 384
    layers: int = 12
    heads: int = 6
    classes: int = 1000

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(self.width, (self.patch,) * 2, (self.patch,) * 2, "VALID", name="patches")(images)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], 1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, x.shape[1], self.width))
        for i in range(self.layers):
            x = Block(self.heads, 4 * self.width, name=f"block{i}")(x)
        return nn.Dense(self.classes, name="head")(nn.LayerNorm()(x)[:, 0])


class NnxMlp(nnx.Module):
    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs):
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.gelu(self.up(x)))


class NnxBlock(nnx.Module):
    def __init__(self, width: int, heads: int, hidden: int, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.mlp = NnxMlp(width, hidden, rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class NnxViT(nnx.Module):
    """`ViT` for images of one size (H, W)."""

    def __init__(self, image=(224, 224), patch=16, width=384, layers=12, heads=6, classes=1000, *, rngs: nnx.Rngs):
        tokens = (image[0] // patch) * (image[1] // patch)
        self.patches = nnx.Conv(3, width, (patch, patch), (patch, patch), padding="VALID", rngs=rngs)
        self.class_token = nnx.Param(jnp.zeros((1, 1, width)))
        self.positions = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (1, tokens + 1, width)))
        self.blocks = nnx.List([NnxBlock(width, heads, 4 * width, rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, images):
        x = self.patches(images)
        n, h, w, width = x.shape
        token = jnp.broadcast_to(self.class_token[...], (n, 1, width))
        x = jnp.concatenate([token, x.reshape(n, h * w, width)], axis=1) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])
