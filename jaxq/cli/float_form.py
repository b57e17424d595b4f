"""A plan's int8 graph in float: each int8 node by its float form, on dequantized weights; what int8 is timed beside.

A value is the real number that its integer stands for, s * q. The epilogue of an int8 node, in units of s,

    y / s = acc * multiplier + bias + r * residual_multiplier

on real operands, of the scales s_x, s_w (or that of the second value) and s_r, is

    y = sum * (multiplier * s / (s_x * s_w)) + bias * s + residual * (residual_multiplier * s / s_r)

where both factors in brackets are 1 unless the op has a scale of its own, such as a mean. An activation keeps its
bounds. Functions that int8 has as tables are computed as the function of their name, if it has the table's values
up to a factor; else they stay tables, which costs the float form a rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq import numerics
from jaxq.graph.evaluate import accumulate, reference
from jaxq.graph.node import WEIGHTED, Graph, Node, is_int8
from jaxq.passes.elementwise import WORDS

Function = Callable[[Any], Any]


def parameters(graph: Graph) -> dict[str, Any]:
    """The graph's parameters with every int8 weight dequantized, float32."""
    params = dict(graph.params)
    for node in graph.all_nodes:
        if node.op in WEIGHTED and is_int8(node):
            weight = node.operand("weight")
            if weight.op == "param":
                axes = (-1,) if node.op == "conv" else (-1, 1)
                params[weight.name] = weight.value * np.float32(_scale(weight)).reshape(axes)
    return params


def lower(node: Node) -> Callable[..., Any]:
    """The node's function of its operands' real values."""
    if not is_int8(node):
        return reference(node)
    if node.op in ("quantize", "dequantize"):
        dtype = jnp.float32 if node.op == "quantize" else node.aval.dtype
        return lambda x, _: x.astype(dtype)
    if node.op == "table":
        function = _tabled(node).function
        return lambda x, _: function(x.astype(jnp.float32))
    if "multiplier" in node.roles:
        return _accumulating(node)
    moved = 1 if node.op in ("dynamic_slice", "gather") else len(node.inputs)  # the others are indices
    move = reference(node)
    return lambda *xs: move(*(x.astype(jnp.float32) for x in xs[:moved]), *xs[moved:])


def unnamed(graph: Graph) -> list[str]:
    """The nodes whose function stays a table."""
    tables = (node for node in graph.all_nodes if node.get("table") is not None)
    return [node.name for node in tables if not _tabled(node).has_name]


def _scale(node: Node) -> Any:
    return 1.0 if node.qtype is None else node.qtype.scale


def _constant(node: Node, role: str) -> np.ndarray:
    return np.asarray(node.operand(role).value, np.float64)


def _other(node: Node) -> Any:
    """The scale of what x is multiplied by."""
    operand = node.get("weight") or node.get("y")
    return 1.0 if operand is None else _scale(operand)


def _unit(node: Node) -> Any:
    """s; before a table that of the table's input, which a conv or dot tells and nothing else (None)."""
    if node.get("table") is None:
        return _scale(node)
    if node.op not in WEIGHTED:
        return None
    return float(np.median(_scale(node.operand("x")) * np.asarray(_other(node)) / _constant(node, "multiplier")))


def _accumulating(node: Node) -> Callable[..., Any]:
    unit = _unit(node)
    s = 1.0 if unit is None else unit
    factor = _factor(_constant(node, "multiplier") * s / (_scale(node.operand("x")) * np.asarray(_other(node))))
    bias = np.float32(_constant(node, "bias") * s)
    residual_factor = None
    if (residual := node.get("residual")) is not None:
        residual_factor = _factor(_constant(node, "residual_multiplier") * s / _scale(residual))
    lo, hi = _bounds(node, s)
    function = None if node.get("table") is None else _tabled(node).function

    def run(*operands: Any) -> Any:
        given = dict(zip(node.roles, operands, strict=True))
        y = accumulate(node, given, jnp.float32)
        y = (y if factor is None else y * factor) + bias
        if residual is not None:
            r = given["residual"].astype(jnp.float32)
            y = y + (r if residual_factor is None else r * residual_factor)
        y = y if lo is None else jnp.maximum(y, lo)
        y = y if hi is None else jnp.minimum(y, hi)
        if function is not None:
            return function(y)
        return y if node.qtype is not None else y.astype(node.aval.dtype)

    return run


def _factor(value: np.ndarray) -> np.ndarray | None:
    """None for one that is 1 but for the rounding of its parts."""
    return None if np.allclose(value, 1, rtol=1e-5) else value.astype(np.float32)


def _bounds(node: Node, s: Any) -> list[np.ndarray | None]:
    """The activation's; None where there is none, as the integers' own bounds stand in its place."""
    clips = {"relu6", "clip"} & {*node.fused}
    present = (clips or "relu" in node.fused, clips)
    return [
        (_constant(node, role) * s).astype(np.float32) if there else None
        for role, there in zip(("lo", "hi"), present, strict=True)
    ]


@dataclass(frozen=True)
class _Tabled:
    """A table's function of real values, and whether it is one that has a name."""

    function: Function
    has_name: bool


def _tabled(node: Node) -> _Tabled:
    """The node's table, or that of its epilogue, where values are in its input's units if nobody knows its scale."""
    x = node.operand("x")
    if node.op == "table":
        word, dtype, scale = node.attrs["word"], x.aval.dtype.name, _scale(x)
    else:
        word, dtype, scale = node.fused[-2], "int8", _unit(node)
    table, step = np.asarray(node.operand("table").value), float(_scale(node))
    with jax.ensure_compile_time_eval():
        function = None if scale is None else named(word, numerics.levels(dtype) * scale, table, step)
    if function is not None:
        return _Tabled(function, True)
    multiplier = jnp.float32(1.0 if scale is None else 1.0 / scale)

    def looked_up(x: Any) -> Any:
        entries = numerics.lookup(numerics.quantize(x, multiplier, dtype=dtype), jnp.asarray(table))
        return entries.astype(jnp.float32) * jnp.float32(step)

    return _Tabled(looked_up, False)


def named(word: str, x: np.ndarray, table: np.ndarray, step: float) -> Function | None:
    """factor * f(x) or factor * f(-x), f the word's function, if it is within a step of the table's values at the 256
    real numbers x; None for any other."""
    y = table * step
    inside = np.abs(table.astype(np.int32)) < numerics.largest_level(table.dtype.name)  # the others may be cut off
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


def _signed(f: Function, sign: np.float32) -> Function:
    return lambda x: f(x * sign)


def _times(f: Function, factor: np.float32) -> Function:
    return lambda x: f(x) * factor


def _fit(x: np.ndarray, y: np.ndarray) -> np.float32:
    """The factor that takes x nearest to y."""
    x = x.astype(np.float64)
    return np.float32(np.sum(x * y) / max(float(np.sum(x * x)), np.finfo(np.float64).tiny))
