"""Transposes move behind the ops that do not care where an axis stands, and there meet their inverses.

A channels-first network becomes channels last this way: a conv's canonical form has a transpose on either side, the one
behind it moves down to the next conv, and what stood between the two then works on the last axis like in any network.
The constants of elementwise ops become as small as their values allow, in whatever way they were broadcast.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxq.graph.node import Aval, Node, constant
from jaxq.graph.rewrite import Match, Rule

BINARY = ("add", "sub", "mul", "div", "max", "min", "pow")
UNARY = (
    *("abs", "convert_element_type", "copy", "erf", "exp", "exp2", "integer_pow", "log", "logistic", "neg", "rsqrt"),
    *("sqrt", "square", "stop_gradient", "tanh"),
)


def transposed(x: Node, permutation: Sequence[int], name: str) -> Node:
    """`x` with its axes permuted: at once of a constant, in one step of a transpose."""
    permutation = tuple(int(axis) for axis in permutation)
    if x.op == "transpose":
        permutation, x = tuple(x.attrs["permutation"][axis] for axis in permutation), x.inputs[0]
    if permutation == tuple(range(len(permutation))):
        return x
    if x.is_constant:
        return constant(np.transpose(np.asarray(x.value), permutation), x.name)
    aval = Aval(_permuted(x.aval.shape, permutation), x.aval.dtype)
    return Node("transpose", (x,), {"permutation": permutation}, aval, name, scope=x.scope)


def _permuted(items: Sequence[Any], permutation: Sequence[int]) -> tuple[Any, ...]:
    return tuple(items[axis] for axis in permutation)


def _lists(*names: str) -> Callable[[Mapping[str, Any], Sequence[int]], dict[str, Any]]:
    """Attributes that hold one item an axis."""

    def change(attrs: Mapping[str, Any], inverse: Sequence[int]) -> dict[str, Any]:
        return {name: attrs[name] and _permuted(attrs[name], inverse) for name in names}

    return change


def _sink(attributes: Callable[[Mapping[str, Any], Sequence[int]], dict[str, Any]]) -> Callable[[Match], Node | None]:
    """The rule for op(transpose(x)) = transpose(op'(x)); `attributes` gives what of its attributes then changes, from
    them and the permutation that undoes the transpose."""

    def rule(match: Match) -> Node | None:
        node = match.node
        permutations = {x.attrs["permutation"] for x in node.inputs if x.op == "transpose"}
        if len(permutations) != 1:
            return None
        (permutation,) = permutations
        inverse = tuple(np.argsort(permutation).tolist())
        values = [x for x in node.inputs if x.aval.shape != ()]
        if any(x.op != "transpose" and not x.is_constant for x in values):
            return None
        inputs = tuple(x if x not in values else transposed(x, inverse, "") for x in node.inputs)
        aval = Aval(_permuted(node.aval.shape, inverse), node.aval.dtype)
        moved = node.replace(inputs=inputs, aval=aval, attrs={**node.attrs, **attributes(node.attrs, inverse)})
        return transposed(moved, permutation, f"{node.name}/transpose_out")

    return rule


def _sink_reduction(match: Match) -> Node | None:
    """A reduction takes its axes where they stand before the transpose, and what is left of this stands behind it."""
    node, x = match.node, match.node.inputs[0]
    if x.op != "transpose":
        return None
    permutation = x.attrs["permutation"]
    left = [axis for i, axis in enumerate(permutation) if i not in node.attrs["axes"]]
    axes = tuple(sorted(permutation[axis] for axis in node.attrs["axes"]))
    aval = Aval(_permuted(node.aval.shape, np.argsort(left).tolist()), node.aval.dtype)
    reduced = node.replace(inputs=x.inputs, aval=aval).with_attrs(axes=axes)
    return transposed(reduced, [sorted(left).index(axis) for axis in left], f"{node.name}/transpose_out")


def _sink_new_axes(match: Match) -> Node | None:
    """A broadcast that only adds axes of one puts them where they will stand behind the transpose too."""
    node, x = match.node, match.node.inputs[0]
    if x.op != "transpose":
        return None
    shape, places, permutation = node.aval.shape, node.attrs["broadcast_dimensions"], x.attrs["permutation"]
    if any(shape[i] != (x.aval.shape[places.index(i)] if i in places else 1) for i in range(len(shape))):
        return None
    last = list(range(len(shape)))
    for i, axis in enumerate(permutation):
        last[places[i]] = places[axis]
    before = _permuted(shape, np.argsort(last).tolist())
    moved = node.replace(inputs=x.inputs, aval=Aval(before, node.aval.dtype)).with_attrs(shape=before)
    return transposed(moved, last, f"{node.name}/transpose_out")


def _compose(match: Match) -> Node | None:
    node, x = match.node, match.node.inputs[0]
    return transposed(x, node.attrs["permutation"], node.name) if x.op == "transpose" else None


def _drop(neutral: float) -> Callable[[Match], Node | None]:
    """The rule for x + 0 or x * 1 of a number that the function's code holds. (One that a parameter happens to be
    stays: the graph hangs on the code, not on the weights.)"""

    def rule(match: Match) -> Node | None:
        node = match.node
        pairs = (node.inputs, node.inputs[::-1]) if node.op in ("add", "mul") else (node.inputs,)
        return next((x for x, c in pairs if x.aval == node.aval and _literal(c) == neutral), None)

    return rule


def _literal(node: Node) -> Any:
    """The number of the code that the node is, or is a broadcast of; else None."""
    while node.op in ("broadcast_in_dim", "reshape", "convert_element_type"):
        node = node.inputs[0]
    return node.value if node.op == "const" else None


def _narrow(match: Match) -> Node | None:
    """A binary op's constant without the axes along which it only repeats, broadcast in the trace or stored so."""
    node = match.node
    if not any(x.aval.shape == node.aval.shape and _values(x) is None for x in node.inputs):
        return None
    inputs = tuple(_narrowed(x) for x in node.inputs)
    return None if inputs == node.inputs else node.replace(inputs=inputs)


def _values(node: Node) -> np.ndarray | None:
    """The constant that the node is, or is a broadcast of, with an axis of one where that repeats it; else None."""
    if node.is_constant:
        return np.asarray(node.value)
    if node.op != "broadcast_in_dim" or not node.inputs[0].is_constant:
        return None
    value = np.asarray(node.inputs[0].value)
    shape = [1] * len(node.aval.shape)
    for axis, size in zip(node.attrs["broadcast_dimensions"], value.shape, strict=True):
        shape[axis] = size
    return value.reshape(shape)


def _narrowed(node: Node) -> Node:
    value = _values(node)
    if value is None:
        return node
    for axis, size in enumerate(value.shape):
        first = value.take([0], axis) if size else value
        if size > 1 and np.array_equal(np.broadcast_to(first, value.shape), value):
            value = first
    if value.shape == node.aval.shape:
        return node
    return constant(value, node.inputs[0].name if node.op == "broadcast_in_dim" else node.name)


def sees_padding_alone(node: Node) -> bool:
    """True for a max pool of which a window may lie in the padding alone."""
    if node.op != "reduce_window_max":
        return False
    return any(
        max(pad) >= size for pad, size in zip(node.attrs["padding"], node.attrs["window_dimensions"], strict=True)
    )


_WINDOW = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")

RULES: tuple[Rule, ...] = (
    *((op, _drop(0)) for op in ("add", "sub")),
    *((op, _drop(1)) for op in ("mul", "div")),
    *((op, _narrow) for op in BINARY),
    *((op, _sink(_lists())) for op in (*BINARY, *UNARY, "clamp")),
    *((op, _sink(_lists(*_WINDOW))) for op in ("reduce_window_max", "reduce_window_sum")),
    ("slice", _sink(_lists("start_indices", "limit_indices", "strides"))),
    ("pad", _sink(_lists("padding_config"))),
    ("concatenate", _sink(lambda attrs, inverse: {"dimension": inverse.index(attrs["dimension"])})),
    ("reduce_sum", _sink_reduction),
    ("reduce_max", _sink_reduction),
    ("broadcast_in_dim", _sink_new_axes),
    ("transpose", _compose),
)
