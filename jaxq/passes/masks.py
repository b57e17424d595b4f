"""The nodes that are in int8 as data: one float function with a mask, in place of a graph for every choice of nodes.

A node whose place in the mask is true reads its values rounded to their scales, as it does in int8, and its weights
rounded (a weight-only dot its weights alone); it computes in float. So the mask of one node gives the error that this
node makes alone, as if all others were in float, and the mask of all the error of the int8 network.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq import numerics
from jaxq.config import QuantConfig
from jaxq.graph.evaluate import evaluate, reference
from jaxq.graph.node import LAYOUT, WEIGHTED, Graph, Node
from jaxq.passes.lower import grouped_weight, quantized_weight
from jaxq.passes.place import Placement, data_inputs


class Masked:
    """A placed float graph as a function of its parameters, its inputs and a mask.

    Attributes:
      nodes: what the mask is over, in program order: the int8 and weight-only nodes, of bodies too, but those that only
        move values.
      weights: {node name: (int8 weight, its scale, which broadcasts to it)}, an argument of the function.
    """

    def __init__(
        self, graph: Graph, placement: Placement, thresholds: Mapping[str, float], config: QuantConfig
    ) -> None:
        """
        Args:
          graph, placement: the simplified float graph, placed.
          thresholds: for every scale group's name the largest magnitude that its scale covers.
          config: how weights are quantized.
        """
        self.graph = graph
        self.nodes = tuple(node for node in graph.all_nodes if node in placement.quantized and node.op not in LAYOUT)
        self.weights = {
            node.name: (_grouped if node in placement.weight_only else _weight)(node, config)
            for node in self.nodes
            if node.op in WEIGHTED
        }
        self._place = {node.name: i for i, node in enumerate(self.nodes)}
        self._scales = {node.name: _scales(node, placement, thresholds) for node in self.nodes}

    def __call__(
        self, params: Mapping[str, Any], weights: Mapping[str, Any], leaves: Sequence[Any], mask: jax.Array, batch: int
    ) -> list[jax.Array]:
        """The graph's outputs.

        Args:
          params: those of the graph.
          weights: the attribute.
          leaves: an array for each of the graph's inputs, of `batch` examples.
          mask: bool (number of nodes,).
        """

        def lower(node: Node) -> Callable[..., Any]:
            run = reference(node)
            if node.name not in self._place:
                return run
            on, scales = mask[self._place[node.name]], self._scales[node.name]

            def masked(*operands: Any) -> Any:
                given = list(operands)
                for i, (scale, dtype) in scales.items():
                    given[i] = jnp.where(on, _rounded(given[i], scale, dtype), given[i])
                if node.name in weights:
                    i, (quantized, scale) = node.roles.index("weight"), weights[node.name]
                    given[i] = jnp.where(on, numerics.dequantize(quantized, scale, dtype=given[i].dtype), given[i])
                return run(*given)

            return masked

        return evaluate(self.graph.bind(batch), params, leaves, lower)


def _weight(node: Node, config: QuantConfig) -> tuple[np.ndarray, np.ndarray]:
    weight, scale = quantized_weight(node, config)
    return weight, scale.astype(np.float32).reshape((-1,) if node.op == "conv" else (-1, 1))


def _grouped(node: Node, config: QuantConfig) -> tuple[np.ndarray, np.ndarray]:
    levels, scale = grouped_weight(node, config)
    return levels, np.repeat(scale, config.for_weights(node.name).group_size, axis=1)[:, : levels.shape[1]]


def _scales(node: Node, placement: Placement, thresholds: Mapping[str, float]) -> dict[int, tuple[np.float32, str]]:
    """{index of an operand that the node reads as integers: their scale and dtype}."""
    if node in placement.weight_only:
        return {}
    groups = {i: placement.groups.get(source) for i, source in enumerate(node.inputs) if source in data_inputs(node)}
    return {
        i: (np.float32(thresholds[group.name] / numerics.largest_level(group.dtype)), group.dtype)
        for i, group in groups.items()
        if group is not None and not group.exact
    }


def _rounded(x: jax.Array, scale: Any, dtype: str) -> jax.Array:
    return numerics.dequantize(numerics.quantize(x, np.float32(1) / scale, dtype=dtype), scale, dtype=x.dtype)
