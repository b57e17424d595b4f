"""Horizontal fusion: int8 convs or dots that read one value become one, and slices of its output channels.

It runs on the int8 graph, where it changes no bit: each branch brings its own weights, multipliers, biases and bounds,
all of them per output channel. Branches merge where geometry, output dtype and the bits of their weights agree and none
has a residual or a table.
"""

from collections.abc import Hashable

import numpy as np

from jaxq.graph.node import WEIGHTED, Aval, Graph, Node, QType, constant
from jaxq.passes.lower import EPILOGUE_WORDS, INT4_WEIGHT

_PER_CHANNEL = ("multiplier", "bias", "lo", "hi")


def merge(graph: Graph) -> Graph:
    """The graph with its parallel branches merged, in bodies too."""
    families: dict[Hashable, list[Node]] = {}
    for node in graph.nodes:
        if (key := _family(node)) is not None:
            families.setdefault(key, []).append(node)
    family_of = {node: family for family in families.values() if len(family) > 1 for node in family}
    slices: dict[Node, Node] = {}

    def change(old: Node, node: Node) -> Node:
        if old not in family_of:
            return node
        if old not in slices:
            slices.update(_merged(family_of[old], node.operand("x"), node.get("row_scale")))
        return slices[old]

    new: dict[Node, Node] = {}
    for node in (*graph.inputs, *graph.nodes):
        if node not in new:
            moved = node.replace(inputs=tuple(new[source] for source in node.inputs))
            new[node] = change(node, moved.with_bodies(merge))
    return Graph(tuple(new[node] for node in graph.inputs), tuple(new[node] for node in graph.outputs))


def _family(node: Node) -> Hashable:
    """What parallel branches have in common; None for a node that never merges."""
    if node.op not in WEIGHTED or "multiplier" not in node.roles or node.get("residual") is not None:
        return None
    if node.get("table") is not None:
        return None
    kernel = node.operand("weight").aval.shape[:-1] if node.op == "conv" else node.operand("weight").aval.shape[1:]
    geometry = tuple((key, value) for key, value in sorted(node.attrs.items()) if key not in ("lo", "hi"))
    if node.attrs.get("groups", 1) != 1:
        return None
    is_int4, zero_point = INT4_WEIGHT in node.fused, None if node.qtype is None else node.qtype.zero_point
    made = (node.aval.dtype.name, zero_point)  # scales may differ by channel, zero points may not
    return (node.operand("x"), node.get("row_scale"), node.op, kernel, geometry, is_int4, made)


def _merged(family: list[Node], x: Node, row_scale: Node | None) -> dict[Node, Node]:
    """Each branch's slice of the merged op."""
    head = family[0]
    name = _joint_name([node.name for node in family])
    axis = -1 if head.op == "conv" else 0
    weights = [node.operand("weight") for node in family]
    weight = constant(np.concatenate([w.value for w in weights], axis), f"{name}/weight")
    scale = np.concatenate([np.asarray(w.qtype.scale) for w in weights])  # type: ignore[union-attr]
    operands: dict[str, Node | None] = {"x": x, "weight": weight.replace(qtype=QType("int8", scale))}
    for role in _PER_CHANNEL:
        operands[role] = constant(np.concatenate([node.operand(role).value for node in family]), f"{name}/{role}")
    operands["row_scale"] = row_scale
    widths = [node.aval.shape[-1] for node in family]
    qtype = None
    if head.qtype is not None:
        scales = [np.full(width, node.qtype.scale) for node, width in zip(family, widths, strict=True)]  # type: ignore[union-attr]
        qtype = QType(head.qtype.dtype, np.concatenate(scales), head.qtype.zero_point)
    words = [word for word in (INT4_WEIGHT, *EPILOGUE_WORDS) if any(word in node.fused for node in family)]
    merged = head.with_operands(
        operands,
        name=name,
        aval=Aval((*head.aval.shape[:-1], sum(widths)), head.aval.dtype),
        qtype=qtype,
        fused=(*words, f"merged:{len(family)}"),
    )
    ends = np.cumsum(widths).tolist()
    return {node: _slice(merged, node, end - width, end) for node, width, end in zip(family, widths, ends, strict=True)}


def _slice(merged: Node, branch: Node, start: int, end: int) -> Node:
    outer = merged.aval.shape[:-1]
    attrs = {
        "start_indices": (*(0 for _ in outer), start),
        "limit_indices": (*outer, end),
        "strides": None,
    }
    reason = "" if branch.qtype is not None else "it is a part of a merged layer's float result"
    slice_ = Node("slice", (merged,), attrs, branch.aval, f"{branch.name}/slice")
    return slice_.replace(qtype=branch.qtype, scope=branch.scope, reason=reason)


def _joint_name(names: list[str]) -> str:
    """`Net/Block/{a,b}` for `Net/Block/a` and `Net/Block/b`."""
    paths = [name.split("/") for name in names]
    shared = 0
    while all(len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    prefix = "".join(f"{part}/" for part in paths[0][:shared])
    return f"{prefix}{{{','.join('/'.join(path[shared:]) for path in paths)}}}"
