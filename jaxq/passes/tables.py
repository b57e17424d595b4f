"""A table becomes the end of the epilogue of the int8 op that makes its input. It changes no bit."""

from jaxq.graph.node import ACCUMULATING, Node
from jaxq.graph.rewrite import Match, Rule


def _fuse_table(match: Match) -> Node | None:
    node, head = match.node, match.node.operand("x")
    if head.op not in ACCUMULATING or head.aval.dtype.name != "int8" or not match.is_sole_user(head):
        return None
    if head.get("table") is not None:
        return None
    operands = dict(zip(head.roles, head.inputs, strict=True))
    fused = (*head.fused[:-1], node.attrs["word"], "requantize")
    return head.with_operands(
        operands | {"table": node.operand("table")}, aval=node.aval, qtype=node.qtype, fused=fused
    )


RULES: tuple[Rule, ...] = (("table", _fuse_table),)
