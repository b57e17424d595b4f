"""Inception-v1: nine blocks of parallel branches, with batch norm or, as published, with a bias."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx


class Widths(NamedTuple):
    """Of one block: the 1x1 branch, the 3x3 and 5x5 branches each behind a 1x1, and the 1x1 behind the pool."""

    b1: int
    reduce3: int
    b3: int
    reduce5: int
    b5: int
    pool: int

    @property
    def total(self) -> int:
        return self.b1 + self.b3 + self.b5 + self.pool


# The blocks of each stage; a pool stands between stages.
STAGES = (
    (Widths(64, 96, 128, 16, 32, 32), Widths(128, 128, 192, 32, 96, 64)),
    (
        Widths(192, 96, 208, 16, 48, 64),
        Widths(160, 112, 224, 24, 64, 64),
        Widths(128, 128, 256, 24, 64, 64),
        Widths(112, 144, 288, 32, 64, 64),
        Widths(256, 160, 320, 32, 128, 128),
    ),
    (Widths(256, 160, 320, 32, 128, 128), Widths(384, 192, 384, 48, 128, 128)),
)
STEM = (64, 64, 192)


class BasicConv(nn.Module):
    features: int
    kernel: int = 1
    strides: int = 1
    norm: bool = True

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(self.features, (self.kernel, self.kernel), self.strides, use_bias=not self.norm, name="conv")(x)
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train, epsilon=1e-3, name="bn")(x)
        return nn.relu(x)


class InceptionBlock(nn.Module):
    widths: Widths
    norm: bool = True

    @nn.compact
    def __call__(self, x, train: bool = False):
        def conv(features, kernel, name):
            return BasicConv(features, kernel, norm=self.norm, name=name)

        w = self.widths
        x_1x1 = conv(w.b1, 1, "b1")(x, train)
        x_3x3 = conv(w.b3, 3, "b3")(conv(w.reduce3, 1, "reduce3")(x, train), train)
        x_5x5 = conv(w.b5, 5, "b5")(conv(w.reduce5, 1, "reduce5")(x, train), train)
        x_max = conv(w.pool, 1, "pool")(nn.max_pool(x, (3, 3), strides=(1, 1), padding="SAME"), train)
        return jnp.concatenate([x_1x1, x_3x3, x_5x5, x_max], axis=-1)


class GoogLeNet(nn.Module):
    num_classes: int = 1000
    stem: tuple[int, int, int] = STEM
    stages: tuple[tuple[Widths, ...], ...] = STAGES
    norm: bool = True

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = BasicConv(self.stem[0], 7, 2, norm=self.norm)(x, train)
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        x = BasicConv(self.stem[1], 1, norm=self.norm)(x, train)
        x = BasicConv(self.stem[2], 3, norm=self.norm)(x, train)
        for blocks in self.stages:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
            for widths in blocks:
                x = InceptionBlock(widths, norm=self.norm)(x, train)
        x = x.mean(axis=(1, 2))
        x = nn.Dropout(0.4, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="logits")(x)


class NnxBasicConv(nnx.Module):
    def __init__(self, cin: int, cout: int, kernel: int = 1, strides: int = 1, *, norm: bool, rngs: nnx.Rngs):
        self.conv = nnx.Conv(cin, cout, (kernel, kernel), strides, use_bias=not norm, rngs=rngs)
        self.bn = nnx.BatchNorm(cout, epsilon=1e-3, rngs=rngs) if norm else None

    def __call__(self, x):
        x = self.conv(x)
        if self.bn is not None:
            x = self.bn(x)
        return nnx.relu(x)


class NnxInceptionBlock(nnx.Module):
    def __init__(self, cin: int, w: Widths, *, norm: bool, rngs: nnx.Rngs):
        def conv(cin, cout, kernel=1):
            return NnxBasicConv(cin, cout, kernel, norm=norm, rngs=rngs)

        self.branch1 = conv(cin, w.b1)
        self.branch3 = nnx.Sequential(conv(cin, w.reduce3), conv(w.reduce3, w.b3, 3))
        self.branch5 = nnx.Sequential(conv(cin, w.reduce5), conv(w.reduce5, w.b5, 5))
        self.branch_pool = conv(cin, w.pool)

    def __call__(self, x):
        pooled = nnx.max_pool(x, (3, 3), strides=(1, 1), padding="SAME")
        branches = [self.branch1(x), self.branch3(x), self.branch5(x), self.branch_pool(pooled)]
        return jnp.concatenate(branches, axis=-1)


class NnxGoogLeNet(nnx.Module):
    def __init__(self, *, num_classes: int = 1000, stem=STEM, stages=STAGES, norm: bool = True, rngs: nnx.Rngs):
        self.conv1 = NnxBasicConv(3, stem[0], 7, 2, norm=norm, rngs=rngs)
        self.conv2 = NnxBasicConv(stem[0], stem[1], norm=norm, rngs=rngs)
        self.conv3 = NnxBasicConv(stem[1], stem[2], 3, norm=norm, rngs=rngs)
        cin, built = stem[2], []
        for widths in stages:
            blocks = []
            for w in widths:
                blocks.append(NnxInceptionBlock(cin, w, norm=norm, rngs=rngs))
                cin = w.total
            built.append(nnx.Sequential(*blocks))
        self.stages = nnx.List(built)
        self.dropout = nnx.Dropout(0.4, rngs=rngs)
        self.fc = nnx.Linear(cin, num_classes, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(self.conv1(x), (3, 3), strides=(2, 2), padding="SAME")
        x = self.conv3(self.conv2(x))
        for stage in self.stages:
            x = stage(nnx.max_pool(x, (3, 3), strides=(2, 2), padding="SAME"))
        return self.fc(self.dropout(x.mean(axis=(1, 2))))
