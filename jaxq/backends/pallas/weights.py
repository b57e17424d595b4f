"""Convolutions' weights as the kernels read them: output channels first, transposed when a model is made or loaded.

In a call that would be one more kernel for each convolution: some 150 us of the 2 or 3 ms of a ResNet-50 at batch 32.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxq.backends.cpu.packing import PackedWeight
from jaxq.graph.node import Graph, Node


@dataclass(frozen=True)
class OutputFirst:
    """(O, spatial..., C / groups); `shape` is that of the weight as the graph has it, (spatial..., C / groups, O)."""

    shape: tuple[int, ...]

    def unpack(self, data: Any) -> Any:
        """The weight as the graph has it. (Of a kernel's `moveaxis` back nothing is left: XLA cancels the two.)"""
        return (np if isinstance(data, np.ndarray) else jnp).moveaxis(data, 0, -1)


def pack(graph: Graph, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with the weights transposed that nothing but convolutions reads."""
    reads: dict[str, set[bool]] = {node.name: {False} for node in graph.outputs}
    for name, is_weight in _reads(graph, {}):
        reads.setdefault(name, set()).add(is_weight)
    packed: dict[str, Any] = dict(params)
    for name, kinds in reads.items():
        if kinds == {True}:
            weight = jnp.asarray(params[name])
            packed[name] = PackedWeight(jnp.moveaxis(weight, -1, 0), OutputFirst(weight.shape))
    return packed


def _reads(graph: Graph, names: Mapping[Node, str]) -> Iterator[tuple[str, bool]]:
    """Every reading of a parameter: its name, and whether it is a convolution's weight. `names` are those of the inputs
    that stand for parameters."""
    for node in graph.nodes:
        sources = [source.name if source.op == "param" else names.get(source) for source in node.inputs]
        if node.op == "region":
            body = node.attrs["body"]
            inside = {stand_in: name for stand_in, name in zip(body.inputs, sources, strict=True) if name is not None}
            yield from _reads(body, inside)
            continue
        for body in node.bodies:
            yield from _reads(body, {})
        for index, name in enumerate(sources):
            if name is not None:
                yield name, node.op == "conv" and node.roles[index] == "weight"
