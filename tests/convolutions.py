"""Convolutions of the tests: windows, operands as shapes, and those of two networks."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.conv import Window, conv_reference
from pallas_kernels.epilogue import Epilogue

# (input, weights, stride) of the distinct convolutions of ResNet-50 that are wider than one pixel.
RESNET50 = [
    ((224, 224, 3), (64, 7, 7, 3), 2),
    ((56, 56, 64), (64, 3, 3, 64), 1),
    ((56, 56, 128), (128, 3, 3, 128), 2),
    ((28, 28, 128), (128, 3, 3, 128), 1),
    ((28, 28, 256), (256, 3, 3, 256), 2),
    ((14, 14, 256), (256, 3, 3, 256), 1),
    ((14, 14, 512), (512, 3, 3, 512), 2),
    ((7, 7, 512), (512, 3, 3, 512), 1),
]
# Of EfficientNet-Lite0: the first layer, and the depthwise ones.
EFFICIENTNET = [((224, 224, 3), (32, 3, 3, 3), 2)] + [
    ((size, size, channels), (channels, taps, taps, 1), stride)
    for size, channels, taps, stride in (
        *((112, 32, 3, 1), (112, 96, 3, 2), (56, 144, 3, 1), (56, 144, 5, 2), (28, 240, 5, 1), (28, 240, 3, 2)),
        *((14, 480, 3, 1), (14, 480, 5, 1), (14, 672, 5, 1), (14, 672, 5, 2), (7, 1152, 5, 1), (7, 1152, 3, 1)),
    )
]


def window(rank=2, *, stride=1, padding=0, dilation=1, input_dilation=1, groups=1):
    pads = padding if isinstance(padding, tuple) else (padding, padding)
    return Window((stride,) * rank, (pads,) * rank, (dilation,) * rank, (input_dilation,) * rank, groups)


def shapes(x_shape, w_shape, window, *, x_dtype=jnp.uint8, residual=jnp.int8):
    """x, w and an epilogue as shapes."""
    x, w = jax.ShapeDtypeStruct(x_shape, x_dtype), jax.ShapeDtypeStruct(w_shape, jnp.int8)
    vector = jax.ShapeDtypeStruct(w_shape[:1], jnp.float32)
    if residual is None:
        return x, w, Epilogue(*[vector] * 4)
    out = jax.eval_shape(functools.partial(conv_reference, window=window, out_dtype=jnp.int32), x, w)
    return (
        x,
        w,
        Epilogue(
            *[vector] * 4,
            residual=jax.ShapeDtypeStruct(out.shape, residual),
            residual_multiplier=jax.ShapeDtypeStruct((), jnp.float32),
        ),
    )
