"""The quantized model that a user holds: a plan with its parameters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp

from jaxq import backends
from jaxq.config import QuantConfig
from jaxq.graph.node import Graph
from jaxq.passes.choices import Choices
from jaxq.passes.place import Placement
from jaxq.passes.simulate import Simulated
from jaxq.plan import ahead, artifact
from jaxq.plan.ahead import CompiledModel
from jaxq.plan.plan import Plan
from jaxq.plan.tactics import Tactics
from jaxq.report import Summary, rows


@dataclass(frozen=True, eq=False)
class Origin:
    """What a plan was made from: the simplified float graph, which nodes of it are quantized, and what was
    chosen for them."""

    graph: Graph
    placement: Placement
    choices: Choices
    config: QuantConfig

    @cached_property
    def simulated(self) -> Simulated:
        """The float graph that computes with the int8 graph's numbers."""
        return Simulated(self.graph, self.placement)


def model_of(plan: Plan, params: Mapping[str, Any], origin: Origin | None = None) -> "QuantizedModel":
    """The plan with its parameters in the form that this machine's backend reads."""
    prepared = jax.tree.map(jnp.asarray, backends.prepare(plan.gathered, params))
    bundled = jax.tree.map(jnp.asarray, plan.bundled(prepared)) if jax.default_backend() == "cpu" else None
    return QuantizedModel(prepared, plan, origin, bundled)


@jax.tree_util.register_pytree_node_class
class QuantizedModel:
    """A quantized function: callable, a pytree whose leaves are its `params`, and hashed by identity for `jax.jit`.

    It takes the arguments of the function it was made from, at any batch size; one example without the batch axis is
    taken too, and gives a result without it.

    Attributes:
      params: {parameter name: array}: quantized weights, multipliers, biases and what stayed in float; a copy. `apply`
        takes others.
      plan: what computes with them.
      origin: what `quantize` made the plan from, its float weights too; None of a file, or a pytree's copy.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        plan: Plan,
        origin: Origin | None = None,
        bundled: Mapping[str, Any] | None = None,
    ) -> None:
        """`bundled`: the parameters as `plan.bundled` gives them, which a call then takes."""
        self._params = dict(params)
        self._bundled = bundled
        self.plan = plan
        self.origin = origin

    @property
    def params(self) -> dict[str, Any]:
        return dict(self._params)

    @cached_property
    def _flat(self) -> tuple[list[Any], Any]:
        return jax.tree.flatten(self._params if self._bundled is None else self._bundled)

    def __call__(self, *args: Any) -> Any:
        """The result, compiled by `jax.jit`.

        Raises:
          PlanError: the arguments have another structure, shape or dtype than the plan takes.
        """
        return self.plan.call_flat(*self._flat, args, are_bundled=self._bundled is not None)

    @property
    def apply(self) -> Callable[..., Any]:
        """The pure form, with the weights as an argument: `qmodel.apply(qmodel.params, *args)`."""
        return self.plan

    def summary(self) -> Summary:
        """What was fused, in which precision, and what stayed in float and why: print it, or read its `nodes`."""
        return self.plan.summary

    def with_summary(self, summary: Summary) -> "QuantizedModel":
        """The same model, which says that of itself."""
        return QuantizedModel(self._params, replace(self.plan, summary=summary), self.origin, self._bundled)

    def with_tactics(self, tactics: Tactics) -> "QuantizedModel":
        """The same model, with the same results, computed by those tactics."""
        graph = self.plan.graph
        summary = replace(self.plan.summary, nodes=rows(graph, tactics.by_name))
        return model_of(replace(self.plan, summary=summary, tactics=tactics), graph.params, self.origin)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the plan and its weights to one file, atomically.

        Raises:
          UnsupportedError: the function holds a primitive or a pytree type that a file cannot.
          PlanError: the file cannot be written.
        """
        artifact.save(path, self.plan, self._params)

    def compile(self, batch_sizes: int | Sequence[int] = 1, *, device: jax.Device | None = None) -> CompiledModel:
        """The model compiled for these batch sizes, on `device` or JAX's first one: no call of the result compiles.

            serve = qmodel.compile((1, 8, 32))
            serve(x)  # of 20 examples: runs at 32; of 70: twice at 32 and once at 8

        With `jax.config.update("jax_compilation_cache_dir", folder)` before it, a later process finds what was compiled
        in the folder. Where the batch is fixed the sizes are its own.

        Raises:
          UnsupportedError: batch sizes or a device that are none.
        """
        return ahead.compile_plan(self.plan, self._params, batch_sizes, device)

    def export(
        self, batch_size: int | None = None, *, platforms: Sequence[str] = ("cpu", "cuda")
    ) -> jax.export.Exported:
        """The model as StableHLO with its weights inside, for each of the platforms: `exported.call(*args)`, or
        `exported.serialize()` for a file.

        Args:
          batch_size: of the arguments; None for any, which runs through XLA and calls no kernels.
          platforms: "cpu" and "cuda", or one of them. Kernels for the GPU are chosen on this machine's, for an A100 and
            later where it has none; to call those for the CPU, the process `import jaxq` first.

        Raises:
          UnsupportedError: a batch size that is none.
        """
        return ahead.export_plan(self.plan, self._params, batch_size, platforms)

    def tree_flatten(self) -> tuple[tuple[dict[str, Any]], Plan]:
        return (self._params,), self.plan

    @classmethod
    def tree_unflatten(cls, plan: Plan, children: tuple[dict[str, Any]]) -> "QuantizedModel":
        model = object.__new__(cls)
        model._params, model._bundled, model.plan, model.origin = children[0], None, plan, None
        return model

    def __repr__(self) -> str:
        quantized = sum(row.precision != "float" for row in self.plan.summary.nodes)
        return f"QuantizedModel({quantized} of {len(self.plan.summary.nodes)} nodes quantized)"
