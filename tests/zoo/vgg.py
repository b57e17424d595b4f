"""VGG with batch norm: convolutions and pools in a row, and a classifier on the flattened picture."""

from functools import partial

import flax.linen as nn

VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    stages: tuple[tuple[int, ...], ...]
    hidden: int = 4096
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x, train: bool = False):
        for widths in self.stages:
            for features in widths:
                x = nn.Conv(features, kernel_size=(3, 3), padding="SAME")(x)
                x = nn.BatchNorm(use_running_average=not train)(x)
                x = nn.relu(x)
            x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        for _ in range(2):
            x = nn.relu(nn.Dense(self.hidden)(x))
            x = nn.Dropout(rate=0.5, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x)


VGG11BN = partial(VGG, VGG11)
VGG16BN = partial(VGG, VGG16)
