"""Quantization-aware training: 4-bit weights that classify as the float network does. Continues train_to_deploy.py.

    pip install jaxq flax optax scikit-learn
    python quantization_aware_training.py [--epochs 12] [--qat-epochs 5] [--output model4.jaxq]

The network is trained in float, quantized to weights of 15 levels, and then trained for a few epochs more as the int8
plan computes it. It learns from the float network's own outputs (distillation): no labels are needed, and what it is to
become is the float network.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from train_to_deploy import BATCH, DigitNet, batches, load_data, train

import jaxq


def train_quantized(
    fake: jaxq.FakeQuantized, teacher: Callable[[np.ndarray], jax.Array], images: np.ndarray, epochs: int
) -> Any:
    """Returns the trained variables: an ordinary loop, in which `fake` is an ordinary function."""
    steps = len(images) // BATCH
    # To 0: at a constant rate, weights half-way between two levels swing between them to the end.
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-4, epochs * steps))
    targets = np.asarray(jax.nn.softmax(teacher(images)))

    def loss_of(variables: Any, x: jax.Array, target: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy(fake(variables, x), target).mean()

    @jax.jit
    def step(variables: Any, state: Any, x: jax.Array, target: jax.Array) -> tuple[Any, Any, jax.Array]:
        loss, gradient = jax.value_and_grad(loss_of)(variables, x, target)
        updates, state = optimizer.update(gradient, state, variables)
        return optax.apply_updates(variables, updates), state, loss

    variables = fake.variables
    state = optimizer.init(variables)
    shuffle = np.random.default_rng(1)
    for epoch in range(1, epochs + 1):
        start, losses = time.perf_counter(), []
        for batch in shuffle.permutation(len(images))[: steps * BATCH].reshape(steps, BATCH):
            variables, state, loss = step(variables, state, images[batch], targets[batch])
            losses.append(loss)
        loss = np.mean(jax.device_get(losses))
        print(f"int4 epoch {epoch} of {epochs}   loss {loss:.4f}   {time.perf_counter() - start:.1f} s", flush=True)
    return variables


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a classifier of digits for 4-bit weights.")
    parser.add_argument("--epochs", type=int, default=12, help="in float")
    parser.add_argument("--qat-epochs", type=int, default=5, help="as the int8 plan computes")
    parser.add_argument("--output", type=Path, default=Path("model4.jaxq"), help="where to save the quantized model")
    args = parser.parse_args()
    if not args.output.parent.is_dir():
        parser.error(f"--output: {args.output.parent} is not a folder")

    train_images, test_images, train_labels, test_labels = load_data()
    print(f"training on {len(train_images)} images, jax {jax.__version__}, {jax.default_backend()}", flush=True)
    model = DigitNet()
    variables = train(model, train_images, train_labels, args.epochs)
    float_model = jax.jit(lambda images: model.apply(variables, images, train=False))

    config = jaxq.QuantConfig(weight_bits=4)
    calibration = jaxq.calibrate(model, variables, batches(train_images), static_kwargs={"train": False})
    given: dict[str, Any] = {"calibration": calibration, "config": config, "static_kwargs": {"train": False}}
    after_training = jaxq.quantize(model, variables, **given)
    fake = jaxq.fake_quantize(model, variables, **given)
    trained = train_quantized(fake, float_model, train_images, args.qat_epochs)
    qmodel = jaxq.quantize(fake, trained)
    qmodel.save(args.output)

    exact = np.asarray(float_model(test_images))
    labels = jnp.asarray(test_labels)
    print(f"\n{len(test_images)} test images    accuracy   agreement   SQNR of the logits")
    for name, predict in (
        ("float", float_model),
        ("4 bits", after_training),
        ("4 bits, trained", qmodel),
    ):
        logits = np.asarray(predict(test_images))
        accuracy, agreement = (np.mean(logits.argmax(-1) == other) for other in (labels, exact.argmax(-1)))
        noise = np.mean((logits - exact) ** 2)
        sqnr = f"{10 * np.log10(np.mean(exact**2) / noise):.1f} dB" if noise else ""
        print(f"{name:16}{accuracy:>12.2%}{agreement:>12.2%}{sqnr:>14}")

    difference = np.max(np.abs(qmodel(test_images) - fake(trained, test_images)))
    lsb = np.max(np.abs(exact)) / 127
    print(f"\n{args.output}: its logits and those of the trained function differ by at most {difference / lsb:.3f} LSB")
    if difference > lsb:
        sys.exit("that is more than 1 LSB")


if __name__ == "__main__":
    main()
