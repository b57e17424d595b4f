"""From training to deployment: train a small network in Flax, quantize it to int8, save it, serve it without Flax.

    pip install jaxq flax optax scikit-learn
    python train_to_deploy.py [--epochs 12] [--output model.jaxq]

The data are the 1,797 handwritten digits (8 x 8 pixels) that come with scikit-learn: nothing is downloaded.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxq

BATCH = 64
Variables = dict[str, Any]


class ConvNorm(nn.Module):
    """Convolution, batch norm and, unless `linear`, ReLU."""

    features: int
    kernel: int = 1
    linear: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Conv(self.features, (self.kernel, self.kernel), use_bias=False, name="Conv")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="BatchNorm")(x)
        return x if self.linear else nn.relu(x)


class Residual(nn.Module):
    """Two 3 x 3 convolutions around a shortcut."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = ConvNorm(x.shape[-1], 3, name="first")(x, train)
        y = ConvNorm(x.shape[-1], 3, linear=True, name="second")(y, train)
        return nn.relu(x + y)


class Inception(nn.Module):
    """Four parallel branches; three of them start with a 1 x 1 convolution of the same input."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width = self.features // 4
        point = ConvNorm(width, name="point")(x, train)
        small = ConvNorm(width, name="small_reduce")(x, train)
        small = ConvNorm(width, 3, name="small")(small, train)
        large = ConvNorm(width, name="large_reduce")(x, train)
        large = ConvNorm(width, 5, name="large")(large, train)
        pooled = ConvNorm(width, name="pooled")(nn.max_pool(x, (3, 3), (1, 1), "SAME"), train)
        return jnp.concatenate([point, small, large, pooled], axis=-1)


class DigitNet(nn.Module):
    """Classifies 8 x 8 pictures of one channel."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = ConvNorm(32, 3, name="stem")(x, train)
        x = Residual(name="residual_1")(x, train)
        x = Inception(64, name="inception")(x, train)
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = Residual(name="residual_2")(x, train)
        return nn.Dense(10, name="head")(x.mean(axis=(1, 2)))


def load_data() -> list[np.ndarray]:
    """Returns training images, test images, training labels, test labels; always the same split."""
    digits = load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    return train_test_split(images, digits.target, test_size=0.2, stratify=digits.target, random_state=0)


def train(model: nn.Module, images: np.ndarray, labels: np.ndarray, epochs: int) -> Variables:
    """Returns the trained variables."""
    steps = len(images) // BATCH
    optimizer = optax.adamw(optax.cosine_onecycle_schedule(epochs * steps, peak_value=5e-3), weight_decay=1e-3)

    def loss_of(params: Any, stats: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
        logits, updates = model.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), updates["batch_stats"]

    @jax.jit
    def step(variables: Variables, state: Any, x: jax.Array, y: jax.Array) -> tuple[Variables, Any, jax.Array]:
        params = variables["params"]
        (loss, stats), gradient = jax.value_and_grad(loss_of, has_aux=True)(params, variables["batch_stats"], x, y)
        updates, state = optimizer.update(gradient, state, params)
        return {"params": optax.apply_updates(params, updates), "batch_stats": stats}, state, loss

    variables = jax.jit(model.init, static_argnames="train")(jax.random.key(0), images[:1], train=False)
    state = optimizer.init(variables["params"])
    shuffle = np.random.default_rng(0)
    for epoch in range(1, epochs + 1):
        start, losses = time.perf_counter(), []
        for batch in shuffle.permutation(len(images))[: steps * BATCH].reshape(steps, BATCH):
            variables, state, loss = step(variables, state, images[batch], labels[batch])
            losses.append(loss)
        loss = np.mean(jax.device_get(losses))
        print(f"epoch {epoch:2} of {epochs}   loss {loss:.4f}   {time.perf_counter() - start:.1f} s", flush=True)
    return variables


SERVE = """
import sys
import numpy as np
import jaxq

model, images, logits = sys.argv[1:]
np.save(logits, jaxq.load(model)(np.load(images)))
assert "flax" not in sys.modules, "serving must not need Flax"
"""


def serve(model: Path, images: np.ndarray) -> np.ndarray:
    """Returns the logits that a new Python process computes from the file alone."""
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder, "images.npy"), Path(folder, "logits.npy")
        np.save(inputs, images)
        subprocess.run([sys.executable, "-P", "-c", SERVE, model, inputs, outputs], check=True)
        return np.load(outputs)


def batches(images: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH]


def milliseconds(*functions: Callable[[], jax.Array], seconds: float = 5.0) -> list[float]:
    """Returns the median time of each function; they take turns, so that a busy machine slows all alike."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function().block_until_ready()  # compile
    end = time.perf_counter() + seconds
    while not times[0] or time.perf_counter() < end:
        for function, measured in zip(functions, times, strict=True):
            start = time.perf_counter()
            function().block_until_ready()
            measured.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(measured) for measured in times]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train, quantize, save and serve a classifier of handwritten digits.")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--output", type=Path, default=Path("model.jaxq"), help="where to save the quantized model")
    args = parser.parse_args()
    if not args.output.parent.is_dir():
        parser.error(f"--output: {args.output.parent} is not a folder")

    train_images, test_images, train_labels, test_labels = load_data()
    print(f"training on {len(train_images)} images, jax {jax.__version__}, {jax.default_backend()}", flush=True)
    model = DigitNet()
    variables = train(model, train_images, train_labels, args.epochs)

    start = time.perf_counter()
    qmodel = jaxq.quantize(model, variables, batches(train_images), static_kwargs={"train": False})
    print(f"\nquantized in {time.perf_counter() - start:.1f} s\n\n{qmodel.summary()}\n", flush=True)
    qmodel.save(args.output)

    float_model = jax.jit(lambda images: model.apply(variables, images, train=False))
    float_logits, int8_logits = np.asarray(float_model(test_images)), np.asarray(qmodel(test_images))
    float_class, int8_class = float_logits.argmax(-1), int8_logits.argmax(-1)
    float_bytes, int8_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(variables)), args.output.stat().st_size
    batch = jnp.asarray(test_images[:BATCH])
    float_ms, int8_ms = milliseconds(lambda: float_model(batch), lambda: qmodel(batch))
    for name, float_column, int8_column in (
        (f"{len(test_images)} test images", "float", "int8"),
        ("accuracy", f"{np.mean(float_class == test_labels):.2%}", f"{np.mean(int8_class == test_labels):.2%}"),
        ("agreement", "", f"{np.mean(float_class == int8_class):.2%}"),
        ("size", f"{float_bytes / 1e6:.3f} MB", f"{int8_bytes / 1e6:.3f} MB"),
        (f"a batch of {BATCH}", f"{float_ms:.2f} ms", f"{int8_ms:.2f} ms"),
    ):
        print(f"{name:18}{float_column:>12}{int8_column:>12}")

    served = serve(args.output, test_images)
    if served.tobytes() != int8_logits.tobytes():
        sys.exit(f"{args.output}: a new process computed other logits")
    print(f"\n{args.output}: a new process, without Flax, computed the same {served.size} logits bit for bit")


if __name__ == "__main__":
    main()
