"""All ways to compute a network, JAX's, jaxq's and the peers', each ready to be compiled for a batch size."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx

import jaxq
from peers import runtimes
from peers.networks import Batch, Network, chunks, to_peer
from peers.runtimes import Compiled
from peers.stopwatch import THREADS

JAX, JAXQ = "JAX float32", "jaxq int8"
CALIBRATION_BATCH = 8


@dataclass(frozen=True)
class Contender:
    """`compile` takes a batch size to the compiled network, `prepare` the network's arrays to what that takes."""

    name: str
    compile: Callable[[int], Compiled]
    prepare: Callable[[Batch], Batch]


def contenders(network: Network, method: str, cache: Path) -> tuple[list[Contender], int]:
    """All contenders, jaxq calibrated by that method, and the multiply-adds of one example."""
    batches = chunks(network.calibration, min(CALIBRATION_BATCH, len(network.calibration[0])))
    qmodel = jaxq.quantize(network.fun, network.params, batches, config=jaxq.QuantConfig(method=method))
    rows = [row for row in qmodel.summary().nodes if row.op in ("conv", "dot", "matmul")]
    int8 = f"{sum(row.precision == 'int8' for row in rows)}/{len(rows)}"
    forward, params = jax.jit(network.fun), jax.device_put(network.params)
    own = [
        Contender(
            JAX, lambda _: Compiled(lambda *x: forward(params, *x).block_until_ready(), f"0/{len(rows)}"), _device
        ),
        Contender(JAXQ, lambda _: Compiled(lambda *x: qmodel(*x).block_until_ready(), int8), _device),
    ]
    peers = _peers(network, cache, [to_peer(batch) for batch in batches])
    return own + peers, sum(row.macs for row in rows)


def _device(arrays: Batch) -> Batch:
    return jax.device_put(arrays)


def _peers(network: Network, cache: Path, batches: Sequence[Batch]) -> list[Contender]:
    """The peers' models, made unless they lie in the cache from another run on the same network and data."""
    model = network.write()
    digest = hashlib.sha256(model.SerializeToString())
    for batch in batches:
        for array in batch:
            digest.update(array.tobytes())
    transformer = network.heads > 0

    def made(kind: str, make: Callable[[Path], object]) -> Path:
        path = cache / f"{digest.hexdigest()[:16]}.{kind}"
        if not path.exists():
            make(path)
        return path

    plain = fused = made("onnx", partial(onnx.save, model))
    if transformer:
        width = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
        fused = made("fused.onnx", lambda path: runtimes.ort_transformer(plain, path, network.heads, width))
    ort_models = {"ONNX Runtime float32": fused}
    ort_models["ONNX Runtime int8"] = made(
        "static.onnx", lambda path: runtimes.ort_static(plain, path, batches, transformer)
    )
    if transformer:
        ort_models["ONNX Runtime int8 dynamic"] = made("dynamic.onnx", lambda path: runtimes.ort_dynamic(fused, path))
    nncf = made("xml", lambda path: runtimes.openvino_quantize(plain, path, batches, transformer))
    openvino_models = {
        "OpenVINO default": (plain, None),
        "OpenVINO int8": (nncf, "f32"),
        "OpenVINO int8, rest default": (nncf, None),
    }
    return [
        Contender(name, partial(runtimes.ort_compile, path, threads=THREADS), to_peer)
        for name, path in ort_models.items()
    ] + [
        Contender(name, partial(runtimes.openvino_compile, path, threads=THREADS, precision=precision), to_peer)
        for name, (path, precision) in openvino_models.items()
    ]


def outputs(contender: Contender, compiled: Compiled, batches: Sequence[Batch]) -> np.ndarray:
    """What the compiled network makes of all the batches."""
    return np.concatenate([np.array(compiled.run(*contender.prepare(batch))) for batch in batches])


def check_float(network: Network, contender: Contender, reference: np.ndarray, batch: Batch) -> str:
    """The greatest difference of a float peer from JAX; an error where they do not compute the same."""
    error = np.abs(outputs(contender, contender.compile(len(batch[0])), [batch]) - reference).max()
    limit = np.abs(reference).max()
    if error > 1e-3 * limit:
        raise SystemExit(f"{network.name}: {contender.name} differs from JAX by {error:.2g} of {limit:.2g}")
    return f"{contender.name} differs from JAX by {error:.1e} of {limit:.2g}"


def decibels(reference: np.ndarray, values: np.ndarray) -> float:
    """The signal-to-noise ratio of the values."""
    exact = reference.astype(np.float64)
    noise = np.square(exact - values).sum()
    return float(10 * jnp.log10(np.square(exact).sum() / noise)) if noise else float("inf")


def agreement(reference: np.ndarray, values: np.ndarray) -> float:
    """How many of the classes are the same."""
    return float(np.mean(reference.argmax(-1) == values.argmax(-1)))
