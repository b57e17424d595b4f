"""The placed float graph to the int8 graph: weights quantized, borders inserted, every epilogue's constants computed.

With x = s_x * q_x and w[c] = s_w[c] * q_w[c], an accumulating op with scale[c], bias[c] and a residual r = s_r * q_r is

    y / s_y = acc * (s_x * s_w[c] * scale[c] / s_y) + bias[c] / s_y + q_r * (s_r / s_y)

clipped to [max(lo / s_y, smallest level), min(hi / s_y, largest level)]; of two values the second one's scale stands
for s_w. A float output has s_y = 1 and no levels. An elementwise function f of x is the table of f(s_x * q) / s_y for
every q; in float it is the ops it was made of, but whole between an int8 node and dots that read floats by row.

Where x = s_x * (q_x - z_x), the sum of q_x * q_w[c] is z_x * sum(q_w[c]) too large, which goes into the bias, as does
z_r; the bounds and the bias are moved by z_y. Where each channel k of x has a scale s_x[k] of its own, q_w is that of
w[k, c] * s_x[k] / s_x, with s_x the largest of them. Where each row of x has one, that is an operand of its own.
"""

from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxq import numerics
from jaxq.config import QuantConfig
from jaxq.graph.node import ACCUMULATING, LAYOUT, WEIGHTED, Aval, Graph, Names, Node, QType, constant
from jaxq.passes.choices import Choices
from jaxq.passes.elementwise import apply, expand
from jaxq.passes.place import Placement, terms


def lower(graph: Graph, placement: Placement, choices: Choices, config: QuantConfig) -> Graph:
    """The int8 graph.

    Args:
      graph: the folded and fused float graph.
      placement: of its nodes.
      choices: the scales of its groups.
      config: how the weights are quantized that `choices` does not hold.
    """
    names = Names()
    for node in graph.all_nodes:
        names.unique(node.name)
    return _Lowering(placement, choices, config, names).run(graph)


@dataclass
class _Lowering:
    """Every float node's counterparts: `as_float` and `as_int` make the border where only the other exists."""

    placement: Placement
    choices: Choices
    config: QuantConfig
    names: Names
    floats: dict[Node, Node] = field(default_factory=dict)
    ints: dict[Node, Node] = field(default_factory=dict)
    rows: dict[Node, Node] = field(default_factory=dict)
    pads: dict[tuple[Node, Any], Node] = field(default_factory=dict)

    def run(self, graph: Graph) -> Graph:
        """The int8 graph of a graph or a body, which takes and gives floats."""
        exact = {group for group in self.placement.groups.values() if group.exact}
        byte_sources = {source.inputs[0] for group in exact for source in group.sources}
        for node in dict.fromkeys((*graph.inputs, *graph.nodes)):
            if node in self.placement.weight_only:
                self.floats[node] = self._weight_only(node)
            elif node not in self.placement.int8:
                moved = node if node.is_constant or node.op == "input" else self._float(node, graph)
                self.floats[node] = moved.replace(qtype=QType("uint8", 1.0)) if node in byte_sources else moved
            elif node.inputs[0] in byte_sources:
                self.ints[node] = self.floats[node.inputs[0]]
            elif node.op == "elementwise":
                self.ints[node] = self._table(node)
            elif node.op in LAYOUT:
                self.ints[node] = self._layout(node)
            else:
                lowered = self._accumulating(node)
                (self.ints if node in self.placement.groups else self.floats)[node] = lowered
        inputs = tuple(self.floats[node] for node in graph.inputs)
        return Graph(inputs, tuple(self.as_float(node) for node in graph.outputs))

    def qtype(self, node: Node) -> QType:
        group = self.placement.groups[node]
        if group.exact:
            return QType(group.dtype, 1.0)
        return self.choices.qtypes[group.name]

    def as_float(self, node: Node) -> Node:
        if node not in self.floats:
            source = self.ints[node]
            assert source.qtype is not None
            name = f"{node.name}/dequantize"
            border = Node("dequantize", (), {}, node.aval, name, scope=node.scope)
            scale = constant(np.asarray(source.qtype.scale, np.float32), f"{name}/scale")
            self.floats[node] = border.with_operands(
                {"x": source, "scale": scale, "zero_point": zero_point(source.qtype)}
            )
        return self.floats[node]

    def as_int(self, node: Node) -> Node:
        if node not in self.ints:
            qtype = self.qtype(node)
            name = f"{node.name}/quantize"
            aval = Aval(node.aval.shape, np.dtype(qtype.dtype))
            border = Node("quantize", (), {}, aval, name, qtype=qtype, scope=node.scope)
            multiplier = constant(np.asarray(1.0 / np.asarray(qtype.scale), np.float32), f"{name}/multiplier")
            x = self.floats[node]
            self.ints[node] = border.with_operands({"x": x, "multiplier": multiplier, "zero_point": zero_point(qtype)})
        return self.ints[node]

    def as_rows(self, node: Node) -> Node:
        """As integers of a scale a row."""
        if node not in self.rows:
            qtype = QType("int8", self.choices.rows.get(node.name, 1.0))
            operands: dict[str, Node | None] = {"x": self.as_float(node)}
            if isinstance(qtype.scale, np.ndarray):
                operands["factor"] = constant(np.float32(1 / qtype.scale), f"{node.name}/row_scale/factor")
            name, aval = f"{node.name}/row_scale", Aval((*node.aval.shape[:-1], 1), np.dtype(np.float32))
            operands["row_scale"] = Node("row_scale", (), {}, aval, name, scope=node.scope).with_operands(operands)
            name, aval = f"{node.name}/quantize_rows", Aval(node.aval.shape, np.dtype(np.int8))
            rows = Node("quantize_rows", (), {}, aval, name, qtype=qtype, scope=node.scope)
            self.rows[node] = rows.with_operands(operands)
        return self.rows[node]

    def _float(self, node: Node, graph: Graph) -> Node:
        moved = node.replace(inputs=tuple(self.as_float(source) for source in node.inputs))
        reason = self.placement.reasons.get(node, "")

        def explained(node: Node) -> Node:
            return node.replace(reason=reason, fused=fused_words(node) if node.op in ACCUMULATING else ())

        if node.op != "elementwise" or self._is_before_rows(node, graph):
            return explained(moved).with_bodies(self._body)
        # An op may be part of several functions, and stand beside them too.
        end = node.attrs["body"].outputs[0].name
        return expand(
            moved,
            lambda op: explained(op if op.name == end else op.replace(name=self.names.unique(op.name))),
        )

    def _is_before_rows(self, node: Node, graph: Graph) -> bool:
        by_row = all(user in self.placement.by_row and user.get("residual") is not node for user in graph.users[node])
        return by_row and node.operand("x") in self.placement.int8 and node not in graph.outputs

    def _table(self, node: Node) -> Node:
        x, qtype = self.as_int(node.operand("x")), self.qtype(node)
        assert x.qtype is not None
        body = node.attrs["body"]
        levels = numerics.levels(x.qtype.dtype).astype(np.float32) - np.float32(x.qtype.zero_point)
        values = apply(body, (levels * np.float32(x.qtype.scale)).astype(body.inputs[0].aval.dtype))
        multiplier, zero = jnp.float32(1.0 / qtype.scale), jnp.float32(qtype.zero_point)
        entries = numerics.quantize(values, multiplier, zero, dtype=qtype.dtype)
        table = constant(np.asarray(entries), f"{node.name}/table")
        aval = Aval(node.aval.shape, np.dtype(qtype.dtype))
        attrs = {"word": node.attrs["word"]}
        return node.replace(op="table", attrs=attrs, aval=aval, qtype=qtype).with_operands({"x": x, "table": table})

    def _body(self, body: Graph) -> Graph:
        return _Lowering(self.placement, self.choices, self.config, self.names).run(body)

    def _layout(self, node: Node) -> Node:
        """The same movement of integers; a conversion between float dtypes moves nothing."""
        x = self.as_int(node.inputs[0])
        if node.op == "convert_element_type":
            return x
        qtype = self.qtype(node)
        aval = Aval(node.aval.shape, np.dtype(qtype.dtype))
        if node.op == "pad":
            inputs: tuple[Node, ...] = (x, constant(np.array(qtype.zero_point, qtype.dtype)))
        elif node.op in ("dynamic_slice", "gather"):
            inputs = (x, *(self.as_float(index) for index in node.inputs[1:]))
        else:
            inputs = tuple(self.as_int(source) for source in node.inputs)
        return node.replace(inputs=inputs, aval=aval, qtype=qtype)

    def _residual(self, node: Node, residual: Node) -> Node:
        """As integers where it exists so, or where the output does; a residual between float values stays float."""
        if residual.is_constant:
            return residual
        groups, int8 = self.placement.groups, self.placement.int8
        as_int = node in groups or (residual in int8 and residual in groups)
        return self.as_int(residual) if as_int else self.as_float(residual)

    def _accumulating(self, node: Node) -> Node:
        channels = node.aval.shape[-1]
        by_row = node in self.placement.by_row
        source = node.operand("x")
        padded, x = self._padded(node, self.as_rows(source) if by_row else self.as_int(source))
        qtype = self.qtype(node) if node in self.placement.groups else None
        scale_out = qtype.scale if qtype else 1.0
        smallest, largest = numerics.BOUNDS[qtype.dtype] if qtype else (-np.inf, np.inf)
        zero_out = qtype.zero_point if qtype else 0
        assert x.qtype is not None

        if node.op in WEIGHTED:
            weight, scale_weight = self._weight(node, x.qtype)
            multiplier = np.max(x.qtype.scale) * scale_weight / scale_out
            levels = np.sum(
                weight.value, axis=1 if node.op == "dot" else tuple(range(weight.value.ndim - 1)), dtype=int
            )
        else:
            weight = None
            multiplier = np.broadcast_to(x.qtype.scale / np.asarray(scale_out, np.float64), channels)
            levels = terms(node)
        y = None
        if (other := node.get("y")) is not None:
            y = self.as_int(other)
            multiplier = multiplier * y.qtype.scale  # type: ignore[union-attr]
        if (scale := node.get("scale")) is not None:
            multiplier = multiplier * scale.value
        bias = self._bias(node) / scale_out + zero_out
        if x.qtype.zero_point:
            bias = bias - multiplier * x.qtype.zero_point * levels
        operands: dict[str, Node | None] = {"x": x, "weight": weight, "y": y}
        residual, residual_multiplier = None, None
        if (shortcut := node.get("residual")) is not None:
            residual = self._residual(node, shortcut)
            of = residual.qtype or QType("int8", 1.0)
            residual_multiplier = constant(np.float32(of.scale / scale_out))
            bias = bias - of.scale / scale_out * of.zero_point

        def vector(value: np.ndarray | float, role: str) -> Node:
            return constant(np.broadcast_to(np.asarray(value, np.float32), (channels,)).copy(), f"{node.name}/{role}")

        lo, hi = (np.clip(node.attrs[end] / scale_out + zero_out, smallest, largest) for end in ("lo", "hi"))
        vectors = {"multiplier": multiplier, "bias": bias, "lo": lo, "hi": hi}
        operands |= {role: vector(value, role) for role, value in vectors.items()}
        operands["row_scale"] = x.operand("row_scale") if by_row else None
        operands |= {"residual": residual, "residual_multiplier": residual_multiplier}
        dtype = np.dtype(qtype.dtype) if qtype else node.aval.dtype
        words = self._weight_words(node) + (("per token",) if by_row else ()) + fused_words(node)
        words += ("requantize",) if qtype else ()
        return padded.with_operands(operands, aval=Aval(node.aval.shape, dtype), qtype=qtype, fused=words)

    def _weight_only(self, node: Node) -> Node:
        how = self.config.for_weights(node.name)
        levels, scale = self.choices.weights.get(node.name) or grouped_weight(node, self.config)
        packed = levels if how.weight_bits == 8 else numerics.pack_int4(levels)
        bias, residual = None, node.get("residual")
        if node.get("bias") is not None or node.name in self.choices.biases:
            vector = np.broadcast_to(np.asarray(self._bias(node), np.float32), node.aval.shape[-1:])
            bias = constant(vector.copy(), f"{node.name}/bias")
        operands = {
            "x": self.as_float(node.operand("x")),
            "weight": constant(packed, f"{node.name}/weight"),
            "scale": constant(scale, f"{node.name}/scale"),
            "bias": bias,
            "residual": None if residual is None else self.as_float(residual),
        }
        attrs = {**node.attrs, "bits": how.weight_bits, "group_size": how.group_size}
        return node.replace(op="weight_only_dot", attrs=attrs).with_operands(operands, fused=fused_words(node))

    def _weight_words(self, node: Node) -> tuple[str, ...]:
        is_int4 = node.op in WEIGHTED and self.config.for_weights(node.name).weight_bits == 4
        return (INT4_WEIGHT,) if is_int4 else ()

    def _padded(self, node: Node, x: Node) -> tuple[Node, Node]:
        """The node and its input; padded beforehand where a real zero is another integer than 0."""
        assert x.qtype is not None
        if node.op != "conv" or not x.qtype.zero_point or not any(map(any, node.attrs["padding"])):
            return node, x
        rank, dilation = len(node.attrs["padding"]), node.attrs["lhs_dilation"]
        spatial = ((lo, hi, d - 1) for (lo, hi), d in zip(node.attrs["padding"], dilation, strict=True))
        config = ((0, 0, 0), *spatial, (0, 0, 0))
        n, *sizes, c = x.aval.shape
        dilated = ((size - 1) * d + 1 for size, d in zip(sizes, dilation, strict=True))
        sizes = [low + size + high for size, (low, high) in zip(dilated, node.attrs["padding"], strict=True)]
        if (x, config) not in self.pads:  # layers that read one value merge if they read one padded value, too
            inputs = (x, constant(np.array(x.qtype.zero_point, x.qtype.dtype)))
            aval, name = Aval((n, *sizes, c), x.aval.dtype), f"{node.name}/pad"
            padded = Node("pad", inputs, {"padding_config": config}, aval, name, qtype=x.qtype, scope=node.scope)
            self.pads[x, config] = padded
        return node.with_attrs(padding=((0, 0),) * rank, lhs_dilation=(1,) * rank), self.pads[x, config]

    def _bias(self, node: Node) -> np.ndarray:
        bias = node.get("bias")
        given = np.zeros(node.aval.shape[-1]) if bias is None else bias.value.astype(np.float64)
        return given + self.choices.biases.get(node.name, 0.0)

    def _weight(self, node: Node, x: QType) -> tuple[Node, np.ndarray]:
        chosen = self.choices.weights.get(node.name)
        weight, scale = quantized_weight(node, self.config, x.scale) if chosen is None else chosen
        return constant(weight, f"{node.name}/weight").replace(qtype=QType("int8", scale)), scale


def zero_point(qtype: QType) -> Node | None:
    """The operand of a border between floats and such integers, where they have a zero point."""
    return constant(np.float32(qtype.zero_point)) if qtype.zero_point else None


def quantized_weight(
    node: Node, config: QuantConfig, scale_x: float | np.ndarray = 1.0, method: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The weight of a float conv or dot in int8, in the op's own layout, and its scales, float64, one a channel; by an
    input whose channels may have scales of their own, and by another method than the config's if one is given."""
    value = scaled_weight(node, node.operand("weight").value, scale_x)
    by_channel = value if node.op == "conv" else value.T
    how = config.for_weights(node.name)
    quantized, scale = numerics.quantize_weight(
        by_channel,
        method=method or how.weight_method,
        per_channel=how.weight_scales == "channel",
        bits=how.weight_bits,
    )
    return quantized if node.op == "conv" else np.ascontiguousarray(quantized.T), scale


def grouped_weight(node: Node, config: QuantConfig, method: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The weight of a weight-only dot as int8 levels (N, K), and their float32 scale (N, groups)."""
    how, value = config.for_weights(node.name), np.asarray(node.operand("weight").value, np.float32)
    return numerics.quantize_groups(
        value, group_size=how.group_size, method=method or how.weight_method, bits=how.weight_bits
    )


def scaled_weight(node: Node, weight: Any, scale_x: Any) -> Any:
    """The weight of a conv or dot by the scale of each channel of its input relative to the largest."""
    if np.ndim(scale_x) == 0:
        return weight
    relative = scale_x / scale_x.max()
    if node.op == "dot":
        return weight * relative
    groups, features = node.attrs["groups"], weight.shape[-1]
    return weight * relative.reshape(groups, -1).T.repeat(features // groups, axis=1)


# What is fused into an int8 conv or dot whose weights have 4 bits.
INT4_WEIGHT = "weight:int4"
# In the order in which an epilogue does them.
EPILOGUE_WORDS = ("per token", "bias", "residual", "relu", "relu6", "clip", "requantize")


def fused_words(node: Node) -> tuple[str, ...]:
    """What an accumulating float op does after its sum, in order."""
    words = [role for role in ("bias", "residual") if node.get(role) is not None]
    lo, hi = node.attrs["lo"], node.attrs["hi"]
    if (lo, hi) != (-np.inf, np.inf):
        words.append({(0.0, np.inf): "relu", (0.0, 6.0): "relu6"}.get((lo, hi), "clip"))
    return tuple(words)
