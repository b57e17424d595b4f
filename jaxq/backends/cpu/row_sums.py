"""Sums of rows of floats as operations: a sum of sums is one, and so is a sum over rows with the product before it."""

from math import inf, prod

from jaxq.backends.cpu import edges
from jaxq.backends.cpu.values import NONE, Field, Values, bits
from jaxq.backends.cpu.views import Broadcast
from jaxq.graph.node import Node

# `RowSum::kMost` in src/kernels.h.
_MOST_TERMS = 8


class RowSums(Values):
    """The encoder of what `edges.py` lets in, but moves."""

    def is_summed_later(self, node: Node) -> bool:
        """Whether the node's only reader is a sum that computes it, too."""
        if edges.looks_up(node) or edges.adds(node):
            users = self.body.users[node]
            if node in self.body.outputs or len(users) != 1 or not edges.adds(users[0]):
                return False
            return edges.looks_up(node) or self._continued(users[0]) is node
        return any(node in edges.weights(self.body, user) for user in self.body.users[node])

    def row_sum(self, node: Node) -> bool:
        """Emits the operation of a node that is such a sum; False of another."""
        if edges.looks_up(node) or edges.adds(node):
            terms = self._terms(node)
            fields = [field for term in terms for field in self._term(term, node.aval.shape)]
            bounds = _bounds(node) if edges.adds(node) else _bounds()
            rows, channels = prod(node.aval.shape[:-1]), node.aval.shape[-1]
            self._to_rows(node, "add_rows", [rows, channels, len(terms), *fields, *bounds])
            return True
        if not edges.sums(node):
            return False
        value, weight = edges.summed(self.body, node)
        x, _, stride = self.rows(self.views[value])
        rows, channels = prod(node.aval.shape[:-1]), node.aval.shape[-1]
        of_one = prod(value.aval.shape[axis] for axis in node.attrs["axes"])
        fields = [rows, channels, of_one, x, stride]
        fields += [0] if weight is None else [1, *self._term(weight, value.aval.shape)]
        fields += NONE if node.get("scale") is None else [self.views[node.operand("scale")]]
        self._to_rows(node, "sum_rows", [*fields, *_bounds(node)])
        return True

    def _terms(self, node: Node) -> list[Node]:
        """What is added up, in this order: (a + b) + c are three terms, as c + (a + b) are. An inner sum is one where
        others read it."""
        if not edges.adds(node):
            return [node]
        inner = self._continued(node)
        if inner is None:
            return list(node.inputs)
        return [*self._terms(inner), *(source for source in node.inputs if source is not inner)]

    def _continued(self, node: Node) -> Node | None:
        """The operand, itself a sum that nobody else reads, that the node adds further terms to: a + b is b + a, but
        (a + b) + c is not a + (b + c)."""
        for source in node.inputs if len(node.inputs) == 2 else node.inputs[:1]:
            alone = source not in self.body.outputs and list(self.body.users[source]) == [node]
            alike = source.aval.shape == node.aval.shape
            if alone and alike and edges.adds(source) and _bounds(source) == _bounds():
                fits = len(self._terms(source)) + len(node.inputs) - 1 <= _MOST_TERMS
                return source if fits else None
        return None

    def _term(self, node: Node, shape: tuple[int, ...]) -> list[Field]:
        """The rows of a value, broadcast to that shape, or of the table that it is looked up in."""
        how = Broadcast.of(node.aval.shape, shape)
        assert how is not None, node
        if node in self.views:
            view, _, stride = self.rows(self.views[node])
            return [view, stride, how.repeat, how.period, how.step, *NONE, 0, 1, 0]
        table, indices = node.inputs
        rows, count, stride = self.rows(self.views[table])
        index, _, index_stride = self.rows(self.views[indices])
        clamps = node.attrs["mode"] != "FILL_OR_DROP"
        return [rows, stride, how.repeat, how.period, how.step, index, index_stride, count, int(clamps)]

    def _to_rows(self, node: Node, kind: str, fields: list[Field]) -> None:
        target = self.target(node)
        out = target.rows()
        assert out is not None, node
        self.emit(kind, *fields, target, out[1])


def _bounds(node: Node | None = None) -> tuple[int, int]:
    """The bits of those that a sum is clipped to."""
    return (bits(-inf), bits(inf)) if node is None else (bits(node.attrs["lo"]), bits(node.attrs["hi"]))
