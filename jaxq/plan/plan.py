"""The plan: an int8 graph, the signature of the function it computes, and how to run it.

A plan is static and hashes by identity; the weights are a pytree beside it, {parameter name: array}.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxq import backends
from jaxq.backends import tactics
from jaxq.errors import JaxqError, PlanError
from jaxq.graph.evaluate import Lower, evaluate
from jaxq.graph.node import Aval, Graph
from jaxq.plan.arguments import Arguments, array_of
from jaxq.plan.tactics import Tactics
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
      tactics: of the nodes that were measured to be faster by another than the default; None where nothing was.
    """

    graph: Graph
    in_tree: Any
    out_tree: Any
    summary: Summary
    tactics: Tactics | None = None

    def __call__(self, params: Mapping[str, Any], *args: Any) -> Any:
        """The function, compiled by `jax.jit` once for each batch size.

        Raises:
          PlanError: other parameters or arguments than the plan was made for.
        """
        return self.call_flat(*jax.tree.flatten(params), args)

    def call_flat(self, leaves: Sequence[Any], tree: Any, args: tuple[Any, ...]) -> Any:
        """`self(jax.tree.unflatten(tree, leaves), *args)`, for who calls with the same parameters again and again: to
        flatten hundreds of them, packed ones among them, takes as long as some layers.

        Raises:
          PlanError: other parameters or arguments than the plan was made for.
        """
        for leaf in jax.tree.leaves(args):
            array_of("args", leaf)
        return self._compiled(tree)(tuple(leaves), args)

    @functools.cached_property
    def marked(self) -> Graph:
        """The graph, its nodes with the tactics that hold on this device."""
        return tactics.mark(self.graph, {} if self.tactics is None else self.tactics.here())

    @functools.cached_property
    def gathered(self) -> Graph:
        """The graph as the backends run it (`backends.gather`)."""
        return backends.gather(self.marked)

    def _compiled(self, tree: Any) -> Any:
        """The jitted function of the leaves of parameters of this structure, and of the arguments."""
        if tree not in self._jitted:
            self._jitted[tree] = jax.jit(
                lambda leaves, args: self.evaluate(jax.tree.unflatten(tree, leaves), args, backends.choose)
            )
        return self._jitted[tree]

    @functools.cached_property
    def _jitted(self) -> dict[Any, Any]:
        return {}

    def evaluate(self, params: Mapping[str, Any], args: tuple[Any, ...], lower: Lower | None = None) -> Any:
        """The function node by node as `lower` gives them; by their definition (the oracle) unless given.

        Raises:
          PlanError: other parameters or arguments than the plan was made for.
        """
        self._check_params(params)
        leaves, batch, one_example = self.leaves(args)
        params, leaves = _not_differentiable((dict(params), leaves))
        if lower is backends.choose:
            results = evaluate(self.gathered.bind(batch), params, leaves, lower)
        else:
            results = evaluate(self.graph.bind(batch), backends.plain(params), leaves, lower)
        return self._arguments.result(results, one_example)

    def _check_params(self, params: Mapping[str, Any]) -> None:
        if not isinstance(params, Mapping):
            raise PlanError(f"params: takes the plan's own, qmodel.params, not a {type(params).__name__}")
        for node in self.graph.all_nodes:
            if node.op != "param":
                continue
            if node.name not in params:
                raise PlanError(f"params: {node.name!r} is missing; the plan takes its own, qmodel.params")
            array = params[node.name]
            given = Aval(getattr(array, "shape", ()), getattr(array, "dtype", np.dtype(object)))
            if given != node.aval:
                raise PlanError(f"params: {node.name!r} is {given}, the plan takes {node.aval}")

    def leaves(self, args: tuple[Any, ...]) -> tuple[list[Any], Any, bool]:
        """See `Arguments.leaves`."""
        return self._arguments.leaves(args)

    @functools.cached_property
    def _arguments(self) -> Arguments:
        return Arguments(self.graph, self.in_tree, self.out_tree, self.summary.fixed_because)
