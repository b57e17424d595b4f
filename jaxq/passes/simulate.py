"""The int8 graph's numbers in float: the float graph with every value and weight rounded as the int8 graph rounds it.

What is rounded, and to what, is data (`Levels`): one compiled function serves all choices, and has derivatives by them.
Sums are of float32, where the int8 graph's are exact: of 100,000 values one or two are rounded the other way.

Under a mask each int8 node computes so, or as the float graph does. A node whose place in the mask is true reads
rounded values and weights. So the mask of one node gives the error that this node makes alone, and that of all the
error of the int8 network.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxq import numerics
from jaxq.config import QuantConfig
from jaxq.graph.evaluate import Lower, control_flow, evaluate, reference, steps
from jaxq.graph.node import LAYOUT, WEIGHTED, Aval, Graph, Node
from jaxq.graph.taps import parts
from jaxq.passes.choices import Choices
from jaxq.passes.lower import grouped_weight, quantized_weight, scaled_weight
from jaxq.passes.place import Placement, data_inputs


class Levels(NamedTuple):
    """What values and weights are rounded to, float32.

    Attributes:
      scales: {scale group: () or (C,)}, zero_points: {scale group: ()} where it is not 0.
      rows: {value that dots read by row: (C,)}, as of `Choices`.
      weights: {conv or dot: its weight, rounded}.
      biases: {conv or dot: (C,)} that are added to it.
    """

    scales: Mapping[str, Any]
    zero_points: Mapping[str, Any]
    rows: Mapping[str, Any]
    weights: Mapping[str, Any]
    biases: Mapping[str, Any]


class Simulated:
    """A placed float graph as a function of its parameters, `Levels`, and its inputs.

    Attributes:
      nodes: what a mask is over, in program order: the int8 and weight-only nodes, of bodies too, but those that only
        move values.
    """

    def __init__(self, graph: Graph, placement: Placement) -> None:
        self.graph, self.placement = graph, placement
        self.nodes = tuple(node for node in graph.all_nodes if node in placement.quantized and node.op not in LAYOUT)
        self._place = {node.name: i for i, node in enumerate(self.nodes)}
        self._reads = {node.name: _reads(node, placement) for node in graph.all_nodes}
        self._by_row = {node.name for node in placement.by_row}
        self._groups = {group.name: group for group in placement.scale_groups}
        self._made = {node.name: _group_of(node, placement) for node in placement.int8}

    def levels(self, choices: Choices, config: QuantConfig, known: Mapping[str, Any] = MappingProxyType({})) -> Levels:
        """Those of the choices; `known` are weights that they give."""
        qtypes = choices.qtypes
        return Levels(
            {name: np.asarray(qtype.scale, np.float32) for name, qtype in qtypes.items()},
            {name: np.float32(qtype.zero_point) for name, qtype in qtypes.items() if qtype.zero_point},
            {name: np.asarray(channels, np.float32) for name, channels in choices.rows.items()},
            {
                node.name: known[node.name] if node.name in known else self.weight(node, choices, config)
                for node in self.nodes
                if node.op in WEIGHTED
            },
            {name: np.asarray(bias, np.float32) for name, bias in choices.biases.items()},
        )

    def weight(self, node: Node, choices: Choices, config: QuantConfig) -> np.ndarray:
        """The real weight that a conv's or dot's integers stand for."""
        if node in self.placement.weight_only:
            levels, grouped = choices.weights.get(node.name) or grouped_weight(node, config)
            size = config.for_weights(node.name).group_size
            return levels * np.repeat(grouped, size, axis=1)[:, : levels.shape[1]]
        scale_x = self.scale_read(node, {name: qtype.scale for name, qtype in choices.qtypes.items()}, choices.rows)
        weight, scale = choices.weights.get(node.name) or quantized_weight(node, config, scale_x)
        real = weight * (scale if node.op == "conv" else scale[:, None])
        ones = np.ones_like(real) if np.ndim(scale_x) else 1.0
        return (real / scaled_weight(node, ones, scale_x)).astype(np.float32)

    def scale_read(self, node: Node, scales: Mapping[str, Any], rows: Mapping[str, Any]) -> Any:
        """The scale of what an int8 conv or dot reads; where rows have scales of their own, in units of these."""
        x = node.operand("x")
        if node in self.placement.by_row:
            return rows.get(x.name, 1.0)
        group = self.placement.groups[x]
        return 1.0 if group.exact else scales[group.name]

    def __call__(
        self,
        params: Mapping[str, Any],
        levels: Levels,
        leaves: Sequence[Any],
        batch: int,
        mask: jax.Array | None = None,
        tap: Callable[[Node, Any], None] | None = None,
    ) -> list[jax.Array]:
        """The graph's outputs.

        Args:
          params: those of the graph.
          leaves: an array for each of the graph's inputs, of `batch` examples.
          mask: bool (number of nodes,), all unless given.
          tap: called with every node and its value, not yet rounded (`evaluate`).
        """
        graph = self.graph.bind(batch)
        if mask is None:
            return self._evaluated(graph, params, levels, leaves, tap)

        def lower(node: Node) -> Callable[..., Any]:
            if node.name not in self._place:
                return reference(node)
            on, float_, int8 = mask[self._place[node.name]], float_function(node), self._rounding(node, levels)
            return lambda *operands: jnp.where(on, int8(*operands), float_(*operands))

        return evaluate(graph, params, leaves, lower, tap)

    def steps(
        self, params: Mapping[str, Any], levels_at: Callable[[Node], Levels], leaves: Sequence[Any], batch: int
    ) -> Iterator[tuple[Node, Any]]:
        """Every node, constants too, and its value, not yet rounded, in order; before it is computed `levels_at` says
        what it and what it reads are rounded to."""
        return steps(self.graph.bind(batch), params, leaves, *self._functions(params, levels_at))

    def _evaluated(
        self,
        graph: Graph,
        params: Mapping[str, Any],
        levels: Levels,
        inputs: Sequence[Any],
        tap: Callable[[Node, Any], None] | None = None,
    ) -> list[jax.Array]:
        """The outputs of a graph, or of a body, all of whose nodes compute as in int8: what stands for integers is
        float32, whatever the graph's dtype."""

        lower, control = self._functions(params, lambda node: levels)
        values = evaluate(graph, params, inputs, lower, tap, control)
        made = [self._made.get(node.name) for node in graph.outputs]
        rounded = [y if name is None else self._rounded(y, name, levels) for y, name in zip(values, made, strict=True)]
        return [y.astype(node.aval.dtype) for y, node in zip(rounded, graph.outputs, strict=True)]

    def _functions(self, params: Mapping[str, Any], levels_at: Callable[[Node], Levels]) -> tuple[Lower, Lower]:
        """How nodes are computed, and those that have bodies."""

        def lower(node: Node) -> Callable[..., Any]:
            return self._rounding(_wide(node) if self._made.get(node.name) else node, levels_at(node))

        def control(node: Node) -> Callable[..., Any]:
            levels = levels_at(node)
            return control_flow(node, lambda body: lambda *args: self._evaluated(body, params, levels, args))

        return lower, control

    def _rounded(self, x: jax.Array, group: str, levels: Levels) -> jax.Array:
        """The value as the group's integers stand for it, float32."""
        lowest, highest = numerics.BOUNDS[self._groups[group].dtype]
        zero_point = levels.zero_points.get(group)
        x = x.astype(jnp.float32)
        return numerics.fake_quantize(x, levels.scales[group], zero_point, lowest=lowest, highest=highest)

    def _rounding(self, node: Node, levels: Levels) -> Callable[..., Any]:
        """The node's function with its rounded operands."""
        reads, is_wide = self._reads.get(node.name, {}), node.name in self._made and node.op != "elementwise"
        by_row = node.operand("x") if node.name in self._by_row else None
        weight, bias = levels.weights.get(node.name), levels.biases.get(node.name)
        is_added = bias is not None and node.get("bias") is None
        if is_added:
            node = node.replace(inputs=(*node.inputs, node.inputs[0]), roles=(*node.roles, "bias"))
        run = float_function(node)

        def operand(x: jax.Array, source: Node, group: str | None) -> jax.Array:
            if group is None:
                return x
            x = self._rounded(x, group, levels)
            return x if is_wide and source is not by_row else x.astype(source.aval.dtype)

        def rounded(*operands: Any) -> Any:
            given: list[Any] = [operand(x, node.inputs[i], reads.get(i)) for i, x in enumerate(operands)]
            if by_row is not None:
                at = node.roles.index("x")
                given[at] = numerics.fake_quantize_rows(given[at].astype(jnp.float32), levels.rows.get(by_row.name))
            if weight is not None:
                given[node.roles.index("weight")] = weight
            if is_added:
                given.append(bias)
            elif bias is not None:
                at = node.roles.index("bias")
                given[at] = given[at] + bias
            if node.op == "pad":
                given[1] = given[1].astype(given[0].dtype)
            return run(*given)

        return rounded


def _wide(node: Node) -> Node:
    """An int8 node of float32 values. (A function of one value, a table, makes those of its dtype.)"""
    if node.op == "elementwise":
        return node
    if node.op == "convert_element_type":
        return node.with_attrs(new_dtype=np.dtype(np.float32))
    return node.replace(aval=Aval(node.aval.shape, np.dtype(np.float32)))


def _reads(node: Node, placement: Placement) -> dict[int, str]:
    """{index of an operand that the node reads as integers, or dequantized: its scale group}."""

    def is_rounded(source: Node) -> bool:
        if node.op in LAYOUT and _group_of(source, placement) == _group_of(node, placement):
            return False  # whoever reads what was moved rounds it
        if source in placement.int8 or node not in placement.int8:
            return source in placement.int8
        if source is node.get("residual"):
            return node in placement.groups
        return node not in placement.by_row

    data = data_inputs(node)
    found = {i: _group_of(x, placement) for i, x in enumerate(node.inputs) if x in data and is_rounded(x)}
    return {i: name for i, name in found.items() if name is not None}


def _group_of(node: Node, placement: Placement) -> str | None:
    """The name of the value's scale group, if it is rounded to one."""
    group = placement.groups.get(node)
    return None if group is None or group.exact else group.name


def float_function(node: Node) -> Callable[..., Any]:
    """The node's function in float; of a depthwise convolution on the CPU one that is not slow there."""
    depthwise = node.op == "conv" and node.attrs["groups"] == node.aval.shape[-1] == node.operand("x").aval.shape[-1]
    if not depthwise or jax.default_backend() != "cpu":
        return reference(node)
    rest = {role: operand for role, operand in zip(node.roles, node.inputs, strict=True) if role != "weight"}
    affine = node.replace(op="affine").with_operands(rest)

    def run(*operands: Any) -> Any:
        given = dict(zip(node.roles, operands, strict=True))
        x, weight = given.pop("x").astype(jnp.float32), given.pop("weight").astype(jnp.float32)
        y = sum(part * weight[index][0] for index, part in parts(node, x, weight, 0))
        return reference(affine)(y, *given.values())

    return run
