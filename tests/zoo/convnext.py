"""ConvNeXt: 7x7 depthwise, layer norm, a gelu between two dense layers, LayerScale."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp


class LayerScale(nn.Module):
    init: float = 1e-6

    @nn.compact
    def __call__(self, x):
        return x * self.param("gamma", nn.initializers.constant(self.init), (x.shape[-1],))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        dim = x.shape[-1]
        y = nn.Conv(dim, kernel_size=(7, 7), feature_group_count=dim, name="dwconv")(x)
        y = nn.LayerNorm(epsilon=1e-6, name="norm")(y)
        y = nn.Dense(4 * dim, name="pwconv1")(y)
        y = nn.gelu(y)
        y = nn.Dense(dim, name="pwconv2")(y)
        y = LayerScale()(y)
        return x + y


class ConvNeXt(nn.Module):
    depths: tuple[int, ...] = (3, 3, 9, 3)
    dims: tuple[int, ...] = (96, 192, 384, 768)
    num_classes: int = 1000

    @nn.compact
    def __call__(self, x):
        norm = partial(nn.LayerNorm, epsilon=1e-6)
        for stage, (depth, dim) in enumerate(zip(self.depths, self.dims, strict=True)):
            if stage == 0:
                x = nn.Conv(dim, kernel_size=(4, 4), strides=(4, 4), name="stem")(x)
                x = norm(name="stem_norm")(x)
            else:
                x = norm(name=f"downsample_norm_{stage}")(x)
                x = nn.Conv(dim, kernel_size=(2, 2), strides=(2, 2), name=f"downsample_{stage}")(x)
            for i in range(depth):
                x = Block(name=f"stage_{stage}_block_{i}")(x)
        x = norm(name="head_norm")(jnp.mean(x, axis=(1, 2)))
        return nn.Dense(self.num_classes, name="head")(x)
