"""U-Net: down by pools, up by transposed convolutions, each level joined with its twin on the way down."""

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx


class DoubleConv(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, train: bool = False):
        for _ in range(2):
            x = nn.Conv(self.features, kernel_size=(3, 3), use_bias=False)(x)
            x = nn.BatchNorm(use_running_average=not train)(x)
            x = nn.relu(x)
        return x


class UNet(nn.Module):
    """Logits for every pixel."""

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    num_classes: int = 2

    @nn.compact
    def __call__(self, x, train: bool = False):
        *levels, bottom = self.widths
        skips = []
        for features in levels:
            x = DoubleConv(features)(x, train)
            skips.append(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = DoubleConv(bottom)(x, train)
        for features, skip in zip(levels[::-1], skips[::-1], strict=True):
            x = nn.ConvTranspose(features, kernel_size=(2, 2), strides=(2, 2))(x)
            x = jnp.concatenate([skip, x], axis=-1)
            x = DoubleConv(features)(x, train)
        return nn.Conv(self.num_classes, kernel_size=(1, 1))(x)


class NnxDoubleConv(nnx.Module):
    def __init__(self, cin: int, cout: int, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(cin, cout, (3, 3), use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(cout, rngs=rngs)
        self.conv2 = nnx.Conv(cout, cout, (3, 3), use_bias=False, rngs=rngs)
        self.bn2 = nnx.BatchNorm(cout, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.bn1(self.conv1(x)))
        return nnx.relu(self.bn2(self.conv2(x)))


class NnxUNet(nnx.Module):
    def __init__(self, *, widths: tuple[int, ...] = (64, 128, 256, 512, 1024), num_classes: int = 2, rngs: nnx.Rngs):
        ins = (3, *widths[:-1])
        self.down = nnx.List([NnxDoubleConv(i, o, rngs=rngs) for i, o in zip(ins[:-1], widths[:-1], strict=True)])
        self.bottom = NnxDoubleConv(*widths[-2:], rngs=rngs)
        pairs = list(zip(widths[1:], widths[:-1], strict=True))[::-1]
        self.up = nnx.List([nnx.ConvTranspose(i, o, (2, 2), strides=(2, 2), rngs=rngs) for i, o in pairs])
        self.join = nnx.List([NnxDoubleConv(2 * o, o, rngs=rngs) for _, o in pairs])
        self.head = nnx.Conv(widths[0], num_classes, (1, 1), rngs=rngs)

    def __call__(self, x):
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        x = self.bottom(x)
        for up, join in zip(self.up, self.join, strict=True):
            x = join(jnp.concatenate([skips.pop(), up(x)], axis=-1))
        return self.head(x)
