"""The plan: an int8 graph, the signature of the function it computes, and how to run it.

A plan is static and hashes by identity; the weights are a pytree beside it, {parameter name: array}.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq import backends
from jaxq.calibration.batches import shown
from jaxq.errors import JaxqError, PlanError
from jaxq.graph.evaluate import Lower, evaluate
from jaxq.graph.node import Dim, Graph, bind
from jaxq.report import Summary


@jax.custom_jvp
def _not_differentiable(values: Any) -> Any:
    """The identity, with no derivative: rounding has none, and the zero that JAX would give is no use to anybody."""
    return values


@_not_differentiable.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    raise JaxqError("a quantized model has no derivative: differentiate the float model")


@dataclass(frozen=True, eq=False)
class Plan:
    """An int8 graph with its signature.

    Attributes:
      graph: the int8 graph; dimensions that follow the batch are `Dim`.
      in_tree, out_tree: the pytree structures of the positional arguments and of the result.
      summary: what became of the network.
    """

    graph: Graph
    in_tree: Any
    out_tree: Any
    summary: Summary

    def __call__(self, params: Mapping[str, Any], *args: Any) -> Any:
        """The function, compiled by `jax.jit` once for each batch size."""
        return self._compiled(params, args)

    @functools.cached_property
    def _compiled(self) -> Any:
        return jax.jit(lambda params, args: self.evaluate(params, args, backends.choose))

    def evaluate(self, params: Mapping[str, Any], args: tuple[Any, ...], lower: Lower | None = None) -> Any:
        """The function node by node as `lower` gives them; by their definition (the oracle) unless given."""
        leaves, unbatch = self._leaves(args)
        params, leaves = _not_differentiable((dict(params), leaves))
        results = evaluate(self.graph.bind(self._batch(leaves)), params, leaves, lower)
        if unbatch:
            follows = [isinstance(node.aval.shape[0], Dim) if node.aval.shape else False for node in self.graph.outputs]
            results = [y[0] if batched else y for y, batched in zip(results, follows, strict=True)]
        return jax.tree.unflatten(self.out_tree, results)

    def _batch(self, leaves: list[Any]) -> int:
        for node, leaf in zip(self.graph.inputs, leaves, strict=True):
            if node.aval.shape and isinstance(node.aval.shape[0], Dim):
                return int(leaf.shape[0])
        return 0

    def _leaves(self, args: tuple[Any, ...]) -> tuple[list[Any], bool]:
        """The argument leaves, checked; the flag says that they are one example, to which a batch axis was added.

        Raises:
          PlanError: other arguments than the plan was made for.
        """
        leaves, tree = jax.tree.flatten(args)
        if tree != self.in_tree:
            raise PlanError(f"the arguments are {shown(tree)}, the plan takes {shown(self.in_tree)}")
        arrays = [leaf if hasattr(leaf, "shape") else np.asarray(leaf) for leaf in leaves]
        batched = [bool(n.aval.shape) and isinstance(n.aval.shape[0], Dim) for n in self.graph.inputs]
        unbatch = any(batched) and all(
            array.shape == node.aval.shape[1:]
            for node, array, follows in zip(self.graph.inputs, arrays, batched, strict=True)
            if follows
        )
        if unbatch:
            arrays = [a[None] if follows else a for a, follows in zip(arrays, batched, strict=True)]
        sizes = {array.shape[0] for array, follows in zip(arrays, batched, strict=True) if follows and array.shape}
        batch = sizes.pop() if sizes else 0
        for node, array in zip(self.graph.inputs, arrays, strict=True):
            self._check(node.name, array, node.aval, batch)
        return [jnp.asarray(a, node.aval.dtype) for node, a in zip(self.graph.inputs, arrays, strict=True)], unbatch

    def _check(self, name: str, array: Any, aval: Any, batch: int) -> None:
        shape = bind(aval.shape, batch)
        if tuple(array.shape) != shape:
            wanted = tuple("batch" if isinstance(dim, Dim) else dim for dim in aval.shape)
            fixed = f"; its batch size is fixed: {self.summary.fixed_because}" if self.summary.fixed_because else ""
            raise PlanError(f"argument {name!r} has shape {tuple(array.shape)}, the plan takes {wanted}{fixed}")
        if jnp.issubdtype(aval.dtype, jnp.integer) and jnp.issubdtype(array.dtype, jnp.floating):
            raise PlanError(f"argument {name!r} has dtype {array.dtype}, the plan takes {aval.dtype}")
