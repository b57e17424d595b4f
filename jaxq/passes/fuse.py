"""Vertical fusion: residual add and activation into the epilogue of the conv, dot, pool or affine map before them."""

from jaxq.graph.node import ACCUMULATING, WEIGHTED, Node
from jaxq.graph.rewrite import Match, Rule
from jaxq.passes.accumulating import is_open, shifted
from jaxq.passes.fold import fold_cast


def _clipped(head: Node, node: Node) -> Node:
    """`head` with its bounds followed by those of `node`: clip(clip(y, a, b), c, d) = clip(y, a', b')."""
    lo, hi = node.attrs["lo"], node.attrs["hi"]
    return head.with_attrs(lo=_clip(head.attrs["lo"], lo, hi), hi=_clip(head.attrs["hi"], lo, hi))


def _clip(value: float, lo: float, hi: float) -> float:
    return min(max(value, lo), hi)


def _fuse_residual(match: Match) -> Node | None:
    """x + y (+ bias): one side stays in its op's accumulator, the other becomes that op's residual. Weighted ops go
    first, then the deeper side, so that a block keeps its main path in the accumulator and reads its shortcut."""
    node = match.node
    x, y, bias = node.operand("x"), node.get("residual"), node.get("bias")
    if y is None or node.get("scale") is not None:
        return None
    pairs = [
        (head, other)
        for head, other in ((x, y), (y, x))
        if head.op in ACCUMULATING and match.is_sole_user(head) and is_open(head)
    ]
    if not pairs:
        return None
    head, other = max(pairs, key=lambda pair: (pair[0].op in WEIGHTED, match.depth[pair[0]]))
    head = head if bias is None else shifted(head, bias.value)
    operands = dict(zip(head.roles, head.inputs, strict=True))
    return _clipped(head.with_operands(operands | {"residual": other}, aval=node.aval), node)


def _fuse_activation(match: Match) -> Node | None:
    """clip(y): the bounds become those of the op that makes y."""
    node, head = match.node, match.node.operand("x")
    if node.roles != ("x",) or head.op not in ACCUMULATING or not match.is_sole_user(head):
        return None
    return _clipped(head, node).replace(aval=node.aval)


# Folding needs these as well: an affine map behind an activation moves its bounds.
ACTIVATIONS: tuple[Rule, ...] = (("affine", _fuse_activation),)

RULES: tuple[Rule, ...] = (
    ("affine", _fuse_residual),
    *ACTIVATIONS,
    ("convert_element_type", fold_cast),
)
