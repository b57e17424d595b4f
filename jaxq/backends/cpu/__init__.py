"""The backend for CPUs with int8 dot instructions: C++ kernels in an optional shared library, called through `jax.ffi`.

regions.py             which nodes become one call
takes.py, edges.py     of what kernels take always, and beside others
program.py, fused.py   what the call does, and which nodes one operation does
epilogues.py           how it ends
row_sums.py            sums of rows of floats in it
values.py, views.py    where its values lie
packing.py             weights in the kernels' form
bundles.py             small parameters as one array
functions.py           functions of floats that there are kernels for
call.py                the call as a JAX function
calibration.py         what calibration computes with
library.py, src/       the library
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxq.backends.cpu import calibration, library
from jaxq.backends.cpu.call import lower
from jaxq.backends.cpu.library import available, isa, isas, peak, tell_if_missing
from jaxq.backends.cpu.packing import PackedWeight
from jaxq.backends.cpu.program import packed_weights
from jaxq.backends.cpu.regions import gather
from jaxq.backends.cpu.takes import why_not
from jaxq.graph.node import Graph, Node

__all__ = [
    "available",
    "calibration",
    "gather",
    "is_bound",
    "isa",
    "isas",
    "lower",
    "pack",
    "peak",
    "tell_if_missing",
    "why_not",
]

# Its targets are known to XLA before anything is traced; this costs one dlopen and starts no backend of JAX.
library.load()


def is_bound(region: Node) -> bool:
    """Whether all its sizes are numbers."""
    return all(isinstance(dim, int) for node in region.attrs["body"].all_nodes for dim in node.aval.shape)


def pack(graph: Graph, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a gathered graph with the weights packed that its regions read."""
    packed: dict[str, Any] = dict(params)
    for region in graph.nodes:
        if region.op != "region":
            continue
        for index, form in packed_weights(region.attrs["body"]).items():
            name = region.inputs[index].name
            if not isinstance(packed[name], PackedWeight):
                weight = form.pack(packed[name])
                packed[name] = PackedWeight(jnp.asarray(weight.data), form)
    return packed
