"""The convolutional networks of the zoo: what must become of each, in numbers that follow from its architecture, and
small forms of them end to end.

The counts are those of the networks as published in every conv. Where one would take long it is as deep, but narrow, as
no count depends on a width; and where its depth is repetition, fewer blocks are fast and the published ones slow.
"""

from collections import Counter

import cheap
import jax
import networks
import numpy as np
import pytest
from flax import nnx
from zoo import convnext, densenet, efficientnet, googlenet, mobilenet, resnet, unet, vgg
from zoo.counts import count

import jaxq

PICTURE = jax.ShapeDtypeStruct((2, 224, 224, 3), np.float32)


def counted(model):
    return count(model, networks.variables(model, PICTURE), PICTURE)


def counted_nnx(make, **kwargs):
    return count(networks.nnx_module(lambda rngs: make(rngs=rngs, **kwargs)), None, PICTURE)


def check(counts, *, int8, fused, merges=None, left=None, norms=0, quantized=1):
    """All that a network must come to. Unless said otherwise nothing is `left` in float, and integers go from one
    quantize to the result. It runs at any batch size."""
    assert counts.int8 == Counter(int8)
    assert counts.fused == Counter(fused)
    assert counts.merges == Counter(merges)
    assert counts.float == Counter(left)
    assert (counts.norms, counts.quantized, counts.dequantized) == (norms, quantized, 0)
    assert counts.fixed_because is None


# ------------------------------------------------------------------------------------------------------------- counts


def resnet_counts(blocks, convs_each, projections):
    """Stem, blocks and projections; every block ends in a residual. The mean of the last block is an int8 pool."""
    convs = 1 + blocks * convs_each + projections
    return {
        "int8": {"conv": convs, "dot": 1, "pool": 2},
        "fused": {
            "bias": convs + 1,
            "relu": 1 + blocks * convs_each,
            "residual": blocks,
            "requantize": convs + 1,  # the logits are float, the mean is not
        },
    }


# Three stages widen by a stride; in ResNet-50 the first does without one, from 64 to 256 channels.
RESNET18 = resnet_counts(blocks=2 + 2 + 2 + 2, convs_each=2, projections=3)
RESNET50 = resnet_counts(blocks=3 + 4 + 6 + 3, convs_each=3, projections=4)


BOTTLENECKS = resnet_counts(blocks=2 + 1 + 1, convs_each=3, projections=3)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (resnet.ResNet18(), RESNET18),
        (resnet.ResNet((2, 1, 1), resnet.BottleneckBlock), BOTTLENECKS),
        pytest.param(resnet.ResNet50(), RESNET50, marks=pytest.mark.slow),
    ],
)
def test_resnet(model, expected):
    check(counted(model), **expected)


@pytest.mark.parametrize(
    ("make", "expected"),
    [(resnet.NnxResNet18, RESNET18), pytest.param(resnet.NnxResNet50, RESNET50, marks=pytest.mark.slow)],
)
def test_resnet_nnx(make, expected):
    check(counted_nnx(make, num_filters=8), **expected)


def googlenet_counts(stages):
    """Blocks of six convs behind a stem of three; each block's three 1x1 convs on its input are one."""
    blocks = sum(map(len, stages))
    return {
        "int8": {
            "conv": 3 + blocks * 6 - blocks * 2,
            "dot": 1,
            "slice": blocks * 3,
            "pool": blocks + 4 + 1,  # in the blocks, between stages, the mean
            "concatenate": blocks,
        },
        "fused": {
            "bias": 3 + blocks * 4 + 1,
            "relu": 3 + blocks * 4,
            "requantize": 3 + blocks * 4 + 1,
        },
        "merges": {3: blocks},
    }


NARROW_STAGES = tuple(tuple(googlenet.Widths(*(w // 8 for w in widths)) for widths in s) for s in googlenet.STAGES)
ONE_EACH = tuple(stage[:1] for stage in NARROW_STAGES)


@pytest.mark.parametrize(
    ("norm", "stages"),
    [
        (True, ONE_EACH),
        pytest.param(True, googlenet.STAGES, marks=pytest.mark.slow),
        pytest.param(False, googlenet.STAGES, marks=pytest.mark.slow),
    ],
)
def test_googlenet(norm, stages):
    counts = counted(googlenet.GoogLeNet(norm=norm, stages=stages))
    check(counts, **googlenet_counts(stages))
    merged = [row.name for row in counts.rows if "merged:3" in row.fused]
    blocks = [f"GoogLeNet/InceptionBlock_{i}" for i in range(sum(map(len, stages)))]
    assert merged == [f"{block}/{{b1/conv,reduce3/conv,reduce5/conv}}" for block in blocks]
    apart = [row for row in counts.rows if row.name.endswith("/pool/conv")]
    assert len(apart) == len(blocks)
    assert all(row.op == "conv" and row.fused == ("bias", "relu", "requantize") for row in apart)


@pytest.mark.parametrize("norm", [pytest.param(True, marks=pytest.mark.slow), False])
def test_googlenet_nnx(norm):
    counts = counted_nnx(googlenet.NnxGoogLeNet, stem=(8, 8, 24), stages=NARROW_STAGES, norm=norm)
    check(counts, **googlenet_counts(googlenet.STAGES))


def inverted_counts(stages):
    """Stem and head around blocks of three convs, of which the first stage's lack the expansion; a block whose shape
    stays as it is ends in a residual. The projections are linear."""
    blocks = sum(stage.repeats for stage in stages)
    expansions = blocks - stages[0].repeats
    return {
        "int8": {"conv": 2 + 2 * blocks + expansions, "dot": 1, "pool": 1},
        "fused": {
            "bias": 2 + 2 * blocks + expansions + 1,
            "relu6": 2 + blocks + expansions,
            "residual": sum(stage.repeats - 1 for stage in stages),
            "requantize": 2 + 2 * blocks + expansions + 1,
        },
    }


@pytest.mark.slow
def test_mobilenet_v2():
    expected = inverted_counts(mobilenet.V2)
    assert (expected["int8"]["conv"], expected["fused"]["residual"]) == (52, 10)  # of 17 blocks, seven change the shape
    check(counted(mobilenet.MobileNetV2()), **expected)


def test_efficientnet_lite0():
    expected = inverted_counts(efficientnet.LITE0)
    assert (expected["int8"]["conv"], expected["fused"]["residual"]) == (49, 9)  # of 16 blocks
    check(counted(efficientnet.EfficientNetLite0()), **expected)


@pytest.mark.parametrize(
    ("make", "stages"),
    [
        (mobilenet.NnxMobileNetV2, mobilenet.V2),
        pytest.param(efficientnet.NnxEfficientNetLite0, efficientnet.LITE0, marks=pytest.mark.slow),
    ],
)
def test_inverted_residuals_nnx(make, stages):
    quarter = tuple(stage._replace(features=stage.features // 4) for stage in stages)
    check(counted_nnx(make, stages=quarter, stem=8, head=64), **inverted_counts(stages))


def v3_counts(*, blocks, gates, hard, residuals):
    """The stem, `blocks` of which the first has no expansion, and the last conv; `gates` of two 1x1 convs behind a
    mean, that end in a product. `hard` blocks have hard-swish, as have stem, last conv and the first dense layer; the
    others have relu, as has the first conv of a gate."""
    convs = 1 + 3 * blocks - 1 + 1 + 2 * gates
    return {
        "int8": {
            **{"conv": convs, "dot": 2, "pool": gates + 1, "broadcast_in_dim": gates, "mul": gates},
            "pad": hard + 1,  # with the zero points of hard-swish's results, before depthwise convolutions
        },
        "fused": {
            "bias": convs + 2,
            "hard_swish": 1 + 2 * hard + 1 + 1,
            "relu": 2 * (blocks - hard) - 1 + gates,
            "clip": gates,  # hard-sigmoid: x / 6 + 1 / 2 between 0 and 1
            "residual": residuals,
            "requantize": convs + 1 + gates + 1 + gates,  # convs, the first dense layer, means, products
        },
    }


# Shapes stay as they are in blocks 1, 3, 5, 6, 8, 9, 10, 12, 14, 15 of V3-Large and 3, 5, 6, 8, 10, 11 of V3-Small.
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        pytest.param(
            mobilenet.MobileNetV3Large(),
            v3_counts(blocks=15, gates=8, hard=9, residuals=10),
            marks=pytest.mark.slow,
        ),
        (mobilenet.MobileNetV3Small(), v3_counts(blocks=11, gates=9, hard=8, residuals=6)),
    ],
)
def test_mobilenet_v3(model, expected):
    check(counted(model), **expected)


def test_vgg16():
    narrow = tuple(tuple(width // 8 for width in widths) for widths in vgg.VGG16)
    check(
        counted(vgg.VGG(narrow, hidden=512)),
        int8={"conv": 13, "dot": 3, "pool": 5, "reshape": 1},
        fused={"bias": 16, "relu": 13 + 2, "requantize": 13 + 2},
    )


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")  # nn.avg_pool
def test_densenet121():
    """A batch norm and relu in front of a conv reads a concat that others read too, so that no conv can take it in: it
    is an op of its own, on integers: one for each of 58 layers and three transitions, and one at the end. The norm
    between a layer's convs folds, as does the stem's."""
    layers, transitions = 6 + 12 + 24 + 16, 3
    convs, maps = 1 + 2 * layers + transitions, layers + transitions + 1
    folded = 1 + layers
    counts = counted(densenet.DenseNet121(growth=8))
    check(
        counts,
        int8={"conv": convs, "dot": 1, "affine": maps, "concatenate": layers, "pool": 1 + transitions + 1},
        fused={
            "bias": folded + maps + 1,
            "relu": folded + maps,
            "requantize": convs + maps + transitions + 1,
        },
        norms=maps,
    )
    assert convs == 120


UNET = {
    # Four levels of two convs down and up, two at the bottom, four transposed convs and the head.
    "int8": {"conv": 2 * (4 + 1 + 4) + 4 + 1, "pool": 4, "concatenate": 4},
    "fused": {"bias": 18 + 4 + 1, "relu": 18, "requantize": 18 + 4},
}


def test_unet():
    check(counted(unet.UNet(widths=(16, 32, 64, 128, 256))), **UNET)


def test_unet_nnx():
    check(counted_nnx(unet.NnxUNet, widths=(8, 16, 32, 64, 128)), **UNET)


@pytest.mark.parametrize("depths", [(1, 1, 2, 1), pytest.param((3, 3, 9, 3), marks=pytest.mark.slow)])
def test_convnext(depths):
    """What stays in float is the layer norms, 23 in ConvNeXt-Tiny, and the mean between two of them."""
    blocks, downsamples = sum(depths), 3
    convs, dots = 1 + blocks + downsamples, 2 * blocks + 1
    counts = counted(convnext.ConvNeXt(depths, (12, 24, 48, 96)))
    check(
        counts,
        int8={"conv": convs, "dot": dots},
        fused={
            "bias": convs + dots,
            "gelu": blocks,
            "residual": blocks,
            # Before each of the norms stands a float result, of the stem, a depthwise conv or a stage.
            "requantize": convs + dots - (1 + blocks + 4) - 1,
        },
        left={"layer_norm": 1 + blocks + downsamples + 1, "pool": 1},
        norms=1,  # the stem's: a conv and a residual read it
        quantized=1 + blocks + 5,  # the picture, and behind each norm
    )


# --------------------------------------------------------------------------------------------------------- end to end

STAGES = (mobilenet.Stage(1, 8, 1, 1), mobilenet.Stage(3, 12, 2, 2))
BLOCKS = (mobilenet.Block(3, 8, 8, True, "RE", 1), mobilenet.Block(5, 24, 12, True, "HS", 2))
INCEPTION = ((googlenet.Widths(8, 4, 8, 4, 8, 8),),)


def quantized(model, x):
    """(what the model computes, the model in int8)."""
    config = jaxq.QuantConfig(method="mse")
    if isinstance(model, nnx.Module):
        return cheap.jit(model.__call__)(x), jaxq.quantize(model, [x], config=config)
    variables = networks.variables(model, x)
    return cheap.jit(model.apply)(variables, x), jaxq.quantize(model, variables, [x], config=config)


# Each network and the least signal to quantization noise, in decibels, of its results on what calibrated it.
FAST = [
    ("mobilenet v3", lambda: mobilenet.MobileNetV3(BLOCKS, 24, 32, 8, 10), 28),
    ("unet", lambda: unet.UNet((8, 16)), 28),
]
SLOW = [
    ("convnext", lambda: convnext.ConvNeXt((1, 1), (8, 16), 10), 32),
    ("resnet", lambda: resnet.ResNet((1, 1), resnet.BasicBlock, 10, 8), 34),
    ("resnet nnx", lambda: tiny_nnx(resnet.NnxResNet, (1, 1), resnet.NnxBottleneck, num_classes=10, num_filters=8), 36),
    ("resnet bottleneck", lambda: resnet.ResNet((1, 1), resnet.BottleneckBlock, 10, 8), 30),
    ("googlenet", lambda: googlenet.GoogLeNet(10, (8, 8, 16), INCEPTION), 30),
    (
        "googlenet nnx",
        lambda: tiny_nnx(googlenet.NnxGoogLeNet, num_classes=10, stem=(8, 8, 16), stages=INCEPTION, norm=False),
        32,
    ),
    ("mobilenet v2", lambda: mobilenet.MobileNetV2(STAGES, 8, 32, 10), 30),
    (
        "mobilenet v2 nnx",
        lambda: tiny_nnx(mobilenet.NnxMobileNetV2, stages=STAGES, stem=8, head=32, num_classes=10),
        34,
    ),
    ("vgg", lambda: vgg.VGG(((8,), (16,)), 32, 10), 34),
    ("densenet", lambda: densenet.DenseNet((2, 2), 8, 10), 28),
    ("unet nnx", lambda: tiny_nnx(unet.NnxUNet, widths=(8, 16)), 28),
]


def tiny_nnx(make, *args, **kwargs):
    return networks.nnx_module(lambda rngs: make(*args, **kwargs, rngs=rngs))


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    ("make", "floor"),
    [
        *(pytest.param(make, floor, id=name) for name, make, floor in FAST),
        *(pytest.param(make, floor, id=name, marks=pytest.mark.slow) for name, make, floor in SLOW),
    ],
)
def test_int8_is_near_float_and_the_oracle_in_every_bit(make, floor):
    x = networks.images(8, 16, 16, 3)
    exact, qmodel = quantized(make(), x)
    result = qmodel(x)
    assert networks.decibels(exact, result) > floor
    np.testing.assert_array_equal(result, cheap.oracle(qmodel, x))
