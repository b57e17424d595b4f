"""Values below which there is nothing to tell apart: what gelu, silu and hard-swish read, and nothing else does.

gelu(x) is as good as 0 for any x below -3. An int8 table of it may take all of these for -3, and the levels that a
symmetric scale spends on them tell apart what is above.
"""

from collections.abc import Mapping
from math import floor

import numpy as np

from jaxq.graph.node import WEIGHTED, Graph, Node
from jaxq.passes.elementwise import GRID, WORDS, on_grid

# f is flat where it is within this part of its least value's magnitude of its value at the grid's lower end: of
# gelu's -0.17 a 1/64 is 0.0027, half a step of an output up to 1.4.
_FLAT = 1 / 64

# Floors are multiples of 1/16, which bfloat16 holds too.
_STEPS = 16


def floors(graph: Graph) -> Mapping[Node, float]:
    """{conv or dot, of bodies too, that only functions read which are flat below: the least value that differs from
    lower ones to any of them, a negative number}."""
    found = {}
    for part in (graph, *(body for node in graph.all_nodes for body in node.bodies)):
        outputs = set(part.outputs)
        for node in part.nodes:
            users = part.users.get(node, ())
            are_functions = bool(users) and all(user.op == "elementwise" for user in users)
            if node.op not in WEIGHTED or node in outputs or not are_functions:
                continue
            least = min(map(flat_below, users))
            if -np.inf < least < 0:
                found[node] = least
    return found


def flat_below(function: Node) -> float:
    """The largest x on the grid up to which a function with a name is flat; -inf where it is not skewed, or flat
    above."""
    least = function.attrs["least"]
    if not np.isfinite(least) or function.attrs["word"] not in WORDS:
        return -np.inf
    y = on_grid(function.attrs["body"]).astype(np.float64)
    differs = np.abs(y - y[0]) > _FLAT * -least
    last = float(GRID[max(int(np.argmax(differs)) - 1, 0)])
    return floor(last * _STEPS) / _STEPS if y[0] < y[-1] else -np.inf
