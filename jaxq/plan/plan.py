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

    def bundled(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The same parameters in fewer arrays, as every array takes time in a call: small ones that a call of the CPU's
        kernels reads are one, a NumPy array. For who calls with the same parameters again and again.

        Raises:
          PlanError: other parameters than the plan was made for.
        """
        self._check_params(params)
        return self._bundles.params(params)

    def call_flat(self, leaves: Sequence[Any], tree: Any, args: tuple[Any, ...], *, are_bundled: bool = False) -> Any:
        """`self(jax.tree.unflatten(tree, leaves), *args)`, for who calls with the same parameters again and again: to
        flatten hundreds of them, packed ones among them, takes as long as some layers.

        Args:
          are_bundled: whether the parameters are those that `bundled` gives. What is compiled for these is another
            function than that for the plan's own.

        Raises:
          PlanError: other parameters or arguments than the plan was made for.
        """
        for leaf in jax.tree.leaves(args):
            array_of("args", leaf)
        return self.compiled(tree, are_bundled)(tuple(leaves), args)

    @functools.cached_property
    def marked(self) -> Graph:
        """The graph, its nodes with the tactics that hold on this device."""
        return tactics.mark(self.graph, {} if self.tactics is None else self.tactics.here())

    @functools.cached_property
    def gathered(self) -> Graph:
        """The graph as the backends run it (`backends.gather`)."""
        return backends.gather(self.marked)

    @functools.cached_property
    def _bundles(self) -> backends.Bundles:
        return backends.bundle(self.gathered)

    def compiled(self, tree: Any, are_bundled: bool) -> Any:
        """The jitted function of the leaves of parameters of this structure, and of the arguments."""
        if (tree, are_bundled) not in self._jitted:

            def run(leaves: Sequence[Any], args: tuple[Any, ...]) -> Any:
                params = jax.tree.unflatten(tree, leaves)
                if are_bundled:
                    return self.evaluate_bundled(params, args)
                return self.evaluate(params, args, backends.choose)

            self._jitted[tree, are_bundled] = jax.jit(run)
        return self._jitted[tree, are_bundled]

    @functools.cached_property
    def _jitted(self) -> dict[Any, Any]:
        return {}

    def evaluate(self, params: Mapping[str, Any], args: tuple[Any, ...], lower: Lower | None = None) -> Any:
        """The function node by node as `lower` gives them; by their definition (the oracle) unless given.

        Raises:
          PlanError: other parameters or arguments than the plan was made for.
        """
        self._check_params(params)
        if lower is backends.choose:
            return self._evaluate(self.gathered, params, args, lower)
        return self._evaluate(self.graph, backends.plain(params), args, lower)

    def evaluate_bundled(self, params: Mapping[str, Any], args: tuple[Any, ...]) -> Any:
        """The function as this machine's backends compute it, of the parameters that `bundled` gives.

        Raises:
          PlanError: other arguments than the plan was made for.
        """
        return self._evaluate(self._bundles.graph, params, args, backends.choose)

    def _evaluate(self, graph: Graph, params: Mapping[str, Any], args: tuple[Any, ...], lower: Lower | None) -> Any:
        leaves, batch, one_example = self.leaves(args)
        params, leaves = _not_differentiable((dict(params), leaves))
        results = evaluate(graph.bind(batch), params, leaves, lower)
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
