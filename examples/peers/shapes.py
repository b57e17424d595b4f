"""Single layers: what a matrix product or a convolution of one shape costs, and how near it is to the machine's peak.

Each is a network of one layer (one of six), floats in and out, so that the borders, quantize and dequantize, are timed
with it."""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax

from peers.contenders import JAX, JAXQ, contenders
from peers.networks import Network, chunks, float_graph
from peers.onnx_graph import convolutional
from peers.stopwatch import interleaved

ORT, OPENVINO = "ONNX Runtime int8", "OpenVINO int8"
CHOSEN = (JAX, JAXQ, ORT, OPENVINO)
CALIBRATE = 8

# M x K x N.
GEMMS = ((1024, 1024, 1024), (256, 4096, 1024), (64, 768, 3072), (1, 1024, 1024))
# Name; batch, height and width of the input; shapes of the kernels, HWIO, one after the other; groups.
CONVS = (
    ("six 3x3 conv + relu, 8x56x56x64", (8, 56, 56), [(3, 3, 64, 64)] * 6, 1),
    ("1x1 conv 64 -> 256, 8x56x56", (8, 56, 56), [(1, 1, 64, 256)], 1),
    ("3x3 conv 16 -> 16, 8x56x56", (8, 56, 56), [(3, 3, 16, 16)], 1),
    ("depthwise 3x3, 8x56x56x128", (8, 56, 56), [(3, 3, 1, 128)], 128),
    ("depthwise 5x5, 8x28x28x256", (8, 28, 28), [(5, 5, 1, 256)], 256),
)


def dense(weight: jax.Array, x: jax.Array) -> jax.Array:
    return x @ weight


def convolve(kernels: Sequence[jax.Array], x: jax.Array, groups: int) -> jax.Array:
    for kernel in kernels:
        numbers = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups)
        x = jax.nn.relu(x)
    return x


def layers() -> list[Network]:
    """The shapes as networks; what the batch axis is, M of a matrix product, is the one batch size."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def network(name: str, fun: Callable[..., Any], params: Any, batch: int, *shape: int) -> Network:
        calibration, evaluation = (normal(CALIBRATE, *shape),), (normal(batch, *shape),)
        write = partial(_write, fun, params, calibration)
        return Network(name, fun, params, calibration, evaluation, (batch,), write)

    found = [network(f"{m} x {k} x {n}", dense, normal(k, n) / k**0.5, m, k) for m, k, n in GEMMS]
    for name, (batch, *size), kernels, groups in CONVS:
        params = [normal(*kernel) * (2 / np.prod(kernel[:3])) ** 0.5 for kernel in kernels]
        channels = kernels[0][2] * groups
        found.append(network(name, partial(convolve, groups=groups), params, batch, *size, channels))
    return found


def _write(fun: Callable[..., Any], params: Any, arrays: Any) -> Any:
    return convolutional(float_graph(fun, params, arrays))


def peaks() -> dict[str, float]:
    """GOP/s that this machine's int8 instructions reach, by name, where jaxq's CPU extension measures them."""
    if importlib.util.find_spec("jaxq.backends.cpu") is None:
        return {}
    measured = getattr(importlib.import_module("jaxq.backends.cpu"), "peak", dict)
    return dict(measured())


def measure(rounds: int, method: str, cache: Path, log: Callable[[str], None]) -> dict[str, Any]:
    """Milliseconds of every shape, as data."""
    rows = []
    for network in layers():
        log(network.name)
        (size,) = network.batch_sizes
        (batch,) = chunks(network.evaluation, size)
        entries, macs = contenders(network, method, cache)
        calls = {
            entry.name: partial(entry.compile(size).run, *entry.prepare(batch))  # no array is copied in the calls
            for entry in entries
            if entry.name in CHOSEN
        }
        timed = interleaved(calls, rounds)
        log(timed.quiet())
        ms = {name: timed.median(name) for name in calls}
        rows.append({"name": network.name, "gop": 2e-9 * macs * size, "ms": ms, "spin": timed.spin, "load": timed.load})
    return {"shapes": rows, "peaks": peaks()}


def table(result: dict[str, Any]) -> str:
    """The record, to be read: ms; GOP/s of jaxq and its share of each peak; the faster peer's time beside jaxq's."""
    tops = result["peaks"]
    shares = "".join(f"{f'of {name}':>16}" for name in tops)
    lines = [f"{'ms':34}" + "".join(f"{name:>20}" for name in CHOSEN) + f"{'jaxq GOP/s':>12}{'best GOP/s':>12}{shares}"]
    for row in result["shapes"]:
        ms, speed = row["ms"], 1e3 * row["gop"] / row["ms"][JAXQ]
        best = 1e3 * row["gop"] / min(ms[ORT], ms[OPENVINO])
        times = "".join(f"{ms[name]:20.3f}" for name in CHOSEN)
        shares = "".join(f"{speed / top:16.1%}" for top in tops.values())
        lines.append(f"{row['name']:34}{times}{speed:12.0f}{best:12.0f}{shares}")
    return "\n".join(lines)
