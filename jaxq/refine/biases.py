"""Biases that take the mean error away (bias correction, arXiv 1906.04721, section 4.2).

Rounded weights W + E of values x + e make sums whose mean is off by E[(W + E)(x + e)] - E[W x], a constant by channel,
which the bias gives back. Both means are those of the examples.
"""

from jaxq.refine.readers import Reader, qtype_read, weighted
from jaxq.refine.state import Samples, State


def refine(state: State, samples: Samples) -> State:
    """The state with corrected biases."""
    values = samples.values(state.graph)
    biases = dict(state.choices.biases)
    for node in weighted(state, values):
        biases[node.name] = -Reader(state, node, values).shift(qtype_read(state, node), state.weight(node))
    return state.choose(biases=biases)
