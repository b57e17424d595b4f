"""Softmax and layer norm as one node each, in whatever spelling: functions of a row, the last axis of a value.

A subgraph that reads one value and otherwise numbers, and whose ops are elementwise or reduce the last axis, is a
function of that value, row by row. It is run in numpy's float64 on rows of many magnitudes, and where it agrees there
with softmax or with a layer norm, it is that. The scale and bias per channel of a norm are no part of it: they go into
the layer behind it where they can, and else become the node's operands.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from jaxq.graph.node import Aval, Graph, Node, uniform
from jaxq.graph.rewrite import Match, Rule
from jaxq.passes.accumulating import OPEN, is_open, scaled, shifted

_RESHAPING = frozenset({"broadcast_in_dim", "reshape", "squeeze"})
_REDUCING = frozenset({"reduce_sum", "reduce_max"})
_ACCUMULATING = frozenset({"affine", "product"})
# The last op of softmax or a norm, exp(x - log(sum(exp(x)))) and x * a - mean * a among them.
_ENDS = frozenset({"div", "mul", "product", "exp", "sub", "add", "affine"})

# What keeps the cost linear: the most ops of a function, values that it may be a function of, and steps to the value
# that two operands have in common.
_MOST_OPS, _MOST_ROOTS, _MOST_STEPS = 64, 8, 32

# How far a function may be from softmax or a norm, relative to the largest number of the row: in float32 its own
# numbers, such as 1 / channels, are off by up to 6e-8.
_SAME = 5e-7


def recognise(graph: Graph) -> Graph:
    """The graph with every softmax and layer norm as one node. What else reads their parts keeps these."""
    flow = _Flow(graph)
    new: dict[Node, Node] = {}
    for node in (*graph.inputs, *graph.nodes):
        if node not in new:
            moved = node.replace(inputs=tuple(new[source] for source in node.inputs)).with_bodies(recognise)
            found = flow.function(node) if node.op in _ENDS else None
            new[node] = moved if found is None else _function(moved, new[found[0]], *found[1])
    return Graph(tuple(new[node] for node in graph.inputs), tuple(new[node] for node in graph.outputs))


def _function(node: Node, x: Node, op: str, attrs: Mapping[str, Any]) -> Node:
    """The function of x; what the epilogue of a product did is an affine map behind it."""
    function = node.replace(op=op, attrs=attrs).with_operands({"x": x})
    if not _has_epilogue(node):
        return function
    rest = {role: node.get(role) for role in ("scale", "bias", "residual")}
    bounds = {bound: node.attrs[bound] for bound in OPEN}
    function = function.replace(name=f"{node.name}/{op}")
    return node.replace(op="affine", attrs=bounds).with_operands({"x": function, **rest})


def _has_epilogue(node: Node) -> bool:
    return node.op == "product" and not (node.roles == ("x", "y") and is_open(node))


# --------------------------------------------------------------------------------------- the subgraphs of one value


@dataclass(frozen=True)
class _Step:
    """An op of a function of rows, without its epilogue. `operands` are nodes, and numbers as tuples of one; `space` is
    the shape of the value whose rows they belong to."""

    op: str
    settings: Any
    operands: tuple[Any, ...]
    space: tuple[Any, ...]


@dataclass
class _Flow:
    """`above`: of an op in `steps` the nearest value that it is a function of; `depth`: how many such values there are,
    above each of those that may stand inside a function."""

    graph: Graph
    steps: dict[Node, _Step] = field(default_factory=dict)
    above: dict[Node, Node] = field(default_factory=dict)
    depth: dict[Node, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.graph.nodes:
            step = self._step(node)
            root = None if step is None else functools.reduce(self._common, filter(_is_node, step.operands))
            if step is not None and root is not None:
                self.steps[node], self.above[node] = step, root
                if not _has_epilogue(node):
                    self.depth[node] = self.depth.get(root, 0) + 1

    def function(self, end: Node) -> "tuple[Node, _Named] | None":
        """The value that the node is softmax or a norm of. Of several the farthest: a layer norm of x is an RMS norm of
        x - mean too."""
        found = None
        for root in self._roots(end):
            program = self._program(end, root)
            named = None if program is None else _named(program, end.aval.shape[-1])
            if named is None and found is not None:
                break
            found = found if named is None else (root, named)
        return found

    def _step(self, node: Node) -> _Step | None:
        """The node as an op on the rows of one value, or None."""
        if node.is_constant or not isinstance(node.aval, Aval) or (settings := _settings(node)) is None:
            return None
        inputs = node.inputs[:2] if _has_epilogue(node) else node.inputs
        numbers = [uniform(source) for source in inputs]
        pairs = list(zip(inputs, numbers, strict=True))
        operands = tuple(source if number is None else (float(number),) for source, number in pairs)
        sources = [source for source, number in pairs if number is None]
        spaces = {self.steps[source].space if source in self.depth else source.aval.shape for source in sources}
        if len(spaces) != 1 or any(source.is_constant for source in sources):
            return None
        (space,) = spaces
        return _Step(node.op, settings, operands, space) if _is_by_row(node, sources, space) else None

    def _common(self, a: Node | None, b: Node | None) -> Node | None:
        """The nearest value that both are, or are functions of."""
        for _ in range(_MOST_STEPS):
            if a is b or a is None or b is None:
                return a if a is b else None
            if self.depth.get(a, 0) >= self.depth.get(b, 0):
                a = self._up(a)
            else:
                b = self._up(b)
        return None

    def _up(self, node: Node) -> Node | None:
        return self.above[node] if node in self.depth else None

    def _roots(self, end: Node) -> Iterator[Node]:
        """The values that the node is a function of, and that have its shape."""
        root = self.above.get(end)
        for _ in range(_MOST_ROOTS):
            if root is None:
                return
            if root.aval.shape == end.aval.shape == self.steps[end].space:
                yield root
            root = self._up(root)

    def _program(self, end: Node, root: Node) -> "tuple[_Line, ...] | None":
        """The function that takes the root to the end, or None where it is too long, sums nothing, or rounds what is in
        between to a coarser dtype."""
        index, stack = {root: 0}, [end]
        lines: list[_Line] = []
        while stack:
            node = stack[-1]
            missing = [source for source in self.steps[node].operands if _is_node(source) and source not in index]
            stack.extend(missing)
            if len(stack) + len(lines) > _MOST_OPS:
                return None
            if missing:
                continue
            stack.pop()
            if node not in index:
                step = self.steps[node]
                index[node] = len(index)
                operands = tuple(index[source] if _is_node(source) else source for source in step.operands)
                lines.append(_Line(step.op, step.settings, operands, node.aval.shape == step.space))
        if not any(line.op == "reduce_sum" for line in lines):
            return None
        is_as_fine = all(_unit(node) <= _unit(root) for node in index if node is not end)
        return tuple(lines) if is_as_fine else None


def _is_node(operand: Any) -> bool:
    return isinstance(operand, Node)


def _unit(node: Node) -> float:
    """The spacing of the numbers of the node's dtype at 1; 0 for booleans."""
    return _UNITS.get(node.aval.dtype.name, 0.0)


_UNITS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def _settings(node: Node) -> Any:
    """The attributes that say what the op computes, () for most; None for an op that is no part of such functions."""
    if node.op == "integer_pow":
        return node.attrs["y"]
    if _has_epilogue(node):
        return (("x", "y"), -np.inf, np.inf)
    if node.op in _ACCUMULATING:
        return (node.roles, node.attrs["lo"], node.attrs["hi"])
    if node.op == "convert_element_type" and not (node.aval.is_float and node.inputs[0].aval.is_float):
        return None
    return () if node.op in _OPS else None


def _is_by_row(node: Node, sources: Sequence[Node], space: tuple[Any, ...]) -> bool:
    """True for an op within the rows of a value of shape `space`: on all their elements, or on one number each."""
    if len(space) < 2 or not isinstance(space[-1], int) or space[-1] < 2:
        return False
    shape, shapes, flat = node.aval.shape, {source.aval.shape for source in sources}, space[:-1]
    column = (*flat, 1)
    if node.op in _REDUCING:
        return shapes == {space} and node.attrs["axes"] == (len(flat),)
    if node.op in _RESHAPING:
        (before,) = shapes
        in_place = node.attrs.get("broadcast_dimensions", tuple(range(len(before)))) == tuple(range(len(before)))
        return in_place and before in (flat, column) and shape in (flat, column, space)
    return shapes <= {space, column} and shape in (space, column) if shape != flat else shapes == {flat}


# ------------------------------------------------------------------------------------------------- what they compute


class _Line(NamedTuple):
    """One op of a program. `operands` are places, 0 for the argument and i for the result of the i-th line, and numbers
    as tuples of one; `full`: the result is one number for each element, not for each row."""

    op: str
    settings: Any
    operands: tuple[int | tuple[float], ...]
    full: bool


_Program = tuple[_Line, ...]
_Named = tuple[str, Mapping[str, Any]]

_OPS: dict[str, Callable[..., Any]] = {
    **{op: getattr(np, op) for op in ("exp", "exp2", "log", "log1p", "sqrt", "square", "abs")},
    **{"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power, "neg": np.negative},
    **{"max": np.maximum, "min": np.minimum, "is_finite": np.isfinite},
    **dict.fromkeys((*_RESHAPING, "stop_gradient", "copy", "name", "convert_element_type"), lambda x: x),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "select_n": lambda which, *cases: np.select([which == i for i in range(len(cases))], cases),
    "reduce_sum": lambda x: np.sum(x, -1, keepdims=True),
    "reduce_max": lambda x: np.max(x, -1, keepdims=True),
}


def _compute(line: _Line, *operands: Any) -> Any:
    if line.op == "integer_pow":
        return operands[0] ** float(line.settings)
    if line.op not in _ACCUMULATING:
        return _OPS[line.op](*operands)
    roles, lo, hi = line.settings
    given = dict(zip(roles, operands, strict=True))
    y = given["x"] * given.get("y", 1.0) * given.get("scale", 1.0) + given.get("bias", 0.0) + given.get("residual", 0.0)
    return np.clip(y, lo, hi)


def _run(program: _Program, x: np.ndarray) -> np.ndarray:
    values = [x]
    with np.errstate(all="ignore"):
        for line in program:
            operands = (values[item] if isinstance(item, int) else item[0] for item in line.operands)
            result = _compute(line, *operands)
            values.append(np.broadcast_to(result, x.shape) if line.full else result)
    return values[-1]


@functools.lru_cache(maxsize=1024)
def _named(program: _Program, channels: int) -> _Named | None:
    """The op that the program is and its attributes, or None. (The layers of a network are alike.)"""
    return _as_softmax(program, channels) or _as_layer_norm(program, channels)


def _rows(channels: int) -> np.ndarray:
    """Rows of all magnitudes, the smallest first, not around zero."""
    drawn = np.random.default_rng(0).normal(0.5, 1.0, (8, channels))
    return drawn * np.array([1e-8, 1e-5, 1e-3, 1e-1, 1.0, 30.0, 1e3, 1e5])[:, None]


def _agree(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.all(np.abs(found - expected) <= _SAME * np.max(np.abs(expected), -1, keepdims=True)))


def _as_softmax(program: _Program, channels: int) -> _Named | None:
    """A row may be masked, in part or as a whole."""
    x = _rows(channels)
    masked = np.where(np.arange(channels) % 2, x[4], np.finfo(np.float32).min)
    x = np.stack([*x, masked, np.full(channels, np.finfo(np.float32).min)])
    expected = np.exp(x - np.max(x, -1, keepdims=True))
    same = _agree(_run(program, x), expected / np.sum(expected, -1, keepdims=True))
    return ("softmax", {}) if same else None


def _as_layer_norm(program: _Program, channels: int) -> _Named | None:
    x = _rows(channels)
    y = _run(program, x)
    for center in (True, False):
        centered = x - np.mean(x, -1, keepdims=True) if center else x
        variance = np.mean(np.square(centered), -1, keepdims=True)
        epsilon = _epsilon(program, centered[0], float(variance[0, 0]), y[0])
        if _agree(y, centered / np.sqrt(variance + epsilon)):
            return "layer_norm", {"epsilon": epsilon, "center": center}
    return None


def _epsilon(program: _Program, centered: np.ndarray, variance: float, y: np.ndarray) -> float:
    """Epsilon from y = centered / sqrt(variance + epsilon), as the number of the program that it is."""
    with np.errstate(all="ignore"):
        epsilon = float(np.sum(np.square(centered)) / np.sum(np.square(y)) - variance)
    numbers = [0.0, *(item[0] for line in program for item in line.operands if not isinstance(item, int))]
    close = (number for number in numbers if abs(number - epsilon) <= 1e-5 * max(number, variance))
    return next(close, epsilon)


# ---------------------------------------------------------------------------------------------- what stands behind it


def _take_scale_and_bias(match: Match) -> Node | None:
    """affine(layer_norm(x)): the scale and bias per channel are operands of the norm. What the affine map does after
    both, a residual and bounds, stays behind."""
    node, norm = match.node, match.node.operand("x")
    scale, bias = node.get("scale"), node.get("bias")
    if norm.op != "layer_norm" or not match.is_sole_user(norm) or (scale is None and bias is None):
        return None
    if scale is not None:
        norm = scaled(norm, scale.value)
    if bias is not None:
        norm = shifted(norm, bias.value)
    if is_open(node):
        return norm.replace(name=node.name, aval=node.aval)
    return node.with_operands({"x": norm, "residual": node.get("residual")})


def _take_cast(match: Match) -> Node | None:
    """A conversion of what was computed in float32 is the node's output dtype."""
    node, head = match.node, match.node.inputs[0]
    is_ours = head.op in ("softmax", "layer_norm") and match.is_sole_user(head)
    return head.replace(aval=node.aval) if is_ours and node.aval.is_float and _unit(head) < _unit(node) else None


RULES: tuple[Rule, ...] = (
    ("affine", _take_scale_and_bias),
    ("convert_element_type", _take_cast),
)
