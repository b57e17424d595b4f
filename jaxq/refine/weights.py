"""Weights clipped where that is better: those of each convolution and dot whose results err less so on the examples.

They are clipped to the fraction of their largest that makes their own squared error least (`numerics.quantize_weight`).
"""

from jaxq.passes.lower import grouped_weight, quantized_weight
from jaxq.refine.readers import Reader, qtype_read, weighted
from jaxq.refine.state import Samples, State


def refine(state: State, samples: Samples) -> State:
    """The state with weights clipped where that is better."""
    values = samples.values(state.graph)
    weights = dict(state.choices.weights)
    for node in weighted(state):
        qtype = qtype_read(state, node)
        if node in state.placement.weight_only:
            clipped = grouped_weight(node, state.config, "mse")
        else:
            clipped = quantized_weight(node, state.config, 1.0 if qtype is None else qtype.scale, "mse")
        tried = state.choose(weights={node.name: clipped})
        reader = Reader(state, node, values)
        if reader.error(qtype, tried.weight(node)) < reader.error(qtype, state.weight(node)):
            weights[node.name] = clipped
    return state.choose(weights=weights)
