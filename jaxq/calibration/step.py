"""The forward pass of one calibration batch, with the observers inside it: on one device, or split over a mesh."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxq.calibration import histogram
from jaxq.calibration.bodies import observed
from jaxq.calibration.histogram import Histogram
from jaxq.calibration.kernels import Kernels
from jaxq.errors import CalibrationError, UnsupportedError
from jaxq.graph.node import Graph


@dataclass(frozen=True)
class Observed:
    """`histograms` of the observed values, stacked, as numpy arrays, and not yet voided where they hold NaN or Inf;
    `bad_outputs`: for every result of the function, whether it holds NaN or +Inf (-Inf is how masks are written)."""

    histograms: Histogram
    bad_outputs: tuple[bool, ...]


class Steps:
    """A batch to what was observed in it: the values named, lower ones than their floor as if they were it.

    With a mesh each batch is split over all of its devices that this process has, whatever the mesh's axes: the
    leading axis is cut into equal parts, the parameters are on every device, and the histograms are summed by `psum`.
    Examples that are left over after equal parts run on the first device.
    """

    def __init__(self, graph: Graph, floors: Mapping[str, float], kernels: Kernels, mesh: Mesh | None) -> None:
        self.graph = graph
        self.params = jax.device_put(graph.params)
        self.on_one = jax.jit(lambda params, leaves: _observe(graph, floors, kernels, params, leaves))
        self.mesh = None if mesh is None else _local(mesh)
        if self.mesh is not None:
            if not any(node.aval.leads_batch for node in graph.inputs):
                raise UnsupportedError("mesh: the function has a fixed batch, which cannot be split over devices")
            self.spread_params = jax.device_put(graph.params, NamedSharding(self.mesh, PartitionSpec()))
            self.on_mesh = _on_mesh(graph, floors, kernels, self.mesh)

    def __call__(self, leaves: Sequence[np.ndarray]) -> list[Observed]:
        """What was observed, in one part, or in two where the batch does not split evenly."""
        if self.mesh is None:
            return [_on_host(*self.on_one(self.params, leaves))]
        size = leading_size(self.graph, leaves)
        even = size - size % self.mesh.size
        parts = []
        if even:
            shards = [NamedSharding(self.mesh, spec) for spec in _specs(self.graph)]
            spread = jax.device_put(rows(self.graph, leaves, slice(even)), shards)
            parts.append(_on_host(*self.on_mesh(self.spread_params, spread)))
        if even < size:
            parts.append(_on_host(*self.on_one(self.params, rows(self.graph, leaves, slice(even, None)))))
        return parts


def _observe(
    graph: Graph, floors: Mapping[str, float], kernels: Kernels, params: Mapping[str, Any], leaves: Sequence[Any]
) -> tuple[list[Histogram], list[jax.Array]]:
    """The histograms in the order of the floors, and for every output whether it holds NaN or +Inf."""
    outputs, seen = observed(graph.bind(leading_size(graph, leaves)), floors, params, leaves, kernels)
    return [seen[name] for name in floors], [_is_bad(y) for y in outputs]


def _is_bad(output: jax.Array) -> jax.Array:
    if not jnp.issubdtype(output.dtype, jnp.floating):
        return jnp.asarray(False)
    return jnp.any(jnp.isnan(output) | jnp.isposinf(output))


def _on_host(histograms: Sequence[Histogram], bad_outputs: Sequence[jax.Array]) -> Observed:
    """Stacked here, because to stack them under `jit` costs as much to compile as to count them."""
    return Observed(histogram.stacked(histograms), tuple(bool(is_bad) for is_bad in bad_outputs))


_AXIS = "devices"


def _local(mesh: Mesh) -> Mesh:
    """The mesh's devices of this process, in one axis."""
    if not isinstance(mesh, Mesh):
        raise UnsupportedError(f"mesh: takes a jax.sharding.Mesh, not a {type(mesh).__name__}")
    devices = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    if not devices:
        raise UnsupportedError(f"mesh: process {jax.process_index()} has none of its devices")
    return Mesh(np.array(devices), (_AXIS,))


def _specs(graph: Graph) -> list[PartitionSpec]:
    return [PartitionSpec(_AXIS) if node.aval.leads_batch else PartitionSpec() for node in graph.inputs]


def _on_mesh(graph: Graph, floors: Mapping[str, float], kernels: Kernels, mesh: Mesh) -> Any:
    def shard(params: Mapping[str, Any], leaves: Sequence[jax.Array]) -> tuple[list[Histogram], list[jax.Array]]:
        seen, bad_outputs = _observe(graph, floors, kernels, params, leaves)
        total = [histogram.psum(part, _AXIS) for part in seen]
        return total, [lax.pmax(is_bad.astype(jnp.int32), _AXIS) for is_bad in bad_outputs]

    specs = (PartitionSpec(), _specs(graph))
    return jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False))


def leading_size(graph: Graph, leaves: Sequence[Any]) -> int:
    """The batch size of argument leaves; 0 where no argument has a batch axis that may vary."""
    sizes = [leaf.shape[0] for node, leaf in zip(graph.inputs, leaves, strict=True) if node.aval.leads_batch]
    return int(sizes[0]) if sizes else 0


def rows(graph: Graph, leaves: Sequence[np.ndarray], some: slice) -> list[np.ndarray]:
    """Some examples of a batch."""
    return [leaf[some] if node.aval.leads_batch else leaf for node, leaf in zip(graph.inputs, leaves, strict=True)]


def batch_size(graph: Graph, leaves: Sequence[Any], index: int) -> int:
    """The number of examples in the batch, whose leaves must fit the graph; a fixed batch is one example.

    Raises:
      CalibrationError: a leaf has another shape than the graph takes.
    """
    batch = leading_size(graph, leaves)
    for node, leaf in zip(graph.bind(batch).inputs, leaves, strict=True):
        if tuple(leaf.shape) != node.aval.shape:
            raise CalibrationError(
                f"batch {index}, {node.name}: has shape {tuple(leaf.shape)} where the others make it {node.aval.shape}"
            )
    return batch if any(node.aval.leads_batch for node in graph.inputs) else 1
