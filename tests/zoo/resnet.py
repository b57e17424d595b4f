"""ResNet v1.5 (the stride in the 3x3), as Flax's own example writes it, and the same in NNX."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx

ModuleDef = Any


class BasicBlock(nn.Module):
    filters: int
    conv: ModuleDef
    norm: ModuleDef
    act: Callable
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x):
        residual = x
        y = self.conv(self.filters, (3, 3), self.strides)(x)
        y = self.norm()(y)
        y = self.act(y)
        y = self.conv(self.filters, (3, 3))(y)
        y = self.norm(scale_init=nn.initializers.zeros_init())(y)
        if residual.shape != y.shape:
            residual = self.conv(self.filters, (1, 1), self.strides, name="conv_proj")(residual)
            residual = self.norm(name="norm_proj")(residual)
        return self.act(residual + y)


class BottleneckBlock(nn.Module):
    filters: int
    conv: ModuleDef
    norm: ModuleDef
    act: Callable
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x):
        residual = x
        y = self.conv(self.filters, (1, 1))(x)
        y = self.norm()(y)
        y = self.act(y)
        y = self.conv(self.filters, (3, 3), self.strides)(y)
        y = self.norm()(y)
        y = self.act(y)
        y = self.conv(self.filters * 4, (1, 1))(y)
        y = self.norm(scale_init=nn.initializers.zeros_init())(y)
        if residual.shape != y.shape:
            residual = self.conv(self.filters * 4, (1, 1), self.strides, name="conv_proj")(residual)
            residual = self.norm(name="norm_proj")(residual)
        return self.act(residual + y)


class ResNet(nn.Module):
    stage_sizes: Sequence[int]
    block_cls: ModuleDef
    num_classes: int = 1000
    num_filters: int = 64

    @nn.compact
    def __call__(self, x, train: bool = False):
        conv = partial(nn.Conv, use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)
        x = conv(self.num_filters, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], name="conv_init")(x)
        x = norm(name="bn_init")(x)
        x = nn.relu(x)
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for i, size in enumerate(self.stage_sizes):
            for j in range(size):
                strides = (2, 2) if i > 0 and j == 0 else (1, 1)
                x = self.block_cls(self.num_filters * 2**i, conv=conv, norm=norm, act=nn.relu, strides=strides)(x)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes)(x)


ResNet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), block_cls=BasicBlock)
ResNet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block_cls=BottleneckBlock)


class NnxBasicBlock(nnx.Module):
    expansion = 1

    def __init__(self, features: int, filters: int, stride: int, rngs: nnx.Rngs):
        conv = partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.conv1 = conv(features, filters, (3, 3), strides=stride, padding=1)
        self.bn1 = nnx.BatchNorm(filters, rngs=rngs)
        self.conv2 = conv(filters, filters, (3, 3), padding=1)
        self.bn2 = nnx.BatchNorm(filters, rngs=rngs)
        if stride == 1 and features == filters:
            self.downsample = None
        else:
            projection = conv(features, filters, (1, 1), strides=stride)
            self.downsample = nnx.Sequential(projection, nnx.BatchNorm(filters, rngs=rngs))

    def __call__(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return nnx.relu(x + identity)


class NnxBottleneck(nnx.Module):
    expansion = 4

    def __init__(self, features: int, filters: int, stride: int, rngs: nnx.Rngs):
        conv = partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.conv1 = conv(features, filters, (1, 1))
        self.bn1 = nnx.BatchNorm(filters, rngs=rngs)
        self.conv2 = conv(filters, filters, (3, 3), strides=stride, padding=1)
        self.bn2 = nnx.BatchNorm(filters, rngs=rngs)
        self.conv3 = conv(filters, 4 * filters, (1, 1))
        self.bn3 = nnx.BatchNorm(4 * filters, rngs=rngs)
        if stride == 1 and features == 4 * filters:
            self.downsample = None
        else:
            projection = conv(features, 4 * filters, (1, 1), strides=stride)
            self.downsample = nnx.Sequential(projection, nnx.BatchNorm(4 * filters, rngs=rngs))

    def __call__(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nnx.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return nnx.relu(x + identity)


class NnxResNet(nnx.Module):
    def __init__(self, stage_sizes, block_cls, *, num_classes: int = 1000, num_filters: int = 64, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(3, num_filters, (7, 7), strides=2, padding=3, use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(num_filters, rngs=rngs)
        features, layers = num_filters, []
        for i, size in enumerate(stage_sizes):
            for j in range(size):
                filters = num_filters * 2**i
                layers.append(block_cls(features, filters, 2 if i > 0 and j == 0 else 1, rngs))
                features = filters * block_cls.expansion
        self.layers = nnx.List(layers)
        self.fc = nnx.Linear(features, num_classes, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for layer in self.layers:
            x = layer(x)
        return self.fc(x.mean(axis=(1, 2)))


NnxResNet18 = partial(NnxResNet, (2, 2, 2, 2), NnxBasicBlock)
NnxResNet50 = partial(NnxResNet, (3, 4, 6, 3), NnxBottleneck)
