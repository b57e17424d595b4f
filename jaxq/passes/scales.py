"""Thresholds for every scale group: by one method, or each by the method that disturbs its consumers least."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq import numerics
from jaxq.calibration.histogram import Histogram, merge
from jaxq.calibration.observe import leading_size
from jaxq.calibration.thresholds import threshold
from jaxq.config import QuantConfig
from jaxq.graph.evaluate import evaluate, reference
from jaxq.graph.node import WEIGHTED, Graph, Node
from jaxq.passes.place import Placement, ScaleGroup

# Keeps a scale and its reciprocal within float32.
SMALLEST_THRESHOLD = 1e-30

# In the order of preference where two do equally well.
CANDIDATES = ("mse", "entropy", "percentile", "amax")


def select(
    graph: Graph,
    placement: Placement,
    histograms: Mapping[str, Histogram],
    samples: Sequence[np.ndarray],
    config: QuantConfig,
) -> dict[str, tuple[str, float]]:
    """(method, threshold) for every scale group, by its name."""

    def of(group: ScaleGroup, method: str) -> float:
        joined = reduce(merge, [histograms[source.name] for source in group.sources])
        found = threshold(joined, method, unsigned=group.dtype == "uint8", percentile=config.percentile)
        return max(found, SMALLEST_THRESHOLD)

    groups = placement.scale_groups
    methods = {group.name: method_of(group, config) for group in groups}
    chosen = {g.name: (methods[g.name], of(g, methods[g.name])) for g in groups if methods[g.name] != "auto"}
    open_groups = [group for group in groups if methods[group.name] == "auto"]
    if not open_groups:
        return chosen
    candidates = {method: [of(group, method) for group in open_groups] for method in CANDIDATES}
    measure = _error_function(graph, placement, open_groups, samples)
    errors = np.stack([measure(thresholds) for thresholds in candidates.values()])
    for i, group in enumerate(open_groups):
        best = CANDIDATES[int(np.argmin(errors[:, i]))]
        chosen[group.name] = (best, candidates[best][i])
    return chosen


def method_of(group: ScaleGroup, config: QuantConfig) -> str:
    """The method of the first source, in program order, for which a rule names one; else the config's."""
    named = (config.named_method(source.name) for source in group.sources)
    return next((method for method in named if method is not None), config.method)


def _error_function(
    graph: Graph, placement: Placement, groups: Sequence[ScaleGroup], samples: Sequence[np.ndarray]
) -> Callable[[Sequence[float]], np.ndarray]:
    """A function of one threshold a group to one error a group, compiled once.

    The error of a group is that of the convs and dots that read it, each run on the samples with this input alone
    quantized: the squared error of its output over its squared output. A group that none reads has its own error.
    """
    index = {group: i for i, group in enumerate(groups)}
    group_of = {node.name: placement.groups[node] for node in placement.groups}
    anchored = {group_of[node.operand("x").name] for node in placement.int8 if node.op in WEIGHTED}
    bound = graph.bind(leading_size(graph, samples))

    def measure(params: Any, leaves: Any, thresholds: jax.Array) -> jax.Array:
        errors = [jnp.float32(0)] * len(groups)
        values: dict[Node, Any] = {}

        def fake(name: str, value: jax.Array) -> jax.Array:
            group = group_of[name]
            scale = thresholds[index[group]] / numerics.largest_level(group.dtype)
            q = numerics.quantize(value, 1 / scale, dtype=group.dtype)
            return numerics.dequantize(q, scale, dtype=np.dtype(np.float32))

        def add(group: ScaleGroup, exact: jax.Array, approximate: jax.Array) -> None:
            exact = exact.astype(jnp.float32)
            error = jnp.sum(jnp.square(approximate.astype(jnp.float32) - exact))
            errors[index[group]] += error / jnp.maximum(jnp.sum(jnp.square(exact)), jnp.float32(1e-30))

        def tap(node: Node, value: Any) -> None:
            values[node] = value
            group = group_of.get(node.name)
            if group in index and group not in anchored:
                add(group, value, fake(node.name, value))
            if node.op not in WEIGHTED:
                return
            source = node.operand("x")
            group = group_of.get(source.name)
            if group in index:
                operands = [fake(source.name, values[n]) if n is source else values[n] for n in node.inputs]
                add(group, value, reference(node)(*operands))

        values.update(zip(bound.inputs, leaves, strict=True))
        values.update({node: params[node.name] for node in bound.nodes if node.op == "param"})
        evaluate(bound, params, leaves, tap=tap)
        return jnp.stack(errors)

    compiled = jax.jit(measure)
    params = graph.params
    return lambda thresholds: np.asarray(compiled(params, list(samples), np.asarray(thresholds, np.float32)))
