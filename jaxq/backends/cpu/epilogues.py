"""The fields of an epilogue: what it reads, and where its values come to."""

from collections.abc import Sequence

from jaxq.backends.cpu.values import DTYPE, NONE, Field, Values, bits
from jaxq.backends.cpu.views import Broadcast, View
from jaxq.graph.node import Node


class Epilogues(Values):
    """The encoder of `numerics.epilogue`, which accumulating ops end with."""

    def epilogue(self, node: Node, residual: Sequence[Field] | None = None, result: Node | None = None) -> list[Field]:
        """The fields of the node's epilogue; its result, or that of what is computed with it, is placed, as rows."""
        fields = self.epilogue_values(node, residual)
        target = self.target(result or node, overwritten(node))
        rows = target.rows()
        if node.op == "matmul":
            stride = target.byte_stride(-2)
        else:
            assert rows is not None, node
            stride = rows[1]
        return [*fields, target, DTYPE[target.dtype.name], stride]

    def epilogue_values(self, node: Node, residual: Sequence[Field] | None = None) -> list[Field]:
        """What the node's epilogue reads."""
        fields: list[Field] = [self.views[node.operand(role)] for role in ("multiplier", "bias", "lo", "hi")]
        fields += [self._row_scale(node)] if node.get("row_scale") is not None else NONE
        fields += [self.views[node.operand("table")]] if node.get("table") is not None else NONE
        return fields + list(self.residual(node) if residual is None else residual)

    def _row_scale(self, node: Node) -> View:
        """One number behind another."""
        view, _, stride = self.rows(self.views[node.operand("row_scale")])
        return view if stride == view.dtype.itemsize else self.dense(view)

    def residual(self, node: Node) -> list[Field]:
        """The fields of the node's residual, or of none."""
        residual = node.get("residual")
        if residual is None:
            return [*NONE, 0, 0, 1, 1, 1, 0]
        view, *how = self.broadcast(residual, node)
        return [*self.residual_at(view, node), *how, self.factor(node)]

    def broadcast(self, operand: Node, node: Node) -> tuple[View, int, int, int, int]:
        """The operand's view, the stride of its rows, and how they go with those of the node."""
        view, _, stride = self.rows(self.views[operand])
        how = Broadcast.of(operand.aval.shape, node.aval.shape)
        assert how is not None, node
        return view, stride, how.repeat, how.period, how.step

    def residual_at(self, view: View, node: Node) -> list[Field]:
        """Where the node's residual lies, and its dtype."""
        return [view, DTYPE[node.operand("residual").aval.dtype.name]]

    @staticmethod
    def factor(node: Node) -> int:
        """What the node's residual is multiplied with."""
        return bits(node.operand("residual_multiplier").value)


def overwritten(node: Node) -> Node | None:
    """The operand whose memory the node's value may take: floats of which it makes as many, each from that one."""
    if node.op not in ("dot", "layer_norm") or node.aval.dtype.name != "float32":
        return None
    operand = node.get("residual" if node.op == "dot" else "x")
    return operand if operand is not None and operand.aval == node.aval else None
