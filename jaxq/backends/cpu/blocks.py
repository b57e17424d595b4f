"""How a region's batch is cut into blocks of examples.

Each block runs through all operations of the region, on one thread, before the next one: what lies between two
operations stays in the caches, and threads wait for one another once a call, not at every operation.
"""

from jaxq.graph.examples import keeps_apart
from jaxq.graph.node import Graph

# The values inside a block, in bytes: a core's part of the caches.
_ROOM = 6 << 20


def batch_of(unbound: Graph, body: Graph) -> int:
    """The batch size at which `body` is `unbound` bound, where each example is computed by itself; 1 elsewhere, and
    where to read weights takes the time, which all examples share."""
    if any(node.op == "weight_only_dot" for node in body.nodes):
        return 1
    if not all(node.aval.follows_batch for node in unbound.outputs) or not all(map(keeps_apart, unbound.nodes)):
        return 1
    pairs = zip(unbound.inputs, body.inputs, strict=True)
    return next((bound.aval.shape[0] for node, bound in pairs if node.aval.leads_batch), 1)


def block_size(batch: int, bytes_of_one: int, threads: int) -> int:
    """Examples in a block: as many as there is room for, in blocks that all threads take equally many of, or so many of
    that it does not matter. The whole batch where it has no such blocks."""
    sizes = [n for n in range(1, batch + 1) if batch % n == 0]
    fair = [n for n in sizes if (batch // n) % threads == 0 or batch // n >= 4 * threads]
    fitting = [n for n in fair if n * bytes_of_one <= _ROOM]
    return max(fitting, default=min(fair, default=batch))
