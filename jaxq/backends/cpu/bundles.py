"""What a region reads of small parameters, as one array.

Every array of a call takes XLA a third of a microsecond, and a layer has four vectors beside its weight: at batch 1
those of a small network cost as much as some of its layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from jaxq.backends.cpu.program import packed_weights
from jaxq.backends.cpu.regions import Unbound
from jaxq.graph.node import Aval, Graph, Names, Node

# Parameters of so many bytes at most are bundled, and so are copied.
_SMALL = 1 << 14
# Each begins at a multiple of so many bytes, a line of the cache.
_LINE = 64


@dataclass(frozen=True, eq=False)
class Bundles:
    """A gathered graph whose regions read bundles.

    Attributes:
      graph: computes what the gathered graph does.
      members: {a bundle's name: the names of the parameters in it}, each filled up with zeros to whole lines.
    """

    graph: Graph
    members: Mapping[str, tuple[str, ...]]

    def params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of `graph`, from those of the gathered graph; bundles are NumPy arrays."""
        found = {name: params[name] for name in self.graph.params if name not in self.members}
        return found | {name: _joined([params[member] for member in names]) for name, names in self.members.items()}


def bundle(graph: Graph) -> Bundles:
    """The gathered graph with a bundle for each region and dtype that it has two small parameters of or more."""
    members: dict[str, tuple[str, ...]] = {}
    names = Names()
    for node in graph.all_nodes:
        names.unique(node.name)

    def change(node: Node) -> Node:
        return _bundled(node, members, names) if node.op == "region" else node

    return Bundles(graph.map(change), members)


def _bundled(region: Node, members: dict[str, tuple[str, ...]], names: Names) -> Node:
    body = region.attrs["body"]
    inputs, sources = list(body.inputs), list(region.inputs)
    moved: dict[Node, Node] = {}
    for dtype, indices in _small(region).items():
        parts = [body.inputs[i] for i in indices]
        name = names.unique(f"{region.name}/{dtype.name}")
        members[name] = tuple(region.inputs[i].name for i in indices)
        whole = Node("input", (), {}, Aval((sum(_padded(part.aval) for part in parts),), dtype), name)
        start = 0
        for part in parts:
            moved[part] = _part(whole, start, part)
            start += _padded(part.aval)
        inputs.append(whole)
        sources.append(Node("param", (), {"value": None}, whole.aval, name))
    if not moved:
        return region
    kept = [i for i, node in enumerate(inputs) if node not in moved]
    for node in body.nodes:
        if node not in moved:
            new = tuple(moved.get(source, source) for source in node.inputs)
            moved[node] = node if new == node.inputs else node.replace(inputs=new)
    graph = Graph(tuple(inputs[i] for i in kept), tuple(moved[node] for node in body.outputs))
    attrs = {"body": graph, "unbound": Unbound(graph)}
    return region.replace(inputs=tuple(sources[i] for i in kept), attrs=attrs)


def _small(region: Node) -> dict[np.dtype, list[int]]:
    """The indices of the region's inputs that a bundle takes, by dtype."""
    packed = packed_weights(region.attrs["body"])
    found: dict[np.dtype, list[int]] = {}
    for i, source in enumerate(region.inputs):
        if source.op == "param" and i not in packed and prod(source.aval.shape) * source.aval.dtype.itemsize <= _SMALL:
            found.setdefault(source.aval.dtype, []).append(i)
    return {dtype: indices for dtype, indices in found.items() if len(indices) > 1}


def _part(whole: Node, start: int, of: Node) -> Node:
    """That of a bundle which stands for a region's input."""
    stop, shape, dtype = start + prod(of.aval.shape), of.aval.shape, of.aval.dtype
    attrs = {"start_indices": (start,), "limit_indices": (stop,), "strides": None}
    part = Node("slice", (whole,), attrs, Aval((stop - start,), dtype), f"{of.name}/slice", qtype=of.qtype)
    if len(shape) == 1:
        return part
    return Node("reshape", (part,), {"new_sizes": shape}, of.aval, f"{of.name}/reshape", qtype=of.qtype)


def _padded(aval: Aval) -> int:
    line = _LINE // aval.dtype.itemsize
    return -(-prod(aval.shape) // line) * line


def _joined(arrays: Sequence[Any]) -> np.ndarray:
    flat = [np.asarray(array).reshape(-1) for array in arrays]
    return np.concatenate([np.pad(x, (0, _padded(Aval(x.shape, x.dtype)) - x.size)) for x in flat])
