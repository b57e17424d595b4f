"""DenseNet: batch norm and relu before each convolution, whose result joins all earlier ones."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp


class DenseLayer(nn.Module):
    growth: int
    bottleneck: int = 4

    @nn.compact
    def __call__(self, x, train: bool = False):
        norm = partial(nn.BatchNorm, use_running_average=not train)
        z = nn.relu(norm()(x))
        z = nn.Conv(self.bottleneck * self.growth, kernel_size=(1, 1), use_bias=False)(z)
        z = nn.relu(norm()(z))
        z = nn.Conv(self.growth, kernel_size=(3, 3), use_bias=False)(z)
        return jnp.concatenate([x, z], axis=-1)


class Transition(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        features = x.shape[-1] // 2
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Conv(features, kernel_size=(1, 1), use_bias=False)(x)
        return nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))


class DenseNet(nn.Module):
    layers: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(2 * self.growth, kernel_size=(7, 7), strides=(2, 2), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="SAME")
        for i, number in enumerate(self.layers):
            for _ in range(number):
                x = DenseLayer(self.growth)(x, train)
            if i + 1 < len(self.layers):
                x = Transition()(x, train)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = x.mean(axis=(1, 2))
        return nn.Dense(self.num_classes)(x)


DenseNet121 = DenseNet
