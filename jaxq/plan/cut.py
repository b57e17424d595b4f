"""Which nodes to compute in int8 and which in float, so that together they take least: a minimum cut.

Each node takes a time in either precision, and a value that crosses from one to the other takes a time to be quantized
or dequantized. To leave one node in float between two in int8 costs two crossings, so that whole regions change. The
least sum is the minimum cut of a flow network (D. Greig, B. Porteous, A. Seheult: Exact maximum a posteriori estimation
for binary images, 1989, for the same sum).
"""

from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

# scipy's flows are int32: the largest flow in its units, and twice that for whatever binds none.
_LARGEST = 1 << 29


@dataclass
class Costs:
    """Seconds. `int8`, `in_float`: of each node. `edges`: {(maker, reader): (to dequantize, to quantize)} of the values
    that go from one node to another."""

    int8: dict[Hashable, float] = field(default_factory=lambda: defaultdict(float))
    in_float: dict[Hashable, float] = field(default_factory=lambda: defaultdict(float))
    edges: dict[tuple[Hashable, Hashable], tuple[float, float]] = field(default_factory=dict)

    def of(self, precision: Mapping[Hashable, bool]) -> float:
        """The sum, where `precision` says which nodes are in int8."""
        nodes = sum((self.int8 if is_int8 else self.in_float)[node] for node, is_int8 in precision.items())
        crossings = 0.0
        for (maker, reader), (dequantize, quantize) in self.edges.items():
            if precision[maker] != precision[reader]:
                crossings += dequantize if precision[maker] else quantize
        return nodes + crossings


def cheapest(costs: Costs) -> dict[Hashable, bool]:
    """{node: whether it is in int8}, of the least sum; int8 where both are even."""
    nodes = list(dict.fromkeys([*costs.int8, *costs.in_float]))
    index = {node: i for i, node in enumerate(nodes)}
    source, sink = len(nodes), len(nodes) + 1
    capacity: dict[tuple[int, int], float] = defaultdict(float)
    for node, i in index.items():
        capacity[source, i] += costs.in_float[node]  # cut where the node is on the sink's side: in float
        capacity[i, sink] += costs.int8[node]
    for (maker, reader), (dequantize, quantize) in costs.edges.items():
        capacity[index[maker], index[reader]] += dequantize
        capacity[index[reader], index[maker]] += quantize
    # No flow is larger than the time in float, nor than the time in int8.
    most = max(1e-9, min(sum(costs.in_float.values()), sum(costs.int8.values())))
    unit = most / _LARGEST
    pairs = np.array(list(capacity), int).reshape(-1, 2)
    whole = np.minimum(np.array(list(capacity.values())) / unit, 2 * _LARGEST).astype(np.int32)
    network = csr_array((whole, (pairs[:, 0], pairs[:, 1])), shape=(len(nodes) + 2,) * 2)
    rest = network - maximum_flow(network, source, sink).flow
    # What can still reach the sink is in float; all else is as cheap in int8.
    rest.data = (rest.data > 0).astype(np.int32)
    rest.eliminate_zeros()
    in_float = set(breadth_first_order(csr_array(rest.T), sink, return_predecessors=False).tolist())
    return {node: i not in in_float for node, i in index.items()}
