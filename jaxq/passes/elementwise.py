"""Any function of one value as one node, whatever it is made of: gelu, silu, hard-swish, leaky relu, tanh, ...

A subgraph whose ops are all elementwise and which reads one value, and otherwise constants of one number, is a function
f of that value, element by element. In int8 it is a table of 256 entries, so that no activation needs a pattern. The
node's word is found by comparing f with the functions that have a name.

A table rounds its input to one of 256 levels, an error of up to half a step that f multiplies by its slope. An f that
is far steeper in one place than on average (exp, rsqrt, a step) is left as it is.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.graph.evaluate import reference
from jaxq.graph.node import Aval, Graph, Node, constant, uniform

# The largest slope over the mean one, on the grid: 16 for tanh, 8 for sigmoid, 2 for a square, 32 for exp.
LARGEST_STEEPNESS = 20.0

_UNARY = """abs acos acosh asin asinh atan atanh cbrt ceil cos cosh erf erfc exp exp2 expm1 floor is_finite log log1p
log2 logistic neg rsqrt sign sin sinh sqrt square tan tanh integer_pow round reduce_precision not"""
_BINARY = "add sub div max min mul pow rem atan2 nextafter eq ge gt le lt ne and or xor"
_OTHER = "select_n clamp convert_element_type copy name affine product"
OPS = frozenset(f"{_UNARY} {_BINARY} {_OTHER}".split())

# Slopes are measured over an eighth: in bfloat16 the numbers at the grid's ends lie that far apart.
_RUN = 16

# So many points of the grid are two units of x.
_END = 256

# Where functions are compared and their slopes measured; beyond it they are taken to go on as they do.
GRID = np.linspace(-16.0, 16.0, 4097, dtype=np.float32)

WORDS: dict[str, Callable[[Any], Any]] = {
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "hard_swish": jax.nn.hard_swish,
    "sigmoid": jax.nn.sigmoid,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "tanh": jnp.tanh,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "celu": jax.nn.celu,
    "softplus": jax.nn.softplus,
    "mish": jax.nn.mish,
    "soft_sign": jax.nn.soft_sign,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "abs": jnp.abs,
}
# How far a function in bfloat16 may be from its word, relative to 1 + |f|.
_SAME = 0.01


def collapse(graph: Graph) -> Graph:
    """The graph with every elementwise function of one value as one "elementwise" node.

    Affine maps alone (a scale, a relu) stay what they are: they fold and fuse further.
    """
    farthest = _roots(graph)
    root = _roots(graph, _ends(graph, farthest), farthest)
    ends = _ends(graph, root)
    new: dict[Node, Node] = {}
    for node in (*graph.inputs, *graph.nodes):
        if node in new:
            continue
        moved = node.replace(inputs=tuple(new[source] for source in node.inputs))
        new[node] = moved.with_bodies(collapse)
        if node in ends:
            body = _body(node, root[node])
            if any(inner.op != "affine" for inner in body.nodes if uniform(inner) is None and inner.op != "input"):
                new[node] = _function(node, new[root[node]], body)
    return Graph(tuple(new[node] for node in graph.inputs), tuple(new[node] for node in graph.outputs))


def _roots(graph: Graph, cuts: Collection[Node] = (), otherwise: Mapping[Node, Node] | None = None) -> dict[Node, Node]:
    """The value of which each node is an elementwise function: the nearest of the cuts, which are values that others
    read too, or the farthest; where that is no one value, what it is otherwise."""
    root: dict[Node, Node] = {}
    for node in graph.nodes:
        if (operands := _operands(node)) is not None:
            sources = {source if source in cuts else root.get(source, source) for source in operands}
            source = sources.pop()
            if not sources and source.aval.is_float:
                root[node] = source
            elif otherwise is not None and node in otherwise:
                root[node] = otherwise[node]
    return root


def _ends(graph: Graph, root: Mapping[Node, Node]) -> set[Node]:
    """The functions that something else than a longer function reads."""
    outputs = set(graph.outputs)
    return {
        node
        for node, source in root.items()
        if node.aval.is_float and (node in outputs or any(root.get(user) is not source for user in graph.users[node]))
    }


def _operands(node: Node) -> list[Node] | None:
    """What an elementwise op reads apart from constants of one number; None for any other op."""
    if node.op not in OPS or not isinstance(node.aval, Aval):
        return None
    operands = [source for source in node.inputs if uniform(source) is None]
    if not operands or any(source.is_constant or source.aval.shape != node.aval.shape for source in operands):
        return None
    return operands


def _body(end: Node, root: Node) -> Graph:
    """The subgraph from the root to its end, on an input of its own."""
    between = {root: Node("input", (), {}, root.aval, root.name)}
    stack = [end]
    while stack:
        node = stack[-1]
        missing = [source for source in node.inputs if source not in between]
        if missing:
            stack.extend(missing)
        else:
            between[node] = node.replace(inputs=tuple(between[source] for source in node.inputs))
            stack.pop()
    return Graph((between[root],), (between[end],))


def _function(end: Node, x: Node, body: Graph) -> Node:
    y = on_grid(body)
    attrs = {"body": body, "word": _word(body, y), "steepness": _steepness(y), "least": _least(y)}
    return end.replace(op="elementwise", attrs=attrs).with_operands({"x": x})


def on_grid(body: Graph) -> np.ndarray:
    """The function's values on `GRID`, float32."""
    return np.asarray(apply(body, GRID.astype(body.inputs[0].aval.dtype)), np.float32)


def _steepness(y: np.ndarray) -> float:
    """The largest slope of f over its mean one, of f's values on the grid; infinite where f is not finite."""
    if not np.all(np.isfinite(y)):
        return np.inf
    rises = np.abs(np.diff(y[::_RUN].astype(np.float64)))
    return float(np.max(rises) / max(np.mean(rises), np.finfo(np.float32).tiny))


def _least(y: np.ndarray) -> float:
    """The least value of f, of its values on the grid, where that is negative, f flat at one end, and far higher at the
    other: gelu, silu, elu, ...; -inf for any other f."""
    if not np.all(np.isfinite(y)):
        return -np.inf
    least, most = float(np.min(y)), float(np.max(y))
    ends = (abs(float(y[0] - y[_END])), abs(float(y[-1] - y[-1 - _END])))
    is_skewed = least < 0 and most > 4 * -least and min(ends) <= 0.01 * most
    return least if is_skewed else -np.inf


def is_skewed(word: str) -> bool:
    """Whether the word's function is flat at one end, a little below 0, and far higher at the other."""
    return word in WORDS and bool(np.isfinite(_least(_named()[word])))


@functools.cache
def _named() -> dict[str, np.ndarray]:
    """The functions that have a word, on the grid."""
    values = jax.jit(lambda x: [function(x) for function in WORDS.values()])(GRID)
    return dict(zip(WORDS, map(np.asarray, values), strict=True))


def _word(body: Graph, y: np.ndarray) -> str:
    """The name of the function whose values on the grid are `y`, up to a scale and as f(-x) too: factors may have gone
    into the layers around it. A single op has the op's name."""
    ops = [node for node in body.nodes if node.op != "input" and uniform(node) is None]
    otherwise = ops[0].op if len(ops) == 1 else "elementwise"
    peak = np.max(np.abs(y))
    if not np.isfinite(peak) or peak == 0:
        return otherwise
    for values in (y, y[::-1]):
        leaky = np.where(GRID < 0, -values[0] / peak * GRID, GRID)
        for word, expected in {**_named(), "leaky_relu": leaky}.items():
            scaled = values * (np.max(np.abs(expected)) / peak)
            if np.all(np.abs(scaled - expected) <= _SAME * (1 + np.abs(expected))):
                return word
    return otherwise


def apply(body: Graph, x: Any) -> jax.Array:
    """The function of a body at the numbers `x`, of any shape, in the dtype of the body's input."""
    (argument,), (result,) = body.inputs, body.outputs
    values: dict[Node, Any] = {argument: jnp.asarray(x)}
    for node in body.nodes:
        if node in values:
            continue
        if (number := uniform(node)) is not None:
            values[node] = jnp.full(values[argument].shape, number, node.aval.dtype)
        else:
            values[node] = reference(node)(*(values[source] for source in node.inputs))
    return values[result]


def reshaped(node: Node, shape: tuple[Any, ...]) -> Node:
    """The "elementwise" node of a value of other channels; its operand is left as it is."""
    body, before = node.attrs["body"], node.aval.shape

    def change(inner: Node) -> Node:
        if inner.is_constant and inner.aval.shape[-1:] == before[-1:]:  # one number, written out
            return constant(np.full((*inner.aval.shape[:-1], shape[-1]), uniform(inner), inner.aval.dtype), inner.name)
        if inner.aval.shape != before:
            return inner
        attrs = {name: shape if name == "shape" else value for name, value in inner.attrs.items()}
        return inner.replace(attrs=attrs, aval=Aval(shape, inner.aval.dtype))

    return node.with_attrs(body=body.map(change)).replace(aval=Aval(shape, node.aval.dtype))


def renamed(node: Node, name: str) -> Node:
    """The "elementwise" node under another name, which its last op bears, too."""
    body, end = node.attrs["body"], node.attrs["body"].outputs[0]
    named = body.map(lambda inner: inner.replace(name=name) if inner.name == end.name else inner)
    return node.with_attrs(body=named).replace(name=name)


def expand(node: Node, change: Callable[[Node], Node]) -> Node:
    """The "elementwise" node as the ops it was made of, `change` applied to each."""
    body = node.attrs["body"]
    new = {body.inputs[0]: node.operand("x")}
    for inner in body.nodes:
        if inner not in new:
            moved = inner.replace(inputs=tuple(new[source] for source in inner.inputs))
            new[inner] = moved if inner.is_constant else change(moved)
    return new[body.outputs[0]]
