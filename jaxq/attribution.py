"""Each layer's part of the error that int8 makes of a function's results."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxq.calibration.batches import Batches
from jaxq.calibration.samples import Samples
from jaxq.calibration.step import leading_size, rows
from jaxq.errors import UnsupportedError
from jaxq.qmodel import Origin, QuantizedModel

# The network runs once for each layer. On as many of the examples as make this many passes over all of them, but at
# least on so many and at most on so many, in parts of so many.
_PASSES = 6
_FEWEST, _MOST, _PART = 8, 64, 16


@dataclass(frozen=True)
class LayerError:
    """One layer.

    Attributes:
      name, op: of the node in the float graph, before parallel layers merge: what rules match.
      error: the squared error of the function's results over their square, with this layer alone in int8.
      share: of the sum over all layers.
    """

    name: str
    op: str
    error: float
    share: float

    @property
    def decibels(self) -> float:
        """The results' signal to noise ratio with this layer alone in int8."""
        return _decibels(self.error)


@dataclass(frozen=True)
class Sensitivity:
    """`rows` as data, the layer that errs most first; printed, a table.

    Attributes:
      error: that of all layers together, as in the int8 network.
      num_examples: how many examples it was measured on.
    """

    rows: tuple[LayerError, ...]
    error: float
    num_examples: int

    @property
    def decibels(self) -> float:
        """The results' signal to noise ratio with all layers in int8."""
        return _decibels(self.error)

    def __str__(self) -> str:
        head = ("layer", "op", "alone", "share")
        lines = [head, *((row.name, row.op, f"{row.decibels:.1f} dB", f"{row.share:.1%}") for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        table.insert(1, "  ".join("-" * width for width in widths))
        total = f"all in int8: {self.decibels:.1f} dB, on {self.num_examples} examples"
        return "\n".join([*table, "", total])


def _decibels(error: float) -> float:
    return -10 * math.log10(error) if error > 0 else math.inf


def sensitivity(qmodel: QuantizedModel, batches: Any) -> Sensitivity:
    """How much each int8 layer alone disturbs the results: which to keep in float where accuracy is short.

    With one layer in int8, and all others in float, the layer reads rounded values and has rounded weights; the error
    is that of the function's float results, their mean where there are several. All layers are measured by one compiled
    function, on at most 64 of the examples: those with the smallest content hash, so that their order does not matter.

    Args:
      qmodel: what `quantize` returned. (A file holds no float weights.)
      batches: as `quantize` takes them; those of the calibration, or others.

    Raises:
      UnsupportedError: the model is from a file, or returns no floats.
      CalibrationError: batches are missing, empty, malformed or not finite.
      PlanError: batches of another form than the model takes.
    """
    if not isinstance(qmodel, QuantizedModel):
        raise UnsupportedError(f"qmodel: takes what jaxq.quantize returned, not a {type(qmodel).__name__}")
    if qmodel.origin is None:
        raise UnsupportedError(
            "qmodel: a file, or a pytree's copy, holds no float weights: take what quantize returned"
        )
    samples, total = Samples(qmodel.origin.graph, _MOST), 0
    for _, args in Batches(batches):
        leaves, size, one_example = qmodel.plan.leaves(args)
        if one_example:
            raise UnsupportedError("batches: are single examples; give each a batch axis")
        samples.add([np.asarray(leaf) for leaf in leaves])
        total += size
    wanted = total * _PASSES // (len(qmodel.origin.simulated.nodes) + 1)
    return measure(qmodel.origin, samples.leaves(), max(wanted, _FEWEST))


def measure(origin: Origin, leaves: Sequence[np.ndarray], most: int = _MOST) -> Sensitivity:
    """Those of at most so many of the examples.

    Raises:
      UnsupportedError: the function returns no floats.
    """
    graph, simulated = origin.graph, origin.simulated
    floats = [i for i, node in enumerate(graph.outputs) if node.aval.is_float]
    if not floats:
        raise UnsupportedError("the function returns no floats, whose error could be measured")

    @jax.jit
    def run(params: Any, levels: Any, leaves: Any, mask: jax.Array) -> list[jax.Array]:
        outputs = simulated(params, levels, leaves, leading_size(graph, leaves), mask)
        return [outputs[i].astype(jnp.float32) for i in floats]

    @jax.jit
    def squares(exact: Any, outputs: Any) -> jax.Array:
        """(number of outputs, 2): the square of the exact results, and that of the error."""
        pairs = (
            (jnp.where(jnp.isfinite(y), y, 0), jnp.where(jnp.isfinite(y), z - y, 0))
            for y, z in zip(exact, outputs, strict=True)
        )
        return jnp.array([[jnp.sum(y * y), jnp.sum(error * error)] for y, error in pairs])

    params, levels = jax.device_put((graph.params, simulated.levels(origin.choices, origin.config)))
    count = len(simulated.nodes)
    masks = [*np.eye(count, dtype=bool), np.ones(count, bool)]
    total = np.zeros((count + 1, len(floats), 2))
    parts = _parts(graph, leaves, most)
    with tqdm(total=len(parts) * len(masks), desc="measuring layers", unit="layer", disable=None) as bar:
        for part in parts:
            exact = run(params, levels, part, np.zeros(count, bool))
            for i, mask in enumerate(masks):
                total[i] += squares(exact, run(params, levels, part, mask))
                bar.update()
    return _sensitivity(origin, total, sum(max(leading_size(graph, part), 1) for part in parts))


def _parts(graph: Any, leaves: Sequence[np.ndarray], most: int) -> list[list[np.ndarray]]:
    """The examples in parts of one size, so that one program serves them all."""
    size = min(leading_size(graph, leaves), most)
    if size == 0:
        return [list(leaves)]
    count = math.ceil(size / _PART)
    return [rows(graph, leaves, slice(i * (size // count), (i + 1) * (size // count))) for i in range(count)]


def _sensitivity(origin: Origin, squares: np.ndarray, num_examples: int) -> Sensitivity:
    tiny = np.finfo(np.float32).tiny
    errors = np.mean(squares[..., 1] / np.maximum(squares[..., 0], tiny), axis=-1)
    errors = np.nan_to_num(errors, nan=np.inf, posinf=np.inf)
    *alone, together = errors.tolist()
    total = sum(alone) or 1.0
    found = [
        LayerError(node.name, node.op, error, error / total)
        for node, error in zip(origin.simulated.nodes, alone, strict=True)
    ]
    return Sensitivity(tuple(sorted(found, key=lambda row: -row.error)), together, num_examples)
