"""Biases that take the mean error away (bias correction, arXiv 1906.04721, section 4.2).

Rounded weights W + E of values x + e make sums whose mean is off by E[(W + E)(x + e)] - E[W x], a constant by channel,
which the bias gives back. Both means are those of the examples.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.calibration.step import leading_size
from jaxq.graph.evaluate import evaluate
from jaxq.graph.node import Node
from jaxq.passes.simulate import float_function
from jaxq.refine.readers import arrays_of, linear, qtype_read, rounding, weighted
from jaxq.refine.state import Samples, State


def refine(state: State, samples: Samples) -> State:
    """The state with corrected biases."""
    nodes = weighted(state)
    reads = {node.name: arrays_of(qtype_read(state, node)) for node in nodes}
    weights = {node.name: state.weight(node) for node in nodes}
    run = state.compiled.setdefault("shifts", jax.jit(_shifts(state, nodes)))
    totals, count = {node.name: np.zeros(node.aval.shape[-1]) for node in nodes}, 0
    params = jax.device_put(state.graph.params)
    for part in samples.parts(state.graph):
        size = leading_size(state.graph, part)
        for name, shift in run(params, reads, weights, part).items():
            totals[name] += size * np.asarray(shift, np.float64)
        count += size
    return state.choose(biases={**state.choices.biases, **{name: -total / count for name, total in totals.items()}})


def _shifts(state: State, nodes: list[Node]) -> Callable[..., dict[str, jax.Array]]:
    """The function of (parameters, what the nodes read, their rounded weights, leaves) to the mean by channel, float32
    (C,), of how much larger each one's sums are than in float."""
    graph = state.graph
    functions = {node.name: (linear(node), rounding(state, node)) for node in nodes}

    def run(params: Any, reads: Any, weights: Any, leaves: Any) -> dict[str, jax.Array]:
        bound = graph.bind(leading_size(graph, leaves))
        values: dict[Node, Any] = dict(zip(bound.inputs, leaves, strict=True))
        found = {}

        def value_of(source: Node) -> Any:
            return params[source.name] if source.op == "param" else values[source]

        def keep(node: Node, value: Any) -> None:
            values[node] = value
            if node.name not in functions:
                return
            sums, rounded = functions[node.name]
            exact = {role: value_of(node.operand(role)) for role in ("x", "weight")}
            given = rounded(exact, reads[node.name], weights[node.name])
            difference = sums(given["x"], given["weight"]) - sums(exact["x"], exact["weight"])
            found[node.name] = jnp.mean(difference.astype(jnp.float32), axis=tuple(range(difference.ndim - 1)))

        evaluate(bound, params, leaves, float_function, keep)
        return found

    return run
