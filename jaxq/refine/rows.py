"""A scale for each channel of the rows that dots read by row: what x is divided by before each row is given its own.

A row's scale follows its largest value. Where that always stands in the same few channels, as in the residual stream of
a transformer, the others have few levels, in every row. As with the scales by channel of other values, candidates are

    amax|x_k|^a / amax|w_k|^(1 - a)     SmoothQuant (arXiv 2211.10438)

and the one is taken with which the readers' results err least on the examples, if less than without.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxq.graph.node import Node
from jaxq.refine.readers import Reader, Values, at_least
from jaxq.refine.state import State

# The power of the activations' maxima; the rest is the weights'.
_POWERS = (0.4, 0.5, 0.6, 0.75)


def refine(state: State, values: Values) -> State:
    """The state with a scale by channel for each value that dots read by row, where these err less by it."""
    rows = dict(state.choices.rows)
    for x, readers in _read(state, values):
        found = _best(state, x, readers, values)
        if found is not None:
            rows[x.name] = found
    changed = {node.name for node in state.placement.by_row}
    weights = {name: weight for name, weight in state.choices.weights.items() if name not in changed}
    return state.choose(rows=rows, weights=weights)


def _read(state: State, values: Values) -> Iterator[tuple[Node, list[Node]]]:
    """Each value that dots read by row, and these; not those of bodies, whose values are not known."""
    readers: dict[Node, list[Node]] = {}
    for node in state.graph.nodes:
        if node in state.placement.by_row:
            readers.setdefault(node.operand("x"), []).append(node)
    for x, nodes in readers.items():
        if x.name in values and np.all(np.isfinite(values[x.name])):
            yield x, nodes


def _best(state: State, x: Node, nodes: Sequence[Node], values: Values) -> np.ndarray | None:
    readers = [Reader(state, node, values) for node in nodes]

    def error(channels: np.ndarray) -> float:
        tried = state.choose(rows={**state.choices.rows, x.name: channels}, weights={})
        return sum(reader.error(channels, tried.weight(reader.node)) for reader in readers)

    amax = at_least(np.abs(values[x.name]).reshape(-1, x.aval.shape[-1]).max(axis=0))
    of_readers = at_least(np.max([np.abs(node.operand("weight").value).max(axis=0) for node in nodes], axis=0))
    best, least = None, error(np.ones_like(amax))
    for power in _POWERS:
        channels = amax**power / of_readers ** (1 - power)
        channels /= channels.max()
        if (found := error(channels)) < least:
            best, least = channels, found
    return best
