"""The placed float graph to the int8 graph: weights quantized, borders inserted, every epilogue's constants computed.

With x = s_x * q_x and w[c] = s_w[c] * q_w[c], an accumulating op with scale[c], bias[c] and a residual r = s_r * q_r is

    y / s_y = acc * (s_x * s_w[c] * scale[c] / s_y) + bias[c] / s_y + q_r * (s_r / s_y)

clipped to [max(lo / s_y, smallest level), min(hi / s_y, largest level)]. A float output has s_y = 1 and no levels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from jaxq import numerics
from jaxq.config import QuantConfig
from jaxq.graph.node import ACCUMULATING, WEIGHTED, Aval, Graph, Node, QType, constant
from jaxq.passes.place import LAYOUT, Placement


def lower(graph: Graph, placement: Placement, thresholds: Mapping[str, float], config: QuantConfig) -> Graph:
    """The int8 graph.

    Args:
      graph: the folded and fused float graph.
      placement: of its nodes.
      thresholds: for every scale group's name the largest magnitude that its scale covers.
      config: how weights are quantized.
    """
    return _Lowering(placement, thresholds, config).run(graph)


@dataclass
class _Lowering:
    """Every float node's counterparts: `as_float` and `as_int` make the border where only the other exists."""

    placement: Placement
    thresholds: Mapping[str, float]
    config: QuantConfig
    floats: dict[Node, Node] = field(default_factory=dict)
    ints: dict[Node, Node] = field(default_factory=dict)

    def run(self, graph: Graph) -> Graph:
        """The int8 graph of a graph or a body, which takes and gives floats."""
        for node in graph.inputs:
            self.floats[node] = node
        for node in graph.nodes:
            if node in self.floats:
                continue
            if node not in self.placement.int8:
                moved = node if node.is_constant else self._float(node)
                self.floats[node] = moved
            elif node.op in LAYOUT:
                self.ints[node] = self._layout(node)
            else:
                lowered = self._accumulating(node)
                (self.ints if node in self.placement.groups else self.floats)[node] = lowered
        return Graph(graph.inputs, tuple(self.as_float(node) for node in graph.outputs))

    def qtype(self, node: Node) -> QType:
        group = self.placement.groups[node]
        return QType(group.dtype, self.thresholds[group.name] / numerics.largest_level(group.dtype))

    def as_float(self, node: Node) -> Node:
        if node not in self.floats:
            source = self.ints[node]
            assert source.qtype is not None
            scale = constant(np.float32(source.qtype.scale))
            self.floats[node] = Node(
                "dequantize",
                (source, scale),
                {},
                node.aval,
                f"{node.name}/dequantize",
                ("x", "scale"),
                scope=node.scope,
            )
        return self.floats[node]

    def as_int(self, node: Node) -> Node:
        if node not in self.ints:
            qtype = self.qtype(node)
            multiplier = constant(np.float32(1.0 / qtype.scale))
            aval = Aval(node.aval.shape, np.dtype(qtype.dtype))
            inputs = (self.floats[node], multiplier)
            name = f"{node.name}/quantize"
            self.ints[node] = Node("quantize", inputs, {}, aval, name, ("x", "multiplier"), qtype, node.scope)
        return self.ints[node]

    def _float(self, node: Node) -> Node:
        inputs = tuple(self.as_float(source) for source in node.inputs)
        fused = fused_words(node) if node.op in ACCUMULATING else ()
        reason = self.placement.reasons.get(node, "")
        return node.with_bodies(self._body).replace(inputs=inputs, reason=reason, fused=fused)

    def _body(self, body: Graph) -> Graph:
        return _Lowering(self.placement, self.thresholds, self.config).run(body)

    def _layout(self, node: Node) -> Node:
        """The same movement of integers; a conversion between float dtypes moves nothing."""
        x = self.as_int(node.inputs[0])
        if node.op == "convert_element_type":
            return x
        qtype = self.qtype(node)
        aval = Aval(node.aval.shape, np.dtype(qtype.dtype))
        if node.op == "pad":
            inputs: tuple[Node, ...] = (x, constant(np.zeros((), qtype.dtype)))
        else:
            inputs = tuple(self.as_int(source) for source in node.inputs)
        return node.replace(inputs=inputs, aval=aval, qtype=qtype)

    def _residual(self, node: Node, residual: Node) -> Node:
        """As integers where it exists so, or where the output does; a residual between float values stays float."""
        only_int = residual in self.ints and residual not in self.floats
        return self.as_int(residual) if only_int or node in self.placement.groups else self.as_float(residual)

    def _accumulating(self, node: Node) -> Node:
        channels = node.aval.shape[-1]
        x = self.as_int(node.operand("x"))
        qtype = self.qtype(node) if node in self.placement.groups else None
        scale_out = qtype.scale if qtype else 1.0
        smallest, largest = numerics.BOUNDS[qtype.dtype] if qtype else (-np.inf, np.inf)

        multiplier = np.full(channels, x.qtype.scale / scale_out, np.float64)  # type: ignore[union-attr]
        weight = None
        if node.op in WEIGHTED:
            weight, scale_weight = self._weight(node)
            multiplier = multiplier * scale_weight
        if (scale := node.get("scale")) is not None:
            multiplier = multiplier * scale.value
        bias_node = node.get("bias")
        bias = np.zeros(channels) if bias_node is None else bias_node.value.astype(np.float64) / scale_out
        lo, hi = np.clip([node.attrs["lo"] / scale_out, node.attrs["hi"] / scale_out], smallest, largest)

        def vector(value: np.ndarray | float, role: str) -> Node:
            return constant(np.broadcast_to(np.asarray(value, np.float32), (channels,)).copy(), f"{node.name}/{role}")

        operands: dict[str, Node | None] = {
            "x": x,
            "weight": weight,
            "multiplier": vector(multiplier, "multiplier"),
            "bias": vector(bias, "bias"),
            "lo": vector(lo, "lo"),
            "hi": vector(hi, "hi"),
        }
        if (shortcut := node.get("residual")) is not None:
            residual = self._residual(node, shortcut)
            scale_residual = residual.qtype.scale if residual.qtype else 1.0
            operands["residual"] = residual
            operands["residual_multiplier"] = constant(np.float32(scale_residual / scale_out))
        dtype = np.dtype(qtype.dtype) if qtype else node.aval.dtype
        words = fused_words(node) + (("requantize",) if qtype else ())
        return node.with_operands(operands, aval=Aval(node.aval.shape, dtype), qtype=qtype, fused=words)

    def _weight(self, node: Node) -> tuple[Node, np.ndarray]:
        value = node.operand("weight").value
        by_channel = value if node.op == "conv" else value.T
        method, scales = self.config.for_weights(node.name)
        quantized, scale = numerics.quantize_weight(by_channel, method=method, per_channel=scales == "channel")
        stored = quantized if node.op == "conv" else np.ascontiguousarray(quantized.T)
        return constant(stored, f"{node.name}/weight").replace(qtype=QType("int8", scale)), scale


# In the order in which an epilogue does them.
EPILOGUE_WORDS = ("bias", "residual", "relu", "relu6", "clip", "requantize")


def fused_words(node: Node) -> tuple[str, ...]:
    """What an accumulating float op does after its sum, in order."""
    words = [role for role in ("bias", "residual") if node.get(role) is not None]
    lo, hi = node.attrs["lo"], node.attrs["hi"]
    if (lo, hi) != (-np.inf, np.inf):
        words.append({(0.0, np.inf): "relu", (0.0, 6.0): "relu6"}.get((lo, hi), "clip"))
    return tuple(words)
