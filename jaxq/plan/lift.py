"""A plan's layers back in float, on dequantized weights: what int8 is timed beside, and what a file that is tuned holds
of the layers where int8 loses. Its results are near the float model's, not equal to them.

A value is the real number that its integer stands for, s * q. The epilogue of an int8 node, in units of s,

    y / s = acc * multiplier + bias + r * residual_multiplier

on real operands, of the scales s_x (of several, the largest), s_w (or that of the second value) and s_r, is

    y = sum * (multiplier * s / (s_x * s_w)) + bias * s + residual * (residual_multiplier * s / s_r)

where both factors in brackets are 1 unless the op has a scale of its own, such as a mean. An activation keeps its
bounds. A function that int8 has as a table is the function of its name, if that has the table's values up to a factor;
else it stays a table.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq import numerics
from jaxq.graph.evaluate import float_weight
from jaxq.graph.node import BORDERS, WEIGHTED, Aval, Graph, Names, Node, constant, is_int8
from jaxq.graph.trace import trace
from jaxq.passes.elementwise import WORDS, is_skewed
from jaxq.passes.lower import fused_words, scaled_weight, zero_point
from jaxq.passes.parameters import name_parameters
from jaxq.passes.place import terms

Function = Callable[[Any], Any]

_FLOAT32 = np.dtype(np.float32)


def is_liftable(node: Node) -> bool:
    """Whether the node is quantized and has a form in float: no border, nor a table without a name."""
    if node.op == "weight_only_dot":
        return True
    return is_int8(node) and node.op not in BORDERS and (node.get("table") is None or _function(node) is not None)


def lift(graph: Graph, reasons: Mapping[str, str] | None = None) -> Graph:
    """The int8 graph with nodes in float, and with the borders that this takes.

    Args:
      reasons: {name of a node that goes to float: why}, in bodies too; all that have a form in float unless given.
    """
    names = Names()
    for node in graph.all_nodes:
        names.unique(node.name)
    return name_parameters(_Lifting(reasons, names).run(graph))


@dataclass
class _Lifting:
    """What stands for each node of the int8 graph: `same` is a value of its own dtype, `real` the number that its
    integers stand for, in float32. Where only one of the two exists, `as_same` and `as_real` make the border."""

    reasons: Mapping[str, str] | None
    names: Names
    same: dict[Node, Node] = field(default_factory=dict)
    real: dict[Node, Node] = field(default_factory=dict)

    def run(self, graph: Graph) -> Graph:
        """The graph, or a body, which takes and gives floats."""
        for node in dict.fromkeys((*graph.inputs, *graph.nodes)):
            if node.is_constant or node.op == "input":
                self.same[node] = node
            elif node.op in ("quantize", "quantize_rows"):
                self.real[node] = self.cast(self.as_same(node.operand("x")), _FLOAT32)
            elif node.op == "dequantize" and node.operand("x") in self.real:
                self.same[node] = self.cast(self.real[node.operand("x")], node.aval.dtype)
            elif self.is_float(node):
                lifted = self.lifted(node)
                (self.same if node.qtype is None else self.real)[node] = lifted
            else:
                moved = node.replace(inputs=tuple(self.as_same(source) for source in node.inputs))
                self.same[node] = moved.with_bodies(lambda body: _Lifting(self.reasons, self.names).run(body))
        inputs = tuple(self.same[node] for node in graph.inputs)
        return Graph(inputs, tuple(self.as_same(node) for node in graph.outputs))

    def is_float(self, node: Node) -> bool:
        return (self.reasons is None or node.name in self.reasons) and is_liftable(node)

    def as_same(self, node: Node) -> Node:
        if node not in self.same:
            assert node.qtype is not None
            name = node.name if node.op == "quantize" else self.names.unique(f"{node.name}/quantize")
            multiplier = constant(np.asarray(1.0 / np.asarray(node.qtype.scale), np.float32), f"{name}/multiplier")
            border = Node("quantize", (), {}, node.aval, name, qtype=node.qtype, scope=node.scope)
            operands = {"x": self.real[node], "multiplier": multiplier, "zero_point": zero_point(node.qtype)}
            self.same[node] = border.with_operands(operands)
        return self.same[node]

    def as_real(self, node: Node) -> Node:
        if node.qtype is None:
            return self.cast(self.as_same(node), _FLOAT32)
        if node not in self.real:
            name = self.names.unique(f"{node.name}/dequantize")
            scale = constant(np.asarray(node.qtype.scale, np.float32), f"{name}/scale")
            aval = Aval(node.aval.shape, _FLOAT32)
            border = Node("dequantize", (), {}, aval, name, scope=node.scope)
            operands = {"x": self.as_same(node), "scale": scale, "zero_point": zero_point(node.qtype)}
            self.real[node] = border.with_operands(operands)
        return self.real[node]

    def cast(self, node: Node, dtype: np.dtype) -> Node:
        if node.aval.dtype == dtype:
            return node
        name = self.names.unique(f"{node.name}/convert")
        aval, attrs = Aval(node.aval.shape, dtype), {"new_dtype": dtype.name}
        return Node("convert_element_type", (node,), attrs, aval, name, scope=node.scope, reason=node.reason)

    def made(self, node: Node, op: str, inputs: tuple[Node, ...], attrs: Mapping[str, Any], aval: Aval) -> Node:
        """One more op of the layer."""
        name = self.names.unique(f"{node.name}/{op}")
        return Node(op, inputs, attrs, aval, name, scope=node.scope, reason=self.reason(node))

    def reason(self, node: Node) -> str:
        return "" if self.reasons is None else self.reasons[node.name]

    def lifted(self, node: Node) -> Node:
        """The real value of the node; of its own dtype where that is float."""
        if node.op == "table":
            return self.applied(node, self.as_real(node.operand("x")))
        if node.op == "weight_only_dot":
            return self.dot(node)
        if "multiplier" in node.roles:
            return self.cast(self.accumulating(node), _FLOAT32 if node.qtype is not None else node.aval.dtype)
        moved = 1 if node.op in ("dynamic_slice", "gather", "pad") else len(node.inputs)  # the others are no data
        inputs = (*map(self.as_real, node.inputs[:moved]), *map(self.as_same, node.inputs[moved:]))
        if node.op == "pad":
            inputs = (inputs[0], constant(np.float32(0)))
        aval = Aval(node.aval.shape, _FLOAT32)
        return node.replace(inputs=inputs, aval=aval, qtype=None, reason=self.reason(node))

    def dot(self, node: Node) -> Node:
        """A weight-only dot with its float weight."""
        given = {role: self.as_same(source) for role, source in zip(node.roles, node.inputs, strict=True)}
        weight = np.asarray(float_weight(node, given["weight"].value, given.pop("scale").value))
        given["weight"] = self.vector(weight, node, "weight")
        attrs = {name: node.attrs[name] for name in ("precision", "lo", "hi")}
        return node.replace(op="dot", attrs=attrs, reason=self.reason(node)).with_operands(given)

    def accumulating(self, node: Node) -> Node:
        unit = _unit(node)
        s = 1.0 if unit is None else unit
        other = node.get("weight") or node.get("y")
        factor = _constant(node, "multiplier") * s / _scale_of_sum(node)
        operands: dict[str, Node | None] = {"x": self.as_real(node.operand("x"))}
        if node.op in WEIGHTED:
            operands["weight"] = self.vector(_weight(node) * _per_feature(node, factor), node, "weight")
        else:
            operands["y"] = None if other is None else self.as_real(other)
            operands["scale"] = None if _is_one(factor) else self.vector(factor, node, "scale")
        operands["bias"] = self.vector((_constant(node, "bias") + _zero_points(node)) * s, node, "bias")
        if (residual := node.get("residual")) is not None:
            factor = _constant(node, "residual_multiplier") * s / _scale(residual)
            operands["residual"] = self.times(node, self.as_real(residual), factor)
        lo, hi = _bounds(node, s)
        is_uniform = bool(np.all(lo == lo[0]) and np.all(hi == hi[0]))
        bounds = {"lo": float(lo[0]), "hi": float(hi[0])} if is_uniform else {"lo": -np.inf, "hi": np.inf}
        aval = Aval(node.aval.shape, _FLOAT32)
        y = node.replace(attrs={**node.attrs, **bounds}, aval=aval, qtype=None, reason=self.reason(node))
        y = y.with_operands(operands)
        y = y.replace(fused=fused_words(y))
        if not is_uniform:
            for op, bound in (("max", lo), ("min", hi)):
                y = self.made(node, op, (y, self.spread(node, bound, op)), {}, aval)
        return y if node.get("table") is None else self.applied(node, y)

    def times(self, node: Node, x: Node, factor: np.ndarray) -> Node:
        return x if _is_one(factor) else self.made(node, "mul", (x, constant(np.float32(factor))), {}, x.aval)

    def vector(self, value: np.ndarray, node: Node, role: str) -> Node:
        return constant(np.asarray(value, np.float32), f"{node.name}/{role}")

    def spread(self, node: Node, vector: np.ndarray, role: str) -> Node:
        """A number for each channel, broadcast."""
        shape = node.aval.shape
        attrs = {"shape": shape, "broadcast_dimensions": (len(shape) - 1,)}
        inputs = (self.vector(vector, node, f"{role}_bound"),)
        return self.made(node, "broadcast_in_dim", inputs, attrs, Aval(shape, _FLOAT32))

    def applied(self, node: Node, x: Node) -> Node:
        """The function of the node's table, op by op."""
        function = _function(node)
        assert function is not None
        body = _traced(function)
        new: dict[Node, Node] = {body.inputs[0]: x}
        for inner in body.nodes:
            if inner.is_constant:
                new[inner] = inner
            elif inner not in new:
                inputs = tuple(new[source] for source in inner.inputs)
                new[inner] = self.made(node, inner.op, inputs, *_reshaped(inner, node.aval.shape))
        return new[body.outputs[0]]


# ------------------------------------------------------------------------------------------------------------- factors


def _scale(node: Node | None) -> Any:
    return 1.0 if node is None or node.qtype is None else node.qtype.scale


def _constant(node: Node, role: str) -> np.ndarray:
    return np.asarray(node.operand(role).value, np.float64)


def _zero_point(node: Node | None) -> int:
    return 0 if node is None or node.qtype is None else node.qtype.zero_point


def _zero_points(node: Node) -> Any:
    """What the node's bias holds less than that of real numbers, for the zero points (`passes/lower.py`)."""
    total: Any = -_zero_of_sum(node)
    if x := _zero_point(node.operand("x")):
        weight = node.get("weight")
        summed = (1,) if node.op == "dot" else tuple(range(len(node.aval.shape) - 1))
        levels = terms(node) if weight is None else np.sum(weight.value, summed, dtype=np.int64)
        total = total + _constant(node, "multiplier") * x * levels
    residual = node.get("residual")
    return total + (_zero_point(residual) * _constant(node, "residual_multiplier") if residual is not None else 0)


def _scale_of_sum(node: Node) -> Any:
    """s_x * s_w, of each channel where they differ."""
    scale = _scale(node.operand("x"))
    largest = np.max(scale) if node.op in WEIGHTED else scale
    return largest * np.asarray(_scale(node.get("weight") or node.get("y")))


def _weight(node: Node) -> np.ndarray:
    """The real one: what scales the channels of x have is in the integers."""
    weight = node.operand("weight")
    relative = scaled_weight(node, np.ones(weight.value.shape), _scale(node.operand("x")))
    return np.asarray(weight.value / relative) * _per_feature(node, np.asarray(_scale(weight)))


def _per_feature(node: Node, factor: np.ndarray) -> np.ndarray:
    """One factor for each output channel, as it multiplies the weight; exactly 1 where it is 1 but for rounding."""
    return np.where(np.isclose(factor, 1, rtol=1e-5), 1.0, factor).reshape((-1,) if node.op == "conv" else (-1, 1))


def _is_one(factor: np.ndarray) -> bool:
    return bool(np.allclose(factor, 1, rtol=1e-5))


def _unit(node: Node) -> Any:
    """s; before a table that of the table's input, which a conv or dot tells and nothing else (None)."""
    if node.get("table") is None:
        return _scale(node)
    if node.op not in WEIGHTED:
        return None
    return float(np.median(_scale_of_sum(node) / _constant(node, "multiplier")))


def _bounds(node: Node, s: Any) -> tuple[np.ndarray, np.ndarray]:
    """The activation's by channel; infinite where there is none, as the integers' own bounds stand in its place."""
    clips = bool({"relu6", "clip"} & {*node.fused})
    infinite = np.full(node.aval.shape[-1:], np.inf)
    zero = _zero_of_sum(node)
    lo = (_constant(node, "lo") - zero) * s if clips or "relu" in node.fused else -infinite
    return lo, (_constant(node, "hi") - zero) * s if clips else infinite


# ----------------------------------------------------------------------------------------------------------- functions


def _function(node: Node) -> Function | None:
    """The function of a node's table, or of that of its epilogue; None for one of no name, or of an input whose scale
    nobody knows."""
    x = node.operand("x")
    if node.op == "table":
        word, dtype, scale, zero = node.attrs["word"], x.aval.dtype.name, _scale(x), _zero_point(x)
    else:
        word, dtype, scale, zero = node.fused[-2], "int8", _unit(node), _zero_of_sum(node)
    if scale is None:
        return None
    with jax.ensure_compile_time_eval():
        table, step = np.asarray(node.operand("table").value), float(_scale(node))
        return named(word, (numerics.levels(dtype) - zero) * scale, table, step, _zero_point(node))


def _zero_of_sum(node: Node) -> int:
    """The zero point of an int8 sum; before the table of a function that has a floor that with which the table is most
    nearly the function, which nothing else tells."""
    if node.get("table") is None:
        return _zero_point(node)
    scale, word, table = _unit(node), node.fused[-2], np.asarray(node.operand("table").value)
    if scale is None or not is_skewed(word):
        return 0
    zeros = np.arange(-127, 128)
    x = (numerics.levels("int8") - zeros[:, None]) * scale
    with jax.ensure_compile_time_eval():
        f = np.asarray(WORDS[word](jnp.asarray(x, jnp.float32)), np.float64) * _inside(table)
    y = (table.astype(np.float64) - _zero_point(node)) * _inside(table)
    errors = np.sum(y * y) - (f @ y) ** 2 / np.maximum(np.sum(f * f, axis=1), np.finfo(np.float64).tiny)
    best = int(np.argmin(errors))
    step = float(_scale(node))
    return int(zeros[best]) if named(word, x[best], table, step, _zero_point(node)) is not None else 0


def named(word: str, x: np.ndarray, table: np.ndarray, step: float, zero_point: int = 0) -> Function | None:
    """factor * f(x) or factor * f(-x), f the word's function, if it is within a step of the table's values at the 256
    real numbers x; None for any other."""
    y = (table.astype(np.int32) - zero_point) * step
    inside = _inside(table)
    if word == "leaky_relu":
        slopes = [_fit(x[part], y[part]) for part in (inside & (x < 0), inside & (x >= 0))]
        candidates: list[Function] = [lambda x: jnp.where(x < 0, x * slopes[0], x * slopes[1])]
    elif word in WORDS:
        candidates = []
        for sign in (1.0, -1.0):
            f = _signed(WORDS[word], np.float32(sign))
            factor = _fit(np.asarray(f(jnp.asarray(x, jnp.float32)))[inside], y[inside])
            candidates.append(_times(f, factor))
    else:
        return None
    for candidate in candidates:
        if np.all(np.abs(np.asarray(candidate(jnp.asarray(x, jnp.float32))) - y)[inside] <= step):
            return candidate
    return None


def _inside(table: np.ndarray) -> np.ndarray:
    """Which of the entries are certainly not cut off."""
    return np.abs(table.astype(np.int32)) < numerics.largest_level(table.dtype.name)


def _signed(f: Function, sign: np.float32) -> Function:
    return lambda x: f(x * sign)


def _times(f: Function, factor: np.float32) -> Function:
    return lambda x: f(x) * factor


def _fit(x: np.ndarray, y: np.ndarray) -> np.float32:
    """The factor that takes x nearest to y."""
    x = x.astype(np.float64)
    return np.float32(np.sum(x * y) / max(float(np.sum(x * x)), np.finfo(np.float64).tiny))


# Stands for the shape of the value while its function is traced.
_SHAPE = (97,)


def _traced(function: Function) -> Graph:
    argument = jax.ShapeDtypeStruct(_SHAPE, _FLOAT32)
    return trace(lambda _, x: function(x), {}, (argument,)).graph.bind(*_SHAPE)


def _reshaped(inner: Node, shape: tuple[Any, ...]) -> tuple[dict[str, Any], Aval]:
    """The attributes and the value of an op of the function, for another shape."""
    attrs = {name: shape if value == _SHAPE else value for name, value in inner.attrs.items()}
    return attrs, Aval(shape if inner.aval.shape == _SHAPE else inner.aval.shape, inner.aval.dtype)
