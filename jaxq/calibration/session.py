"""One calibration from its start, a checkpoint if there is one, to its end, the sum over all processes."""

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path

from jax.sharding import Mesh

from jaxq.calibration import cache, distributed
from jaxq.calibration.batches import Batches
from jaxq.calibration.kernels import Kernels
from jaxq.calibration.observe import Statistics, observe_all
from jaxq.errors import CalibrationError, UnsupportedError
from jaxq.graph.fingerprint import Fingerprint
from jaxq.graph.node import Graph, Node


def calibrate(
    graph: Graph,
    observed: Mapping[Node, float],
    batches: Batches,
    num_samples: int,
    fingerprint: Fingerprint,
    kernels: Kernels,
    *,
    mesh: Mesh | None = None,
    settled: Callable[[Statistics], bool] | None = None,
    checkpoint: str | PathLike[str] | None = None,
) -> Statistics:
    """What the batches, of all processes that the mesh spans, make the graph's values.

    Raises:
      CalibrationError: a batch that cannot be counted, in any process, or a checkpoint of another network, or one
        without samples where they are wanted and no batch brings them.
      UnsupportedError: a mesh that cannot be used, or `settled` with several processes.
    """
    several = distributed.spans_processes(mesh)
    if several and settled is not None:
        raise UnsupportedError("until='settled': processes that share a calibration cannot each end it; leave it out")

    def keep(statistics: Statistics) -> None:
        if checkpoint is not None:
            cache.save_checkpoint(checkpoint, statistics, fingerprint)

    with distributed.together(mesh):
        start = _resume(checkpoint, fingerprint)
        mine = observe_all(
            graph, observed, batches, num_samples, kernels=kernels, mesh=mesh, start=start, keep=keep, settled=settled
        )
        keep(mine)
    total = distributed.sum_over_processes(graph, num_samples, fingerprint, mine) if several else mine
    if num_samples and start is not None and not total.samples:
        raise CalibrationError(
            f"checkpoint: {checkpoint} is of a pass that kept no samples for 'auto', and no batch came to take "
            "them from; hand in the batches that it counted, or take another file"
        )
    return total


def _resume(checkpoint: str | PathLike[str] | None, fingerprint: Fingerprint) -> Statistics | None:
    if checkpoint is None:
        return None
    path = Path(checkpoint)
    if not path.exists():
        if not path.parent.is_dir():
            raise CalibrationError(f"checkpoint: {path.parent} is no folder")
        return None
    statistics, of = cache.load_checkpoint(path)
    if differences := of.differences(fingerprint):
        raise CalibrationError(
            f"checkpoint: {path} is of another network or of other variables: {differences[0]}; take another file"
        )
    return statistics
