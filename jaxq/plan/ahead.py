"""A plan compiled before its first call: for some batch sizes in this process, or as an export for other ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export as jax_export
from jax.sharding import SingleDeviceSharding

from jaxq import backends
from jaxq.errors import PlanError, UnsupportedError
from jaxq.graph.examples import mixing
from jaxq.graph.node import bind
from jaxq.plan.plan import Plan


class CompiledModel:
    """A quantized model compiled for some batch sizes, in the manner of TensorRT's optimisation profiles: no call
    compiles anything, whatever the size of its batch.

    A batch runs at the least of the sizes that holds it, filled up with zeros; one larger than all of them in parts.
    What is filled up or cut goes through the host, and so do its results. Where examples may hang on one another only
    the sizes themselves are taken, and `PlanError` says which layer mixes them.

    Attributes:
      batch_sizes: ascending; () where the plan's batch is fixed.
      device: where it runs.
    """

    def __init__(self, plan: Plan, params: Mapping[str, Any], batch_sizes: Sequence[int], device: jax.Device) -> None:
        self.batch_sizes = tuple(sorted(set(batch_sizes)))
        self.device = device
        self._plan = plan
        here = jax.device_put(dict(params), device)
        self._are_bundled = device.platform == "cpu"
        leaves, tree = jax.tree.flatten(jax.device_put(plan.bundled(here), device) if self._are_bundled else here)
        self._params, self._tree = tuple(leaves), tree  # flat: see Plan.call_flat
        self._batched = [node.aval.leads_batch for node in plan.graph.inputs]
        self._mixing = mixing(plan.graph)
        self._executables = {size: self._compiled(size) for size in self.batch_sizes or (0,)}

    def _compiled(self, size: int) -> Any:
        sharding = SingleDeviceSharding(self.device)
        args = _arguments(self._plan, size, sharding=sharding)
        return self._plan.compiled(self._tree, self._are_bundled).lower(self._params, args).compile()

    def __call__(self, *args: Any) -> Any:
        """The result, with the bits of the plan's.

        Raises:
          PlanError: other arguments than the plan was made for, or a batch size that was not compiled of a function
            that mixes the examples of a batch.
        """
        leaves, batch, one_example = self._plan.leaves(args)
        size = batch if self.batch_sizes else 0
        if size in self._executables and not one_example:
            return jax.tree.unflatten(self._plan.out_tree, self._run(size, leaves))
        if size not in self._executables and self._mixing is not None:
            sizes = ", ".join(map(str, self.batch_sizes))
            raise PlanError(f"takes batches of {sizes}, not of {batch}: {self._mixing}; compile that size, too")
        results = self._on_host([np.asarray(leaf) for leaf in leaves], batch)
        if one_example:
            pairs = zip(self._plan.graph.outputs, results, strict=True)
            results = [y[0] if node.aval.leads_batch else y for node, y in pairs]
        return jax.tree.unflatten(self._plan.out_tree, jax.device_put(results, self.device))

    def _run(self, size: int, leaves: Sequence[Any]) -> list[Any]:
        args = jax.tree.unflatten(self._plan.in_tree, jax.device_put(leaves, self.device))
        return jax.tree.leaves(self._executables[size](self._params, args))

    def _on_host(self, leaves: Sequence[np.ndarray], batch: int) -> list[np.ndarray]:
        """The results of a batch of any size, in parts of the largest; of a compiled size, in one."""
        size = batch if batch in self._executables else self.batch_sizes[-1]
        starts = range(0, max(batch, 1), size)
        parts = [self._part(self._rows(leaves, slice(start, start + size))) for start in starts]
        return [np.concatenate(arrays)[:batch] for arrays in zip(*parts, strict=True)]

    def _rows(self, leaves: Sequence[np.ndarray], some: slice) -> list[np.ndarray]:
        return [leaf[some] if batched else leaf for leaf, batched in zip(leaves, self._batched, strict=True)]

    def _part(self, leaves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The results of at most the largest batch; at the end, those of the zeros that it was filled up with."""
        count = next(len(leaf) for leaf, batched in zip(leaves, self._batched, strict=True) if batched)
        size = next(size for size in self.batch_sizes if size >= count)

        def filled(leaf: np.ndarray) -> np.ndarray:
            return np.concatenate([leaf, np.zeros((size - count, *leaf.shape[1:]), leaf.dtype)])

        pairs = zip(leaves, self._batched, strict=True)
        return [np.asarray(y) for y in self._run(size, [filled(x) if batched else x for x, batched in pairs])]


def _arguments(plan: Plan, batch: Any, **options: Any) -> Any:
    """The shapes of the arguments at that batch size."""
    avals = [bind(node.aval, batch) for node in plan.graph.inputs]
    return jax.tree.unflatten(plan.in_tree, [jax.ShapeDtypeStruct(aval.shape, aval.dtype, **options) for aval in avals])


def compile_plan(
    plan: Plan, params: Mapping[str, Any], batch_sizes: int | Sequence[int], device: jax.Device | None
) -> CompiledModel:
    """The plan compiled for the batch sizes.

    Raises:
      UnsupportedError: batch sizes that are none, or of a plan whose batch is fixed.
    """
    sizes = (batch_sizes,) if isinstance(batch_sizes, int) else tuple(batch_sizes)
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise UnsupportedError(f"batch_sizes: takes positive integers, such as (1, 8, 32), not {batch_sizes!r}")
    if not any(node.aval.leads_batch for node in plan.graph.inputs):
        sizes = ()
    if device is None:
        device = jax.local_devices()[0]
    if not isinstance(device, jax.Device):
        raise UnsupportedError(f"device: takes one of jax.devices(), not {device!r}")
    return CompiledModel(plan, params, sizes, device)


def export_plan(
    plan: Plan, params: Mapping[str, Any], batch_size: int | None, platforms: Sequence[str]
) -> jax_export.Exported:
    """The plan as a `jax.export.Exported` of its arguments, the weights inside.

    Raises:
      UnsupportedError: a batch size that is none.
    """
    if batch_size is not None and not (isinstance(batch_size, int) and batch_size > 0):
        raise UnsupportedError(f"batch_size: takes a positive integer, or None for any, not {batch_size!r}")
    batch = jax_export.symbolic_shape("batch")[0] if batch_size is None else batch_size
    args = _arguments(plan, batch)
    checks = [jax_export.DisabledSafetyCheck.custom_call(name) for name in backends.CUSTOM_CALLS]
    function = jax.jit(lambda *args: plan(params, *args))
    return jax_export.export(function, platforms=tuple(platforms), disabled_checks=checks)(*args)
