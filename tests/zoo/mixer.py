"""MLP-Mixer (Tolstikhin et al. 2021): patches, then blocks of one MLP over the tokens and one over the channels."""

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx


class Mlp(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(self.hidden)(x)
        return nn.Dense(x.shape[-1])(nn.gelu(y))


class Block(nn.Module):
    tokens_hidden: int
    channels_hidden: int

    @nn.compact
    def __call__(self, x):
        y = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
        x = x + jnp.swapaxes(Mlp(self.tokens_hidden, name="token_mixing")(y), 1, 2)
        return x + Mlp(self.channels_hidden, name="channel_mixing")(nn.LayerNorm()(x))


class Mixer(nn.Module):
    """Images (N, H, W, 3) to logits (N, classes). The defaults are Mixer-S/16."""

    patch: int = 16
    width: int = 512
    layers: int = 8
    tokens_hidden: int = 256
    channels_hidden: int = 2048
    classes: int = 1000

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(self.width, (self.patch,) * 2, (self.patch,) * 2, name="stem")(images)
        x = x.reshape(x.shape[0], -1, self.width)
        for i in range(self.layers):
            x = Block(self.tokens_hidden, self.channels_hidden, name=f"block{i}")(x)
        x = nn.LayerNorm(name="norm")(x)
        return nn.Dense(self.classes, name="head")(jnp.mean(x, axis=1))


class NnxMlp(nnx.Module):
    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs):
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.gelu(self.up(x)))


class NnxBlock(nnx.Module):
    def __init__(self, tokens: int, width: int, tokens_hidden: int, channels_hidden: int, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.token_mixing = NnxMlp(tokens, tokens_hidden, rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.channel_mixing = NnxMlp(width, channels_hidden, rngs)

    def __call__(self, x):
        x = x + self.token_mixing(self.norm1(x).transpose(0, 2, 1)).transpose(0, 2, 1)
        return x + self.channel_mixing(self.norm2(x))


class NnxMixer(nnx.Module):
    """`Mixer` for images of one size (H, W)."""

    def __init__(
        self,
        image=(224, 224),
        patch=16,
        width=512,
        layers=8,
        tokens_hidden=256,
        channels_hidden=2048,
        classes=1000,
        *,
        rngs: nnx.Rngs,
    ):
        tokens = (image[0] // patch) * (image[1] // patch)
        self.stem = nnx.Conv(3, width, (patch, patch), (patch, patch), rngs=rngs)
        self.blocks = nnx.List([NnxBlock(tokens, width, tokens_hidden, channels_hidden, rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, images):
        x = self.stem(images)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(axis=1))
