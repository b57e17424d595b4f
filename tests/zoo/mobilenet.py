"""MobileNet-V2, and V3 with hard-swish and squeeze-and-excite."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
from flax import nnx


class ConvNorm(nn.Module):
    features: int
    kernel: int = 1
    strides: int = 1
    groups: int = 1
    act: Callable | None = nn.relu6

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            strides=self.strides,
            feature_group_count=self.groups,
            use_bias=False,
        )(x)
        x = nn.BatchNorm(use_running_average=not train, epsilon=1e-3)(x)
        return x if self.act is None else self.act(x)


class SqueezeExcite(nn.Module):
    """A gate for each channel, from the mean over space."""

    reduced: int

    @nn.compact
    def __call__(self, x):
        features = x.shape[-1]
        gate = x.mean(axis=(1, 2), keepdims=True)
        gate = nn.relu(nn.Conv(self.reduced, (1, 1), name="reduce")(gate))
        gate = nn.hard_sigmoid(nn.Conv(features, (1, 1), name="expand")(gate))
        return x * gate


class InvertedResidual(nn.Module):
    """Expansion unless the block's input is that wide already, depthwise, gate if any, linear projection."""

    features: int
    width: int
    kernel: int = 3
    strides: int = 1
    act: Callable = nn.relu6
    squeeze: int = 0

    @nn.compact
    def __call__(self, x, train: bool = False):
        inputs = x
        if self.width != x.shape[-1]:
            x = ConvNorm(self.width, act=self.act, name="expand")(x, train)
        x = ConvNorm(self.width, self.kernel, self.strides, groups=self.width, act=self.act, name="depthwise")(x, train)
        if self.squeeze:
            x = SqueezeExcite(self.squeeze)(x)
        x = ConvNorm(self.features, act=None, name="project")(x, train)
        return inputs + x if x.shape == inputs.shape else x


class Stage(NamedTuple):
    """Blocks that begin with a stride."""

    expansion: int
    features: int
    repeats: int
    strides: int
    kernel: int = 3


V2 = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    stages: tuple[Stage, ...] = V2
    stem: int = 32
    head: int = 1280
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = ConvNorm(self.stem, 3, 2, name="stem")(x, train)
        for stage in self.stages:
            for i in range(stage.repeats):
                width, strides = stage.expansion * x.shape[-1], stage.strides if i == 0 else 1
                x = InvertedResidual(stage.features, width, stage.kernel, strides)(x, train)
        x = ConvNorm(self.head, name="head")(x, train)
        x = x.mean(axis=(1, 2))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="classifier")(x)


class Block(NamedTuple):
    """A row of the paper's tables. `act` is "RE" or "HS"."""

    kernel: int
    width: int
    features: int
    squeeze: bool
    act: str
    strides: int


V3_LARGE = (
    Block(3, 16, 16, False, "RE", 1),
    Block(3, 64, 24, False, "RE", 2),
    Block(3, 72, 24, False, "RE", 1),
    Block(5, 72, 40, True, "RE", 2),
    Block(5, 120, 40, True, "RE", 1),
    Block(5, 120, 40, True, "RE", 1),
    Block(3, 240, 80, False, "HS", 2),
    Block(3, 200, 80, False, "HS", 1),
    Block(3, 184, 80, False, "HS", 1),
    Block(3, 184, 80, False, "HS", 1),
    Block(3, 480, 112, True, "HS", 1),
    Block(3, 672, 112, True, "HS", 1),
    Block(5, 672, 160, True, "HS", 2),
    Block(5, 960, 160, True, "HS", 1),
    Block(5, 960, 160, True, "HS", 1),
)
V3_SMALL = (
    Block(3, 16, 16, True, "RE", 2),
    Block(3, 72, 24, False, "RE", 2),
    Block(3, 88, 24, False, "RE", 1),
    Block(5, 96, 40, True, "HS", 2),
    Block(5, 240, 40, True, "HS", 1),
    Block(5, 240, 40, True, "HS", 1),
    Block(5, 120, 48, True, "HS", 1),
    Block(5, 144, 48, True, "HS", 1),
    Block(5, 288, 96, True, "HS", 2),
    Block(5, 576, 96, True, "HS", 1),
    Block(5, 576, 96, True, "HS", 1),
)


class MobileNetV3(nn.Module):
    blocks: tuple[Block, ...]
    last: int
    head: int
    stem: int = 16
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = ConvNorm(self.stem, 3, 2, act=nn.hard_swish, name="stem")(x, train)
        for block in self.blocks:
            act = {"RE": nn.relu, "HS": nn.hard_swish}[block.act]
            squeeze = block.width // 4 if block.squeeze else 0
            x = InvertedResidual(block.features, block.width, block.kernel, block.strides, act, squeeze)(x, train)
        x = ConvNorm(self.last, act=nn.hard_swish, name="last")(x, train)
        x = x.mean(axis=(1, 2))
        x = nn.hard_swish(nn.Dense(self.head, name="head")(x))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="classifier")(x)


MobileNetV3Large = partial(MobileNetV3, V3_LARGE, 960, 1280)
MobileNetV3Small = partial(MobileNetV3, V3_SMALL, 576, 1024)


class NnxConvNorm(nnx.Module):
    def __init__(self, cin, cout, kernel=1, strides=1, groups=1, act=nnx.relu6, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            cin, cout, (kernel, kernel), strides=strides, feature_group_count=groups, use_bias=False, rngs=rngs
        )
        self.norm = nnx.BatchNorm(cout, epsilon=1e-3, rngs=rngs)
        self.act = act

    def __call__(self, x):
        x = self.norm(self.conv(x))
        return x if self.act is None else self.act(x)


class NnxInvertedResidual(nnx.Module):
    def __init__(self, cin: int, cout: int, stage: Stage, strides: int, *, rngs: nnx.Rngs):
        width = cin * stage.expansion
        layers = [] if stage.expansion == 1 else [NnxConvNorm(cin, width, rngs=rngs)]
        layers.append(NnxConvNorm(width, width, stage.kernel, strides, groups=width, rngs=rngs))
        layers.append(NnxConvNorm(width, cout, act=None, rngs=rngs))
        self.layers = nnx.Sequential(*layers)
        self.use_shortcut = strides == 1 and cin == cout

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.layers(x) if self.use_shortcut else self.layers(x)


class NnxMobileNetV2(nnx.Module):
    def __init__(self, *, stages=V2, stem: int = 32, head: int = 1280, num_classes: int = 1000, rngs: nnx.Rngs):
        cin, blocks = stem, []
        for stage in stages:
            for i in range(stage.repeats):
                strides = stage.strides if i == 0 else 1
                blocks.append(NnxInvertedResidual(cin, stage.features, stage, strides, rngs=rngs))
                cin = stage.features
        self.stem = NnxConvNorm(3, stem, 3, 2, rngs=rngs)
        self.blocks = nnx.Sequential(*blocks)
        self.head = NnxConvNorm(cin, head, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.classifier = nnx.Linear(head, num_classes, rngs=rngs)

    def __call__(self, x):
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(self.dropout(x.mean(axis=(1, 2))))
