"""One pass over the calibration batches: a histogram of every value that may become integers, and a few samples.

The float graph runs under `jit` with the histograms inside it, so that no two activations need be alive for the
observer's sake. What was counted is exact and can be kept: a calibration that stops goes on where it stopped, the
batches that it has counted recognised by their digests.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxq.calibration import histogram
from jaxq.calibration.batches import Batches
from jaxq.calibration.histogram import Histogram
from jaxq.calibration.kernels import XLA, Kernels
from jaxq.calibration.nonfinite import first_nonfinite
from jaxq.calibration.samples import Samples
from jaxq.calibration.step import Observed, Steps, batch_size
from jaxq.errors import CalibrationError
from jaxq.graph.node import Graph, Node

SECONDS_BETWEEN_CHECKPOINTS = 30.0
MAX_SNAPSHOTS = 6


@dataclass(frozen=True)
class Snapshot:
    """The histograms by value name, their leaves numpy arrays, after `num_examples`."""

    num_examples: int
    histograms: Mapping[str, Histogram]


@dataclass(frozen=True)
class Statistics:
    """What calibration saw.

    Attributes:
      snapshots: the histograms as they grew, the last one those of all examples.
      digests: of the batches counted, in their order.
      samples: kept examples as leaves of one batch; () where none were kept.
    """

    snapshots: tuple[Snapshot, ...]
    digests: tuple[str, ...]
    samples: tuple[np.ndarray, ...]

    @property
    def num_examples(self) -> int:
        return self.snapshots[-1].num_examples

    @property
    def histograms(self) -> Mapping[str, Histogram]:
        return self.snapshots[-1].histograms

    def with_histograms(self, more: Mapping[str, Histogram]) -> "Statistics":
        """With those of more values."""
        *before, last = self.snapshots
        return replace(self, snapshots=(*before, replace(last, histograms={**last.histograms, **more})))

    @property
    def unseen(self) -> frozenset[str]:
        """The values that never were: those of a branch that was never taken, or a loop that never ran."""
        return frozenset(name for name, seen in self.histograms.items() if not np.any(seen.counts))


def observe_all(
    graph: Graph,
    observed: Mapping[Node, float],
    batches: Batches,
    num_samples: int,
    *,
    kernels: Kernels = XLA,
    mesh: Mesh | None = None,
    start: Statistics | None = None,
    keep: Callable[[Statistics], None] | None = None,
    settled: Callable[[Statistics], bool] | None = None,
) -> Statistics:
    """Runs the float graph over all batches.

    Args:
      graph: the simplified float graph.
      observed: the nodes whose values are observed, and their floors: what is lower counts as this value.
      batches: the calibration data, read once.
      num_samples: how many examples to keep.
      kernels: what counts the values.
      mesh: devices that share each batch; see `Steps`.
      start: what was counted before, with the samples; a batch among its digests is not counted again, but
        offers its examples to the samples, which `start` may lack.
      keep: called with the statistics so far every half minute and before an error or Ctrl-C passes on.
      settled: called with the statistics whenever a snapshot is taken, `start` among them; True ends the pass,
        once the samples are there that `start` lacks.

    Raises:
      CalibrationError: a batch that the graph does not take, a layer that makes NaN or Inf, or no example at all.
    """
    counting = _Counting(graph, observed, num_samples, kernels, mesh, start)
    had_settled = counting.ends_here(settled)
    if had_settled and not counting.lacks_samples:
        return counting.statistics()
    try:
        # On stderr, and silent where that is no terminal.
        with tqdm(total=batches.total, desc="calibrating", unit="batch", disable=None) as progress:
            last_kept = time.monotonic()
            for index, args in batches:
                is_new = counting.add(index, [np.asarray(leaf) for leaf in jax.tree.leaves(args)])
                progress.set_postfix_str(f"{counting.total.num_examples} examples", refresh=False)
                progress.update()
                if not is_new:
                    if had_settled and not counting.lacks_samples:
                        break
                    continue
                if keep is not None and time.monotonic() - last_kept > SECONDS_BETWEEN_CHECKPOINTS:
                    keep(counting.statistics())
                    last_kept = time.monotonic()
                if counting.ends_here(settled):
                    break
    except BaseException:
        if keep is not None and counting.total.num_examples:
            keep(counting.statistics())
        raise
    if counting.total.num_examples == 0:
        raise CalibrationError("batches: no batch held an example")
    return counting.statistics()


def merged(graph: Graph, num_samples: int, parts: Sequence[Statistics]) -> Statistics:
    """What one pass over the batches of all parts would have counted. Of their snapshots, the last of each part are
    summed, the ones before, and so on, for as many as each part has."""
    samples = Samples(graph, num_samples)
    for part in parts:
        if part.samples:
            samples.add(part.samples)
    depth = min(len(part.snapshots) for part in parts)
    shots = zip(*(part.snapshots[-depth:] for part in parts), strict=True)
    digests = tuple(digest for part in parts for digest in part.digests)
    return Statistics(tuple(map(_sum, shots)), digests, samples.leaves())


def _sum(shots: Sequence[Snapshot]) -> Snapshot:
    names = tuple(shots[0].histograms)
    stacked = [histogram.stacked([shot.histograms[name] for name in names]) for shot in shots]
    return Snapshot(sum(shot.num_examples for shot in shots), _by_name(names, reduce(histogram.merge, stacked)))


@dataclass(frozen=True)
class _Total:
    """What was counted, replaced as one so that an interrupt leaves the old total or the new one. Histograms are
    stacked on a leading axis, one for each observed value."""

    histograms: Histogram
    num_examples: int
    num_batches: int


class _Counting:
    """The running total, and how a batch is added to it."""

    def __init__(
        self,
        graph: Graph,
        observed: Mapping[Node, float],
        num_samples: int,
        kernels: Kernels,
        mesh: Mesh | None,
        start: Statistics | None,
    ) -> None:
        floors = {node.name: observed[node] for node in graph.all_nodes if node in observed}
        self.graph, self.names = graph, tuple(floors)
        self.steps = Steps(graph, floors, kernels, mesh)
        self.samples = Samples(graph, num_samples)
        self.digests: list[str] = []
        self.earlier: tuple[Snapshot, ...] = ()
        self.total = _Total(histogram.stacked([histogram.empty()] * len(self.names)), 0, 0)
        if start is not None:
            self._resume(start)
        self.counted_before = Counter(self.digests)
        self.has_samples = num_samples == 0 or start is None or bool(start.samples)

    def _resume(self, start: Statistics) -> None:
        self.digests = list(start.digests)
        self.earlier = start.snapshots if _is_snapshot(len(self.digests)) else start.snapshots[:-1]
        if start.samples:
            self.samples.add(start.samples)
        histograms = histogram.stacked([start.histograms[name] for name in self.names])
        self.total = _Total(histograms, start.num_examples, len(self.digests))

    def add(self, index: int, leaves: Sequence[np.ndarray]) -> bool:
        """Counts one batch; False where there is nothing new: no example, or a batch counted before this run, whose
        examples may be kept all the same."""
        size = batch_size(self.graph, leaves, index)
        if size == 0:
            return False
        digest = _digest(leaves)
        if self.counted_before[digest]:
            self.counted_before[digest] -= 1
            self.samples.add(leaves)
            return False
        seen = self.steps(leaves)
        self._check_finite(index, leaves, seen)
        self.samples.add(leaves)
        histograms = self.total.histograms
        for part in seen:
            histograms = histogram.merge(histograms, part.histograms)
        self.digests.append(digest)
        self.total = _Total(histograms, self.total.num_examples + size, self.total.num_batches + 1)
        if self.at_snapshot:
            self.earlier = (*self.earlier, self._snapshot())[-MAX_SNAPSHOTS:]
        return True

    @property
    def lacks_samples(self) -> bool:
        """Whether batches counted before this run, by a pass that kept no samples, have yet to come again."""
        return not self.has_samples and self.counted_before.total() > 0

    @property
    def at_snapshot(self) -> bool:
        return _is_snapshot(self.total.num_batches)

    def ends_here(self, settled: Callable[[Statistics], bool] | None) -> bool:
        return settled is not None and self.at_snapshot and settled(self.statistics())

    def _snapshot(self) -> Snapshot:
        return Snapshot(self.total.num_examples, _by_name(self.names, self.total.histograms))

    def statistics(self) -> Statistics:
        now = self._snapshot()
        earlier = tuple(shot for shot in self.earlier if shot.num_examples < now.num_examples)
        digests = tuple(self.digests[: self.total.num_batches])
        return Statistics((*earlier, now), digests, self.samples.leaves())

    def _check_finite(self, index: int, leaves: Sequence[np.ndarray], seen: Sequence[Observed]) -> None:
        for part in seen:
            bad = ~part.histograms.is_finite
            broken = [name for name, is_bad in zip(self.names, bad, strict=True) if is_bad]
            broken += [node.name for node, is_bad in zip(self.graph.outputs, part.bad_outputs, strict=True) if is_bad]
            if broken:
                layer, what = first_nonfinite(self.graph, leaves, broken[0])
                raise CalibrationError(
                    f"batch {index}: layer {layer!r} makes {what}; the batch itself holds neither NaN nor Inf. Check "
                    "the layer's variables, or take the batch out"
                )


def _is_snapshot(num_batches: int) -> bool:
    """After 1, 2, 3, 4, 6, 8, 12, 16, ... batches: 2^k and 3 2^k."""
    power = num_batches & -num_batches
    return num_batches // max(power, 1) in (1, 3)


def _digest(leaves: Sequence[np.ndarray]) -> str:
    """128 bits of what a batch holds, in hex."""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in leaves:
        digest.update(f"{leaf.dtype}{leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _by_name(names: Sequence[str], histograms: Histogram) -> dict[str, Histogram]:
    host = jax.tree.map(np.asarray, histograms)
    return {name: jax.tree.map(lambda leaf, i=i: leaf[i], host) for i, name in enumerate(names)}
