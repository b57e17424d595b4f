"""What two plans differ in, as data."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.export import Exported

from jaxq.graph.node import Dim, Graph, Node, precision
from jaxq.models import shown
from jaxq.plan.plan import Plan


@dataclass(frozen=True)
class ScaleChange:
    """Of a node's integers; of a scale per channel, the channel that differs most. `relative` is |new - old| / old."""

    name: str
    old: float
    new: float
    relative: float


@dataclass(frozen=True)
class ArrayChange:
    """`changed` bytes of `size`, those of the new one; `layer` is the first node that reads the array."""

    name: str
    layer: str
    changed: int
    size: int


@dataclass(frozen=True)
class Changes:
    """From an old plan to a new one.

    Attributes:
      signature: lines of what differs in the arguments and results.
      added, removed: names of nodes.
      changed: by a node's name, what differs in it.
      scales, arrays: of those that both plans have, as many as `compared_...` says, the ones that differ.
    """

    signature: list[str]
    added: list[str]
    removed: list[str]
    changed: dict[str, list[str]]
    scales: list[ScaleChange]
    compared_scales: int
    arrays: list[ArrayChange]
    compared_arrays: int

    @property
    def differ(self) -> bool:
        return bool(self.signature or self.added or self.removed or self.changed or self.scales or self.arrays)


def compare(old: Plan, new: Plan) -> Changes:
    """The differences from the old plan to the new one."""
    before, after = _nodes(old.graph), _nodes(new.graph)
    pairs = [(node, after[name]) for name, node in before.items() if name in after]
    scaled = [(a, b) for a, b in pairs if a.qtype is not None and b.qtype is not None]
    arrays = [name for name in old.graph.params if name in new.graph.params]
    return Changes(
        signature=list(_signature(old, new)),
        added=[name for name in after if name not in before],
        removed=[name for name in before if name not in after],
        changed={a.name: what for a, b in pairs if (what := list(_node(a, b)))},
        scales=[change for a, b in scaled if (change := _scale(a, b)) is not None],
        compared_scales=len(scaled),
        arrays=list(_arrays(old.graph, new.graph, arrays)),
        compared_arrays=len(arrays),
    )


def _nodes(graph: Graph) -> dict[str, Node]:
    return {node.name: node for node in graph.all_nodes if not node.is_constant}


def _signature(old: Plan, new: Plan) -> Iterator[str]:
    for what, a, b in (("arguments", old.in_tree, new.in_tree), ("result", old.out_tree, new.out_tree)):
        if a != b:
            yield f"{what}: {shown(a)} -> {shown(b)}"
    for what, a, b in (
        ("argument", old.graph.inputs, new.graph.inputs),
        ("result", old.graph.outputs, new.graph.outputs),
    ):
        if len(a) != len(b):
            yield f"{len(a)} {what}s -> {len(b)}"
            continue
        yield from (f"{what}: {_value(x)} -> {_value(y)}" for x, y in zip(a, b, strict=True) if _value(x) != _value(y))


def _value(node: Node) -> str:
    return f"{node.value}" if node.op == "const" else f"{node.name} {node.aval}"


def _node(old: Node, new: Node) -> Iterator[str]:
    """What differs in a node but its scale and the arrays that it reads."""
    for what, a, b in (
        ("op", old.op, new.op),
        ("precision", precision(old), precision(new)),
        ("value", _avals(old), _avals(new)),
        ("fused", " ".join(old.fused), " ".join(new.fused)),
        ("reads", *_unlike(_sources(old), _sources(new))),
    ):
        if a != b:
            yield f"{what} {a or 'nothing'} -> {b or 'nothing'}"
    if old.op == new.op:
        for key in sorted({*old.attrs, *new.attrs}):
            was, now = old.attrs.get(key), new.attrs.get(key)
            if not _same(was, now):
                yield f"{key} {_short(was)} -> {_short(now)}"
    if (old.op, old.roles) == (new.op, new.roles):
        for role, source, other in zip(_roles(old), old.inputs, new.inputs, strict=False):
            if source.op == other.op == "const" and not _same(source.value, other.value):
                yield f"{role or 'a constant'} {_short(source.value)} -> {_short(other.value)}"


def _avals(node: Node) -> str:
    return ", ".join(map(str, node.aval)) if isinstance(node.aval, tuple) else str(node.aval)


def _sources(node: Node) -> list[str]:
    """The values and arrays that the node reads, by role."""
    pairs = zip(_roles(node), node.inputs, strict=True)
    return [f"{role} {'a constant' if source.op == 'const' else source.name}".strip() for role, source in pairs]


def _roles(node: Node) -> tuple[str, ...]:
    return node.roles or ("",) * len(node.inputs)


def _unlike(old: list[str], new: list[str]) -> tuple[str, str]:
    """Only what the other does not have; all, where the order alone differs."""
    if sorted(old) != sorted(new):
        old, new = [s for s in old if s not in new], [s for s in new if s not in old]
    return ", ".join(old), ", ".join(new)


def _same(a: Any, b: Any) -> bool:
    """Of attributes. The nodes of bodies are compared as all others are."""
    if isinstance(a, Graph) and isinstance(b, Graph):
        return _same(_ends(a), _ends(b))
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray | np.generic) or isinstance(b, np.ndarray | np.generic):
        return _bytes(a) == _bytes(b)
    if isinstance(a, Exported) and isinstance(b, Exported):
        return a.mlir_module_serialized == b.mlir_module_serialized
    return bool(a == b)


def _ends(body: Graph) -> tuple[tuple[str, ...], ...]:
    return tuple(map(_value, body.inputs)), tuple(map(_value, body.outputs))


def _bytes(value: Any) -> tuple[Any, ...]:
    array = np.asarray(value)
    return array.shape, array.dtype, array.tobytes()


def _short(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))})"
    if isinstance(value, Graph):
        return f"a body of {_text(_ends(value))}"
    return "batch" if value == Dim(1, 0) else str(value)


def _scale(old: Node, new: Node) -> ScaleChange | None:
    a, b = (np.atleast_1d(np.asarray(node.qtype.scale, np.float64)) for node in (old, new))  # type: ignore[union-attr]
    if a.shape != b.shape and 1 not in (a.size, b.size):  # the node's shape says so
        return None
    a, b = np.broadcast_arrays(a, b)
    relative = np.abs(b - a) / np.abs(a)
    most = int(np.argmax(relative))
    if not relative[most] > 0:
        return None
    return ScaleChange(old.name, float(a[most]), float(b[most]), float(relative[most]))


def _arrays(old: Graph, new: Graph, names: list[str]) -> Iterator[ArrayChange]:
    layers: dict[str, str] = {}
    for node in new.all_nodes:
        for source in node.inputs:
            if source.op == "param":
                layers.setdefault(source.name, node.name)
    for name in names:
        a, b = np.asarray(old.params[name]), np.asarray(new.params[name])
        alike = (a.shape, a.dtype) == (b.shape, b.dtype)
        changed = int(np.count_nonzero(_flat(a) != _flat(b))) if alike else b.nbytes
        if changed or a.shape != b.shape:
            yield ArrayChange(name, layers.get(name, ""), changed, b.nbytes)


def _flat(array: np.ndarray) -> np.ndarray:
    return np.frombuffer(array.tobytes(), np.uint8)
