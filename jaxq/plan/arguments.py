"""What a graph's function takes and gives: pytrees of arrays, at any batch size, or one example without the batch
axis."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.errors import PlanError
from jaxq.graph.node import Dim, Graph, Node, bind
from jaxq.models import shown


@dataclass(frozen=True, eq=False)
class Arguments:
    """The signature of a graph's function.

    Attributes:
      graph: dimensions that follow the batch are `Dim`.
      in_tree, out_tree: the pytree structures of the positional arguments and of the result.
      fixed_because: why the batch size is fixed, or None.
    """

    graph: Graph
    in_tree: Any
    out_tree: Any
    fixed_because: str | None

    def leaves(self, args: tuple[Any, ...]) -> tuple[list[Any], Any, bool]:
        """The argument leaves, checked; the batch size; and whether the arguments are one example, which gets a batch
        axis (where every result has one to take off again).

        Raises:
          PlanError: other arguments than the plan was made for.
        """
        leaves, tree = jax.tree.flatten(args)
        if tree != self.in_tree:
            raise PlanError(f"the arguments are {shown(tree)}, the plan takes {shown(self.in_tree)}")
        inputs = self.graph.inputs
        arrays = [array_of(node.name, leaf) for node, leaf in zip(inputs, leaves, strict=True)]
        batched = [node.aval.leads_batch for node in inputs]
        pairs = [(node, array) for node, array, follows in zip(inputs, arrays, batched, strict=True) if follows]
        separable = all(node.aval.leads_batch or not node.aval.follows_batch for node in self.graph.outputs)
        one_example = separable and bool(pairs) and all(a.shape == node.aval.shape[1:] for node, a in pairs)
        if one_example:
            arrays = [a[None] if follows else a for a, follows in zip(arrays, batched, strict=True)]
        batch = next((a.shape[0] for a, follows in zip(arrays, batched, strict=True) if follows and a.ndim), 0)
        for node, array in zip(inputs, arrays, strict=True):
            self._check(node, array, batch)
        return [jnp.asarray(a, node.aval.dtype) for node, a in zip(inputs, arrays, strict=True)], batch, one_example

    def result(self, values: Sequence[Any], one_example: bool) -> Any:
        """The graph's outputs as the function's result."""
        if one_example:
            outputs = zip(self.graph.outputs, values, strict=True)
            values = [y[0] if node.aval.leads_batch else y for node, y in outputs]
        return jax.tree.unflatten(self.out_tree, values)

    def _check(self, node: Node, array: Any, batch: Any) -> None:
        given, taken = jax.dtypes.canonicalize_dtype(array.dtype), node.aval.dtype
        if tuple(array.shape) != bind(node.aval.shape, batch):
            wanted = tuple("batch" if isinstance(dim, Dim) else dim for dim in node.aval.shape)
            fixed = f"; its batch size is fixed: {self.fixed_because}" if self.fixed_because else ""
            raise PlanError(f"argument {node.name!r} has shape {tuple(array.shape)}, the plan takes {wanted}{fixed}")
        both_float = jnp.issubdtype(given, jnp.floating) and jnp.issubdtype(taken, jnp.floating)
        if given != taken and not both_float and not np.can_cast(given, taken):
            raise PlanError(f"argument {node.name!r} has dtype {given}, the plan takes {taken}: convert it first")


def array_of(name: str, leaf: Any) -> Any:
    """The leaf as an array.

    Raises:
      PlanError: it holds other values than numbers.
    """
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    if not (jnp.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise PlanError(f"argument {name!r} holds {array.dtype} values, not numbers")
    return array
