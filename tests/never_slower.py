"""python tests/never_slower.py [NETWORK ...]: no plan is slower than float, over the zoo at its published sizes.

Each network is quantized with tune="fast" at the batch size, and its plan timed beside the user's own function under
`jax.jit`, turn by turn; random weights, one batch of calibration. The table tells the seconds of tuning, what it chose,
the medians, and how often the plan's time goes into float's. Exit code 1 where that is less than 0.95, beyond noise.

With --plans FOLDER the tuned plans are kept there, and those that are there are only timed.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import networks
import numpy as np
from zoo import (
    bert,
    convnext,
    densenet,
    efficientnet,
    googlenet,
    gpt,
    mixer,
    mobilenet,
    resnet,
    scanned,
    unet,
    vgg,
    vit,
)

import jaxq
from jaxq.plan.timing import interleaved

_NOISE = 0.05
_SIZE = 224


@dataclass(frozen=True)
class Float:
    """A function of variables and arguments."""

    function: Callable[..., Any]
    variables: Any
    args: tuple[Any, ...]


def pictures(model: Any, batch: int, size: int = _SIZE) -> Float:
    x = networks.images(batch, size, size, 3)
    return Float(model.apply, networks.variables(model, x), (x,))


def sequences(model: Any, batch: int, length: int = 128, width: int = 384) -> Float:
    x = networks.images(batch, length, width)
    return Float(model.apply, networks.variables(model, x), (x,))


def minilm(batch: int, length: int = 128) -> Float:
    tokens = np.random.default_rng(0).integers(0, 30522, (batch, length)).astype(np.int32)
    args = tokens, np.ones_like(tokens)
    return Float(bert.Bert().apply, networks.variables(bert.Bert(), *args), args)


def prompts(batch: int) -> Float:
    model = gpt.GPT()
    tokens = np.random.default_rng(0).integers(0, 256, (batch, model.length)).astype(np.int32)
    return Float(model.apply, networks.variables(model, tokens), (tokens,))


def decoding(batch: int) -> Float:
    model = gpt.GPT()
    params = networks.variables(model, np.zeros((batch, 4), np.int32))["params"]
    model = model.clone(decode=True)
    return Float(gpt.step(model), params, (gpt.empty_cache(model, batch), np.ones((batch, 1), np.int32)))


ZOO: dict[str, Callable[[int], Float]] = {
    "efficientnet_lite0": partial(pictures, efficientnet.EfficientNetLite0()),
    "resnet18": partial(pictures, resnet.ResNet18()),
    "resnet50": partial(pictures, resnet.ResNet50()),
    "googlenet": partial(pictures, googlenet.GoogLeNet()),
    "mobilenet_v2": partial(pictures, mobilenet.MobileNetV2()),
    "mobilenet_v3_small": partial(pictures, mobilenet.MobileNetV3Small()),
    "mobilenet_v3_large": partial(pictures, mobilenet.MobileNetV3Large()),
    "densenet121": partial(pictures, densenet.DenseNet121()),
    "vgg11": partial(pictures, vgg.VGG11BN()),
    "unet": partial(pictures, unet.UNet(widths=(16, 32, 64, 128, 256))),
    "convnext_tiny": partial(pictures, convnext.ConvNeXt()),
    "vit_small": partial(pictures, vit.ViT()),
    "mixer_small": partial(pictures, mixer.Mixer()),
    "minilm": minilm,
    "gpt": prompts,
    "gpt_decoding": decoding,
    "scanned": partial(sequences, scanned.Scanned()),
    "small_cnn": partial(pictures, networks.SmallCNN(), size=12),
    "mobile_cnn": partial(pictures, networks.MobileCNN(), size=12),
}


def tuned(given: Float, batch: int) -> jaxq.QuantizedModel:
    config = jaxq.QuantConfig(method="mse")
    return jaxq.quantize(given.function, given.variables, [given.args], config=config, tune="fast", tune_batch=batch)


def compare(name: str, batch: int, seconds: float, plans: Path | None) -> bool:
    """Prints the network's line; whether its plan is as fast as float."""
    given = ZOO[name](batch)
    path = None if plans is None else plans / f"{name}.{batch}.jaxq"
    start = time.perf_counter()
    if path is not None and path.exists():
        qmodel, tuning = jaxq.load(path), "kept"
    else:
        qmodel = tuned(given, batch)
        tuning = f"{time.perf_counter() - start:.0f} s"
        if path is not None:
            qmodel.save(path)
    variables, args = jax.device_put((given.variables, given.args))
    in_float = partial(jax.jit(given.function), variables, *args)
    medians = interleaved([in_float, partial(qmodel, *args)], seconds)
    ratio = medians[0] / medians[1]
    chosen = qmodel.summary().tuning
    assert chosen is not None
    slower = ratio < 1 - _NOISE
    cells = f"{1e3 * medians[0]:10.3f} {1e3 * medians[1]:10.3f} {ratio:7.2f}{' SLOWER' if slower else ''}"
    print(f"{name:20} {batch:5} {tuning:>7} {chosen.chosen:24} {cells}", flush=True)
    return not slower


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("networks", nargs="*", default=list(ZOO), metavar="NETWORK", help=", ".join(ZOO))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="of turns for each network")
    parser.add_argument("--plans", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    if unknown := set(options.networks) - ZOO.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(ZOO)}")
    if options.plans is not None:
        options.plans.mkdir(parents=True, exist_ok=True)
    print(f"{'network':20} {'batch':>5} {'tuning':>7} {'chosen':24} {'float ms':>10} {'plan ms':>10} {'ratio':>7}")
    with jax.numpy_dtype_promotion("standard"):
        fast = [compare(name, options.batch, options.seconds, options.plans) for name in options.networks]
    return 0 if all(fast) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
