"""Calibration by several processes, each with batches of its own: the sum of what they counted.

Nothing is exchanged before a process has counted all its batches, so these may differ in number and size. Merging is
exact: the sum is what one process would have counted with all the batches.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxq.calibration import cache
from jaxq.calibration.observe import Statistics, merged
from jaxq.errors import CalibrationError, UnsupportedError
from jaxq.graph.fingerprint import Fingerprint
from jaxq.graph.node import Graph


def spans_processes(mesh: Mesh | None) -> bool:
    """True where the mesh has devices of several processes, which must then be all that there are.

    Raises:
      UnsupportedError: they are some of the processes only.
    """
    if not isinstance(mesh, Mesh):
        return False
    processes = {device.process_index for device in mesh.devices.flat}
    if len(processes) == 1:
        return False
    if len(processes) != jax.process_count():
        raise UnsupportedError(
            f"mesh: has devices of {len(processes)} of the {jax.process_count()} processes; take those of one or of all"
        )
    return True


@contextmanager
def together(mesh: Mesh | None, terms: str = "") -> Iterator[None]:
    """A section that every process which the mesh spans must enter. It ends when all have come to its end; what fails
    in one fails in all, so that none waits in vain. (Ctrl-C passes on at once and tells nobody.)

    Args:
      terms: what must be the same for all.

    Raises:
      CalibrationError: another process failed, or has other terms.
    """
    if not spans_processes(mesh):
        yield
        return
    try:
        yield
    except Exception:
        _gather(b"")
        raise
    said = _gather(b"1" + terms.encode())
    for i, theirs in enumerate(said):
        if not theirs:
            raise CalibrationError(f"process {i} of {len(said)} failed; the error it raised says why")
        if theirs[1:] != terms.encode():
            raise CalibrationError(f"process {i} of {len(said)} calibrates with {theirs[1:].decode()}, not {terms}")


def sum_over_processes(graph: Graph, num_samples: int, fingerprint: Fingerprint, mine: Statistics) -> Statistics:
    """The statistics of all processes together, the same on each. Every process must call it.

    Raises:
      CalibrationError: some process calibrates another network; every process raises then.
    """
    parts = _gather(cache.pack_checkpoint(mine, fingerprint))
    with tempfile.TemporaryDirectory() as folder:
        loaded = [_loaded(Path(folder) / "part", part) for part in parts]
    for i, (_, theirs) in enumerate(loaded):
        if differences := fingerprint.differences(theirs):
            raise CalibrationError(f"process {i} of {len(parts)} calibrates another network: {differences[0]}")
    return merged(graph, num_samples, [statistics for statistics, _ in loaded])


def _loaded(path: Path, data: bytes) -> tuple[Statistics, Fingerprint]:
    path.write_bytes(data)
    return cache.load_checkpoint(path)


def _gather(data: bytes) -> Sequence[bytes]:
    """The data of every process, in the order of the processes."""
    lengths = np.ravel(multihost_utils.process_allgather(np.array(len(data), np.int32)))
    padded = np.zeros(max(1, *lengths), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]
