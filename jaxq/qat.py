"""Quantization-aware training: the int8 plan's numbers as a function that has derivatives by weights and scales.

Values and weights are rounded to their levels, and gradients pass the rounding straight through. What is trained are
the weights and biases of the simplified graph, so that batch norms stay folded as calibrated (Krishnamoorthi, arXiv
1806.08342, freezes them as well), and the scales, whose gradients are those of LSQ (arXiv 1902.08153) in log2 (TQT,
arXiv 1903.08066): a step changes a scale by a factor, whatever its size. Zero points stay as calibrated.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq import build, numerics
from jaxq.build import Network
from jaxq.config import QuantConfig
from jaxq.errors import CalibrationError, PlanError
from jaxq.graph.node import WEIGHTED, Graph, Node
from jaxq.passes.choices import Choices
from jaxq.passes.lower import grouped_weight, quantized_weight, scaled_weight
from jaxq.passes.place import Placement
from jaxq.passes.simulate import Levels, Simulated
from jaxq.plan.arguments import Arguments, array_of
from jaxq.qmodel import Origin, QuantizedModel

# Keeps a scale and its reciprocal within float32.
SMALLEST = 1e-35

Variables = dict[str, dict[str, jax.Array]]

# The parameters of a layer that are trained, by its op and their roles; and those that are the user's own arrays.
_TRAINED = {"conv": ("weight", "bias"), "dot": ("weight", "bias"), "layer_norm": ("scale", "bias")}


@dataclass(frozen=True, eq=False)
class FakeQuantized:
    """What `jaxq.fake_quantize` returns: `fake(variables, *args)`, differentiable by the variables and the arguments.

    It takes the arguments of the function it was made from, as a quantized model does. It hashes by identity, so that
    it may be a static argument of `jax.jit`.
    """

    network: Network
    placement: Placement
    choices: Choices
    config: QuantConfig

    @cached_property
    def variables(self) -> Variables:
        """What is trained, as it is before training; float32, a pytree of dicts:

        "params": {"layer/weight", "layer/bias", ...: array}: of the graph after folding: weights of convolutions
          (spatial..., C / groups, O), of dense layers (N, K); biases (C,); scale and bias of layer norms; and arrays
          of the model's variables that nothing was folded into, such as embeddings. Constants of the function are not
          among them.
        "weight_scales": {layer: array}: log2 of the scale over that at the start, so 0 at first; one for each output
          channel, one for the layer with `weight_scales="tensor"`, (N, groups) of weight-only layers.
        "activation_scales": {value: array}: the same, of the values that become integers.
        """
        with jax.ensure_compile_time_eval():  # arrays, also where they are first asked for inside a transform
            return {
                "params": {name: jnp.asarray(value, jnp.float32) for name, value in self._trained.items()},
                "weight_scales": {node.name: jnp.zeros(self._shape_of_scale(node)) for node in self._weighted},
                "activation_scales": {name: jnp.zeros(np.shape(of.scale)) for name, of in self.choices.qtypes.items()},
            }

    def __call__(self, variables: Mapping[str, Any], *args: Any) -> Any:
        """The function, computed with the numbers of the int8 plan that these variables give.

        Raises:
          PlanError: variables of another structure than `self.variables`, or other arguments than the function takes.
        """
        self._check(variables)
        for leaf in jax.tree.leaves(args):
            array_of("args", leaf)
        leaves, batch, one_example = self._arguments.leaves(args)
        return self._arguments.result(self._run(variables, self._constants, leaves, batch=batch), one_example)

    def __repr__(self) -> str:
        return f"FakeQuantized({len(self._weighted)} layers, {len(self.choices.qtypes)} activation scales)"

    def quantized(self, variables: Mapping[str, Any]) -> QuantizedModel:
        """The int8 plan whose results are those of `self(variables, *args)`.

        Raises:
          PlanError: variables of another structure than `self.variables`.
          CalibrationError: they are not finite, or a scale left the range of float32.
        """
        self._check(variables)
        params = self._params(variables)
        found = jax.jit(
            lambda params, given: (
                self._scales(given),
                self._weight_scales(given),
                self._weights(numerics.to_levels, params, given),
            )
        )
        scales, weight_scales, levels = jax.device_get(found(params, variables))
        _check_finite(variables, {**scales, **weight_scales})
        qtypes = {name: replace(of, scale=_number(scales[name])) for name, of in self.choices.qtypes.items()}
        weights = {name: (levels[name].astype(np.int8), scale) for name, scale in weight_scales.items()}
        graph = self._with_params(jax.device_get(params))
        placement = self.placement.on(dict(zip(self.network.graph.all_nodes, graph.all_nodes, strict=True)))
        choices = replace(self.choices, qtypes=qtypes, weights=weights)
        return build.planned(self.network, Origin(graph, placement, choices, self.config), ["training"] * len(qtypes))

    @cached_property
    def _simulated(self) -> Simulated:
        return Simulated(self.network.graph, self.placement)

    @cached_property
    def _arguments(self) -> Arguments:
        traced = self.network.traced
        return Arguments(self.network.graph, traced.in_tree, traced.out_tree, traced.fixed_because)

    @cached_property
    def _weighted(self) -> tuple[Node, ...]:
        return tuple(node for node in self._simulated.nodes if node.op in WEIGHTED)

    @cached_property
    def _trained(self) -> dict[str, Any]:
        """The arrays that are trained, by name."""
        graph = self.network.graph
        operands = [node.get(role) for node in graph.all_nodes for role in _TRAINED.get(node.op, ())]
        theirs = {id(leaf) for leaf in jax.tree.leaves(self.network.variables)}
        names = {node.name for node in operands if node is not None}
        names |= {name for name, value in graph.params.items() if id(value) in theirs}
        avals = {node.name: node.aval for node in graph.all_nodes if node.op == "param"}
        return {name: value for name, value in graph.params.items() if name in names and avals[name].is_float}

    @cached_property
    def _constants(self) -> dict[str, Any]:
        """The other parameters of the graph."""
        with jax.ensure_compile_time_eval():
            params = self.network.graph.params
            return {name: jnp.asarray(value) for name, value in params.items() if name not in self._trained}

    @cached_property
    def _weight_scales_at_first(self) -> dict[str, np.ndarray]:
        return {node.name: np.asarray(self._scale_at_first(node), np.float32) for node in self._weighted}

    def _scale_at_first(self, node: Node) -> np.ndarray:
        if node.name in self.choices.weights:
            return self.choices.weights[node.name][1]
        if node in self.placement.weight_only:
            return grouped_weight(node, self.config)[1]
        scales = {name: of.scale for name, of in self.choices.qtypes.items()}
        return quantized_weight(node, self.config, self._simulated.scale_read(node, scales, self.choices.rows))[1]

    def _shape_of_scale(self, node: Node) -> tuple[int, ...]:
        is_one = self.config.for_weights(node.name).weight_scales == "tensor" and node not in self.placement.weight_only
        return () if is_one else self._weight_scales_at_first[node.name].shape

    @cached_property
    def _run(self) -> Any:
        def run(variables: Any, constants: Any, leaves: Any, batch: Any) -> list[jax.Array]:
            params = {**constants, **self._params(variables)}
            return self._simulated(params, self._levels(params, variables), leaves, batch)

        return jax.jit(run, static_argnames="batch")

    def _params(self, variables: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Those of the graph, in its dtypes."""
        return {name: variables["params"][name].astype(old.dtype) for name, old in self._trained.items()}

    def _scales(self, variables: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Those of every scale group."""
        given = variables["activation_scales"]
        return {
            name: jnp.asarray(of.scale, jnp.float32) * jnp.exp2(given[name]) for name, of in self.choices.qtypes.items()
        }

    def _weight_scales(self, variables: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Those of every layer's weights, (C,), or (N, groups) of a weight-only layer."""
        given = variables["weight_scales"]
        return {name: jnp.exp2(given[name]) * scale for name, scale in self._weight_scales_at_first.items()}

    def _weights(
        self, round_to: Callable[..., jax.Array], params: Mapping[str, Any], variables: Mapping[str, Any]
    ) -> dict[str, jax.Array]:
        """Every layer's weight, rounded as `numerics.fake_quantize` or, to integers, `to_levels` does it."""
        scales, weight_scales = self._scales(variables), self._weight_scales(variables)
        rounded = {}
        for node in self._weighted:
            weight = params[node.operand("weight").name]
            step = self._step(node, weight, weight_scales[node.name], scales)
            bits, in_groups = self.config.for_weights(node.name).weight_bits, node in self.placement.weight_only
            lowest, highest = map(float, numerics.weight_levels(bits, in_groups))
            rounded[node.name] = round_to(weight.astype(jnp.float32), step, lowest=lowest, highest=highest)
        return rounded

    def _step(self, node: Node, weight: jax.Array, scale: jax.Array, scales: Mapping[str, jax.Array]) -> jax.Array:
        """What one level of the weight stands for, broadcast to the weight."""
        if node in self.placement.weight_only:
            return jnp.repeat(scale, self.config.for_weights(node.name).group_size, axis=1)[:, : weight.shape[1]]
        step = scale if node.op == "conv" else scale[:, None]
        scale_x = self._simulated.scale_read(node, scales, self.choices.rows)
        return step / scaled_weight(node, jnp.ones(weight.shape), scale_x) if np.ndim(scale_x) else step

    def _levels(self, params: Mapping[str, Any], variables: Mapping[str, Any]) -> Levels:
        zero_points = {name: of.zero_point for name, of in self.choices.qtypes.items() if of.zero_point}
        return Levels(
            self._scales(variables),
            {name: jnp.float32(zero_point) for name, zero_point in zero_points.items()},
            {name: jnp.asarray(channels, jnp.float32) for name, channels in self.choices.rows.items()},
            self._weights(numerics.fake_quantize, params, variables),
            {name: jnp.asarray(bias, jnp.float32) for name, bias in self.choices.biases.items()},
        )

    def _with_params(self, params: Mapping[str, Any]) -> Graph:
        """The graph with these in the place of its own."""

        def change(node: Node) -> Node:
            node = node.with_bodies(lambda body: body.map(change))
            return node.with_attrs(value=params[node.name]) if node.op == "param" and node.name in params else node

        return self.network.graph.map(change)

    def _check(self, variables: Any) -> None:
        ours, theirs = _shapes(self.variables), _shapes(variables)
        for name in (*ours, *theirs):
            if name not in theirs:
                raise PlanError(f"variables: {name!r} is missing; they have the structure of fake.variables")
            if name not in ours:
                raise PlanError(f"variables: {name!r} is none of fake.variables, whose structure they have")
            if ours[name] != theirs[name]:
                raise PlanError(f"variables: {name!r} has shape {theirs[name]}, in fake.variables {ours[name]}")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """{path: shape} of the arrays."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(leaf) for path, leaf in leaves}


def _check_finite(variables: Any, scales: Mapping[str, np.ndarray]) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        if not np.all(np.isfinite(leaf)):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise CalibrationError(f"variables: {name!r} holds NaN or Inf: the training diverged")
    for name, scale in scales.items():
        if not np.all((np.abs(scale) >= SMALLEST) & (np.abs(scale) < np.inf)):
            raise CalibrationError(
                f"variables: the scale of {name!r} left the range of float32: the training diverged; take a lower "
                "learning rate for the scales"
            )


def _number(scale: np.ndarray) -> float | np.ndarray:
    """As a scale of the plan."""
    return float(scale) if scale.ndim == 0 else scale.astype(np.float64)
