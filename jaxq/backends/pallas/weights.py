"""Weights as the kernels read them, made once, when a model is made or loaded: output channels first, the depth padded
to whole asynchronous copies, and the offset that a uint8 input needs (`pallas_kernels.shift`). Those of depthwise
convolutions and narrow groups are read as the graph has them: the CUDA cores need no offset, and the channels last.

In a call each would be one more small kernel for each weight: to transpose those of a ResNet-50 takes some 150 us of
the 2 or 3 ms at batch 32.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxq.backends.cpu.packing import PackedWeight
from jaxq.backends.tactics import XLA, of
from jaxq.graph.node import Graph, Node
from pallas_kernels import shift
from pallas_kernels.conv import has_narrow_groups

_COPIES = 4, 16  # bytes of the smallest asynchronous copy, and of the largest


@dataclass(frozen=True)
class KernelForm:
    """How the kernels' weight lies: (weight, offset or None), the weight (O, ..., depth) with zeros up to a whole copy.

    Attributes:
      shape: of the weight as the graph has it: (O, K) of a dot, (spatial..., C / groups, O) of a conv.
      is_conv: which of the two.
    """

    dtype = np.dtype(np.int8)
    shape: tuple[int, ...]
    is_conv: bool

    def unpack(self, data: Any) -> Any:
        """The weight as the graph has it."""
        weight = data[0][..., : self.shape[-2 if self.is_conv else -1]]
        return (np if isinstance(weight, np.ndarray) else jnp).moveaxis(weight, 0, -1) if self.is_conv else weight


def for_kernel(weight: Any, *, is_conv: bool) -> tuple[Any, Any]:
    """The weight (O, ..., depth), maybe deeper than the graph's, and its offset or None."""
    if isinstance(weight, PackedWeight):
        if isinstance(weight.form, KernelForm):
            w, offset = weight.data
            return w, offset
        weight = weight.unpack()
    return (jnp.moveaxis(weight, -1, 0) if is_conv else weight), None


def deepened(x: Any, depth: int) -> Any:
    """x with zeros behind its last axis, up to that depth."""
    missing = depth - x.shape[-1]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0)] * (x.ndim - 1) + [(0, missing, 0)]) if missing else x


def pack(graph: Graph, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with those int8 weights in the kernels' form that nothing but convolutions, or but dots, reads."""
    readers: dict[str, list[Node | None]] = {node.name: [None] for node in graph.outputs}
    for name, reader in _readers(graph, {}):
        readers.setdefault(name, []).append(reader)
    packed: dict[str, Any] = dict(params)
    for name, nodes in readers.items():
        of_weight = [node for node in nodes if node is not None]
        if len(of_weight) == len(nodes) and len({node.op for node in of_weight}) == 1:
            packed[name] = _packed(jnp.asarray(params[name]), of_weight)
    return packed


def _packed(weight: jax.Array, nodes: list[Node]) -> Any:
    is_conv = nodes[0].op == "conv"
    if is_conv and all(has_narrow_groups(node.attrs.get("groups", 1), weight.shape[-2]) for node in nodes):
        return weight
    w = jnp.moveaxis(weight, -1, 0) if is_conv else weight
    copy = _COPIES[prod(w.shape[1:-1]) == 1]
    if all(node.attrs.get("groups", 1) == 1 for node in nodes):
        w = deepened(w, w.shape[-1] + -w.shape[-1] % copy)
    reads_uint8 = any(node.operand("x").aval.dtype == np.uint8 for node in nodes)
    if not is_conv and w.shape == weight.shape and not reads_uint8:
        return weight
    offset = shift.offset(w, range(1, w.ndim)) if reads_uint8 else None
    return PackedWeight((w, offset), KernelForm(weight.shape, is_conv))


def _readers(graph: Graph, names: Mapping[Node, str]) -> Iterator[tuple[str, Node | None]]:
    """Every reading of a parameter: its name, and the int8 conv or dot whose weight it is, or None. `names` are those
    of the inputs that stand for parameters."""
    for node in graph.nodes:
        sources = [source.name if source.op == "param" else names.get(source) for source in node.inputs]
        if node.op == "region":
            body = node.attrs["body"]
            inside = {stand_in: name for stand_in, name in zip(body.inputs, sources, strict=True) if name is not None}
            yield from _readers(body, inside)
            continue
        for body in node.bodies:
            yield from _readers(body, {})
        for index, name in enumerate(sources):
            if name is not None:
                is_weight = (
                    node.op in ("conv", "dot")
                    and node.roles[index] == "weight"
                    and node.inputs[index].aval.dtype == np.int8
                    and of(node) != XLA
                )
                yield name, node if is_weight else None
