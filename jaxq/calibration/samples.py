"""The few examples that calibration keeps, to measure errors on: those with the smallest content hash.

Which they are depends on the data alone, not on its order, its chunks or the number of processes that saw it.
"""

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxq.graph.node import Graph


@dataclass
class Samples:
    """Up to `size` different examples of the graph's arguments; one whole batch where the graph's batch is fixed."""

    graph: Graph
    size: int
    _heap: list[tuple[int, int, list[np.ndarray]]] = field(default_factory=list)  # (-hash, order, rows), largest first
    _kept: set[int] = field(default_factory=set)

    def add(self, leaves: Sequence[np.ndarray]) -> None:
        """Consider every example of a batch."""
        batched = [node.aval.leads_batch for node in self.graph.inputs]
        limit = self.size if any(batched) else min(self.size, 1)
        if limit == 0:
            return
        count = next((len(leaf) for leaf, follows in zip(leaves, batched, strict=True) if follows), 1)
        for i in range(count):
            rows = [leaf[i] if follows else leaf for leaf, follows in zip(leaves, batched, strict=True)]
            self._consider(content_hash(rows), rows, limit)

    def _consider(self, key: int, rows: list[np.ndarray], limit: int) -> None:
        if key in self._kept or (len(self._heap) == limit and key > -self._heap[0][0]):
            return
        self._kept.add(key)
        copies = [np.array(row) for row in rows]  # a view would keep its whole batch alive
        heapq.heappush(self._heap, (-key, len(self._kept), copies))
        if len(self._heap) > limit:
            self._kept.discard(-heapq.heappop(self._heap)[0])

    def leaves(self) -> tuple[np.ndarray, ...]:
        """The kept examples as one batch, in the order of their hashes; () if none was kept."""
        examples = [rows for _, _, rows in sorted(self._heap, key=lambda entry: -entry[0])]
        if not examples:
            return ()
        return tuple(
            np.stack([rows[i] for rows in examples]) if node.aval.leads_batch else examples[0][i]
            for i, node in enumerate(self.graph.inputs)
        )


def content_hash(arrays: Sequence[np.ndarray]) -> int:
    """64 bits of what the arrays hold."""
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return int.from_bytes(digest.digest(), "big")
