"""What reaches the GPU's compiler, and what it makes of it, on a machine that may have no GPU."""

import functools
import re

import aot
import jax
import jax.numpy as jnp
import pytest
import triton_ir
from convolutions import EFFICIENTNET, RESNET50, shapes, window

from pallas_kernels.conv import ConvChannelConfig, ConvDot4Config, ConvMmaConfig, conv


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "window", "config", "masked", "unmasked"),
    [
        # x, w; taken, four vectors, residual and its multiplier, output
        ((1, 18, 10, 64), (64, 3, 3, 64), window(), ConvMmaConfig(16, 64, 64), 0, 10),
        ((1, 16, 8, 64), (64, 3, 3, 64), window(padding=1), ConvMmaConfig(16, 64, 64), 1, 9),  # x: beyond its edges
        ((1, 18, 10, 48), (64, 3, 3, 48), window(), ConvMmaConfig(16, 64, 64), 2, 8),  # x, w: beyond the tap
        ((1, 18, 9, 64), (64, 3, 3, 64), window(), ConvMmaConfig(32, 64, 64), 1 + 2, 7),  # x; residual, output: rows
        (
            (1, 18, 10, 64),
            (60, 3, 3, 64),
            window(),
            ConvMmaConfig(16, 64, 64),
            8,
            2,
        ),  # all but x and the multiplier: columns
        ((1, 16, 8, 3), (64, 3, 3, 3), window(padding=1), ConvMmaConfig(16, 64, 32, merge_taps=True), 0, 10),
        ((1, 16, 8, 64), (128, 3, 3, 32), window(padding=1, groups=2), ConvMmaConfig(16, 64, 32), 1, 9),
        # x, w for each tap; four vectors, residual and its multiplier, output
        ((1, 16, 8, 64), (64, 2, 1, 1), window(groups=64), ConvChannelConfig(8, 64), 0, 4 + 7),
        ((1, 16, 8, 64), (64, 2, 1, 1), window(padding=1, groups=64), ConvChannelConfig(2, 64), 2, 2 + 7),
        ((1, 16, 8, 60), (60, 2, 1, 1), window(groups=60), ConvChannelConfig(8, 64), 4 + 6, 1),
        ((1, 16, 8, 64), (64, 4, 1, 1), window(groups=64), ConvDot4Config(8, 64), 0, 8 + 7),
        ((1, 16, 8, 60), (60, 4, 1, 1), window(groups=60), ConvDot4Config(8, 64), 8 + 6, 1),
    ],
)
def test_edges_are_masked_and_nothing_else(x_shape, w_shape, window, config, masked, unmasked):
    run = functools.partial(conv, window=window, out_dtype=jnp.int8, config=config)
    module = triton_ir.text(triton_ir.lower(run, *shapes(x_shape, w_shape, window)))
    assert triton_ir.masks(module) == (masked, unmasked)


def test_lowers_under_vmap():
    x, w, epilogue = shapes((2, 9, 9, 16), (16, 3, 3, 16), window(), residual=None)
    x = jax.ShapeDtypeStruct((3, *x.shape), x.dtype)
    run = functools.partial(conv, window=window(), out_dtype=jnp.int8)
    module = triton_ir.text(triton_ir.lower(jax.vmap(run, (0, None, None)), x, w, epilogue))
    assert "tt.get_program_id y" in module


def same(x_shape, w_shape, stride):
    """The window of a layer with padding on both sides, depthwise where the weights are."""
    return window(stride=stride, padding=w_shape[1] // 2, groups=x_shape[-1] // w_shape[-1])


def compiled(target, x_shape, w_shape, stride, batch, **kinds):
    """The kernel that conv is on that GPU."""
    around = same(x_shape, w_shape, stride)
    run = functools.partial(conv, window=around, out_dtype=jnp.uint8)
    kernels = aot.compile(target, run, *shapes((batch, *x_shape), w_shape, around, **kinds))
    [kernel] = [kernel for kernel in kernels if kernel.name.startswith("conv_")]
    return kernel


INSTRUCTIONS = {
    ("h100", "conv_mma"): r"wgmma\.mma_async\S*\.s32\.s8\.s8",
    ("a100", "conv_mma"): r"mma\.sync\S*\.s32\.s8\.s8",
    ("b200", "conv_mma"): r"tcgen05\.mma\S*kind::i8",
    **{(target, "conv_dot4"): r"dp4a\.u32\.s32" for target in aot.TARGETS},
}


@aot.required
@pytest.mark.parametrize("target", ["h100", "a100", "b200"])
@pytest.mark.parametrize("shape", [RESNET50[0], RESNET50[3], EFFICIENTNET[1]])
def test_compiles(target, shape):
    kernel = compiled(target, *shape, 32)
    assert re.search(INSTRUCTIONS[target, kernel.name], kernel.ptx)
    assert kernel.spill_bytes == 0
    if kernel.name == "conv_mma":
        assert "cp.async" in kernel.ptx
        assert "serialized" not in kernel.ptxas


def depthwise(x, w, epilogue, window):
    """With the weights as a network has them."""
    return conv(x, jnp.moveaxis(w, -1, 0), epilogue, window=window, out_dtype=jnp.uint8)


@aot.required
@pytest.mark.parametrize("channels", [32, 30])
def test_depthwise_weights_are_read_as_a_network_has_them(channels):
    around = window(padding=1, groups=channels)
    x, w, epilogue = shapes((8, 56, 56, channels), (channels, 3, 3, 1), around)
    w = jax.ShapeDtypeStruct((3, 3, 1, channels), w.dtype)
    run = functools.partial(depthwise, window=around)
    [kernel] = aot.compile("h100", run, x, w, epilogue)  # none transposes them
    assert kernel.name == ("conv_dot4" if channels % 4 == 0 else "conv_channel")


@aot.required
@pytest.mark.slow
@pytest.mark.parametrize("target", ["h100", "a100"])
@pytest.mark.parametrize("shape", RESNET50 + EFFICIENTNET)
@pytest.mark.parametrize("batch", [32, 128])
def test_compiles_networks(target, shape, batch):
    for kinds in ({"x_dtype": jnp.uint8, "residual": None}, {"x_dtype": jnp.int8, "residual": jnp.int8}):
        assert compiled(target, *shape, batch, **kinds).spill_bytes == 0
