"""A calibration as a file of data: histograms, measured errors, fingerprint; no sample of the calibration data.

A checkpoint is the same of a pass that goes on; it holds the kept samples too, because the pass needs them at its end.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import jax
import numpy as np

from jaxq.calibration.batches import Signature
from jaxq.calibration.histogram import Histogram, empty
from jaxq.calibration.observe import Snapshot, Statistics
from jaxq.calibration.select import Errors, Tensor
from jaxq.errors import CalibrationError
from jaxq.files import FileKind
from jaxq.graph.fingerprint import Fingerprint
from jaxq.trees import decode_tree, encode_tree
from jaxq.version import __version__

CALIBRATION = FileKind(key="jaxq-calibration", noun="calibration", schema=1, error=CalibrationError)
CHECKPOINT = FileKind(key="jaxq-checkpoint", noun="checkpoint", schema=1, error=CalibrationError)

Arrays = dict[str, np.ndarray]


def encode(statistics: Statistics, fingerprint: Fingerprint, *, with_samples: bool) -> tuple[dict[str, Any], Arrays]:
    """The statistics and of which network they are, as a header and arrays."""
    names = list(statistics.histograms)
    shots = statistics.snapshots
    arrays = {
        "counts": np.stack([[shot.histograms[name].counts for name in names] for shot in shots]),
        "amax": np.stack([[shot.histograms[name].amax for name in names] for shot in shots]),
    }
    if with_samples:
        arrays |= {f"sample{i}": leaf for i, leaf in enumerate(statistics.samples)}
    header = {
        "jaxq": __version__,
        "jax": jax.__version__,
        "names": names,
        "num_examples": [shot.num_examples for shot in shots],
        "digests": list(statistics.digests),
        "layers": dict(fingerprint.layers),
        "variables": dict(fingerprint.variables),
    }
    return header, arrays


def decode(header: Mapping[str, Any], arrays: Arrays) -> tuple[Statistics, Fingerprint]:
    """What `encode` was given."""
    counts, amax = arrays["counts"], arrays["amax"]
    names, sizes = header["names"], header["num_examples"]
    one, many = empty(), (len(sizes), len(names))
    for array, leaf in ((counts, one.counts), (amax, one.amax)):
        if array.shape != (*many, *leaf.shape) or array.dtype != leaf.dtype:
            raise ValueError(f"histograms of {array.dtype}{list(array.shape)} do not fit {many} names")
    if not sizes or not np.all(np.isfinite(amax)) or np.any(amax < 0):
        raise ValueError("a histogram of no finite range")

    def snapshot(i: int) -> Snapshot:
        rows = zip(names, counts[i], amax[i], strict=True)
        return Snapshot(int(sizes[i]), {name: Histogram(counts=row, amax=top) for name, row, top in rows})

    num_samples = sum(name.startswith("sample") for name in arrays)
    statistics = Statistics(
        snapshots=tuple(snapshot(i) for i in range(len(sizes))),
        digests=tuple(map(str, header["digests"])),
        samples=tuple(arrays[f"sample{i}"] for i in range(num_samples)),
    )
    return statistics, Fingerprint(dict(header["layers"]), dict(header["variables"]))


def encode_network(signature: Signature, tensors: Sequence[Tensor], errors: Errors) -> dict[str, Any]:
    """The rest of a finished calibration, as a header."""
    return {
        "tree": encode_tree(signature.tree, "arguments"),
        "leaves": [[list(leaf.shape), leaf.dtype.name] for leaf in signature.leaves],
        "tensors": [[list(tensor.sources), tensor.dtype, tensor.measurable, tensor.floor] for tensor in tensors],
        "errors": {name: [list(pair) for pair in pairs.items()] for name, pairs in errors.items()},
    }


def decode_network(header: Mapping[str, Any]) -> tuple[Signature, tuple[Tensor, ...], Errors]:
    """What `encode_network` was given."""
    leaves = tuple(jax.ShapeDtypeStruct(tuple(shape), jax.numpy.dtype(dtype)) for shape, dtype in header["leaves"])
    tree = decode_tree(header["tree"])
    if tree.num_leaves != len(leaves):
        raise ValueError("the arguments do not fit their structure")
    tensors = tuple(Tensor(tuple(sources), *rest) for sources, *rest in header["tensors"])
    if not all(tensor.sources and tensor.dtype in ("int8", "uint8") for tensor in tensors):
        raise ValueError("a tensor without a source, or of another dtype than int8 and uint8")
    errors = {name: {float(t): _errors(by) for t, by in pairs} for name, pairs in header["errors"].items()}
    return Signature(tree, leaves), tensors, errors


def _errors(by_reader: Mapping[str, Any]) -> dict[str, float]:
    return {reader: float(error) for reader, error in by_reader.items()}


def save_checkpoint(path: str | PathLike[str], statistics: Statistics, fingerprint: Fingerprint) -> None:
    """Writes the statistics so far, the kept samples among them, atomically."""
    CHECKPOINT.write(path, *encode(statistics, fingerprint, with_samples=True))


def pack_checkpoint(statistics: Statistics, fingerprint: Fingerprint) -> bytes:
    """What `save_checkpoint` writes."""
    return CHECKPOINT.pack(*encode(statistics, fingerprint, with_samples=True))


def load_checkpoint(path: str | PathLike[str]) -> tuple[Statistics, Fingerprint]:
    """What `save_checkpoint` wrote.

    Raises:
      CalibrationError: the file is no checkpoint, or is damaged.
    """
    return decoded(path, decode, *CHECKPOINT.read(path))


def decoded(path: str | PathLike[str], decode: Any, *contents: Any) -> Any:
    """`decode(*contents)`, what does not decode being an error of the file."""
    try:
        return decode(*contents)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise CalibrationError(f"{path}: does not decode: {type(error).__name__}: {error}") from error
