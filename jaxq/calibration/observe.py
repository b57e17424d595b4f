"""One pass over the calibration batches: a histogram of every value that may become integers, and a few samples.

The float graph runs under `jit` with the histograms inside it, so no two activations need be alive for the observer's
sake. The samples kept are those with the smallest content hash: which ones they are depends on the data alone, not on
its order.
"""

import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.calibration import histogram
from jaxq.calibration.batches import Batches
from jaxq.calibration.histogram import Histogram
from jaxq.errors import CalibrationError
from jaxq.graph.evaluate import evaluate
from jaxq.graph.node import Graph, Node
from jaxq.progress import Progress


@dataclass(frozen=True)
class Statistics:
    """What calibration saw: a histogram for each observed value, by name, and sample arguments (leaves)."""

    histograms: Mapping[str, Histogram]
    samples: tuple[np.ndarray, ...]


def calibrate(graph: Graph, observed: Iterable[Node], batches: Batches, num_samples: int) -> Statistics:
    """Runs the float graph over all batches.

    Args:
      graph: the simplified float graph.
      observed: the nodes whose values are observed.
      batches: the calibration data, read once.
      num_samples: how many examples to keep.

    Raises:
      CalibrationError: a batch that the graph does not take, a layer that makes NaN or Inf, or no example at all.
    """
    observed = set(observed)
    names = tuple(node.name for node in graph.nodes if node in observed)
    params = graph.params
    step = jax.jit(lambda params, leaves: _batch_histograms(graph, names, params, leaves))
    stats = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(names)), histogram.empty())
    samples = _Samples(graph, num_samples)
    num_examples = 0
    with Progress("calibrating", batches.total) as progress:
        for index, args in batches:
            leaves = jax.tree.leaves(args)
            size = _batch_size(graph, leaves, index)
            seen, nan_outputs = step(params, leaves)
            _check_finite(graph, names, seen, nan_outputs, index)
            stats = _merge(stats, seen)
            samples.add(leaves)
            num_examples += size
            progress.advance(f"{num_examples} examples")
    if num_examples == 0:
        raise CalibrationError("batches: no batch held an example")
    by_name = {name: jax.tree.map(lambda leaf, i=i: leaf[i], stats) for i, name in enumerate(names)}
    return Statistics(by_name, samples.leaves())


# Histograms are stacked on a leading axis, one for each observed value. The merge is compiled once, whatever the
# network's batch sizes, and apart from the forward pass.
_merge = jax.jit(jax.vmap(histogram.merge))


def _batch_histograms(
    graph: Graph, names: Sequence[str], params: Any, leaves: Sequence[Any]
) -> tuple[Histogram, list[jax.Array]]:
    """The forward pass of one batch: a histogram of every observed value, and for every output whether it holds NaN."""
    seen: dict[str, Histogram] = {}
    bound = graph.bind(leading_size(graph, leaves))

    def add(node: Node, value: Any) -> None:
        if node.name in names:
            seen[node.name] = histogram.from_samples(value)

    for node, leaf in zip(bound.inputs, leaves, strict=True):
        add(node, leaf)
    outputs = evaluate(bound, params, leaves, tap=add)
    nan_outputs = [jnp.any(y != y) for y in outputs]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *(seen[name] for name in names)), nan_outputs


def leading_size(graph: Graph, leaves: Sequence[Any]) -> int:
    """The batch size of argument leaves; 0 where no argument has a batch axis that may vary."""
    sizes = [leaf.shape[0] for node, leaf in zip(graph.inputs, leaves, strict=True) if node.aval.leads_batch]
    return int(sizes[0]) if sizes else 0


def _batch_size(graph: Graph, leaves: Sequence[Any], index: int) -> int:
    """The number of examples in the batch, whose leaves must fit the graph."""
    batch = leading_size(graph, leaves)
    for node, leaf in zip(graph.bind(batch).inputs, leaves, strict=True):
        if tuple(leaf.shape) != node.aval.shape:
            raise CalibrationError(
                f"batch {index}, {node.name}: has shape {tuple(leaf.shape)} where the others make it {node.aval.shape}"
            )
    return batch if any(node.aval.leads_batch for node in graph.inputs) else 1


def _check_finite(
    graph: Graph, names: Sequence[str], seen: Histogram, nan_outputs: Sequence[jax.Array], index: int
) -> None:
    nonfinite = np.asarray(jax.vmap(lambda h: jnp.sum(h.nonfinite))(seen))
    broken = [name for name, count in zip(names, nonfinite, strict=True) if count]
    broken += [node.name for node, is_nan in zip(graph.outputs, nan_outputs, strict=True) if is_nan]
    if broken:
        raise CalibrationError(
            f"batch {index}: layer {broken[0]!r} makes NaN or Inf; the batch itself holds none. Check the layer's "
            "variables, or take the batch out"
        )


@dataclass
class _Samples:
    """The examples with the smallest content hash; whole batches where the graph has a fixed batch."""

    graph: Graph
    size: int
    kept: list[tuple[int, int, list[Any]]] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)

    def add(self, leaves: Sequence[Any]) -> None:
        if self.size == 0:
            return
        arrays = [np.asarray(leaf) for leaf in leaves]
        follows = [node.aval.leads_batch for node in self.graph.inputs]
        for i in range(leading_size(self.graph, arrays) if any(follows) else 1):
            rows = [array[i] if batched else array for array, batched in zip(arrays, follows, strict=True)]
            digest = hashlib.blake2b(digest_size=8)
            for row in rows:
                digest.update(np.ascontiguousarray(row).tobytes())
            self._keep(int.from_bytes(digest.digest(), "big"), rows)

    def _keep(self, key: int, rows: list[Any]) -> None:
        if key in self.seen:
            return
        limit = self.size if any(node.aval.leads_batch for node in self.graph.inputs) else 1
        if len(self.kept) == limit and -key < self.kept[0][0]:
            return
        self.seen.add(key)
        copies = [np.copy(row) for row in rows]  # a view would keep its whole batch alive
        heapq.heappush(self.kept, (-key, len(self.seen), copies))
        if len(self.kept) > limit:
            heapq.heappop(self.kept)

    def leaves(self) -> tuple[np.ndarray, ...]:
        """The kept examples as one batch."""
        examples = [rows for _, _, rows in sorted(self.kept, key=lambda entry: -entry[0])]
        if not examples:
            return ()
        return tuple(
            np.stack([rows[i] for rows in examples]) if node.aval.leads_batch else examples[0][i]
            for i, node in enumerate(self.graph.inputs)
        )
