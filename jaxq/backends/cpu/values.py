"""Where each value of a region lies, and the copies that this takes.

Whatever only moves values is a view of its operand, or its operand is written straight to its place: channels of a
concatenation, rows of a transposed product. A copy is made where neither is possible.
"""

import struct
from collections.abc import Sequence
from itertools import count
from math import prod
from typing import Any

import numpy as np

from jaxq.backends.cpu.takes import MOVES
from jaxq.backends.cpu.views import Arena, Storage, View
from jaxq.graph.node import Graph, Node

_KINDS = (
    *("convolution", "depthwise", "matrix_product", "elementwise", "max_pool", "sum_pool", "sum", "table"),
    *("quantize", "dequantize", "softmax", "layer_norm", "copy", "quantize_rows", "weight_only_dot", "function"),
    *("fill", "add_rows", "sum_rows", "expansion"),
)
_KIND = {name: i for i, name in enumerate(_KINDS)}

# Of an operation: a number, or a value whose place is known when the arena is laid out.
Field = int | View
# Of a value, in a program.
DTYPE = {"int8": 0, "uint8": 1, "float32": 2}
# The place of a value that an operation lacks.
NONE = (-1, 0)


class Values:
    """The views of a region's values, and the operations that make them.

    Attributes:
      views: where each value lies.
      operations: kind and fields of each, in order.
      arena: what is not the call's own memory.
    """

    def __init__(self, body: Graph) -> None:
        self.body = body
        self.views: dict[Node, View] = {}
        self.operations: list[list[Field]] = []
        self.arena = Arena()
        numbers = count(1)  # buffer 0 holds the constants
        for node in body.inputs:
            self.views[node] = self._buffer(next(numbers), node)
        self.results = [self._buffer(next(numbers), node) for node in body.outputs]
        self.buffers = next(numbers)

    def _buffer(self, number: int, node: Node) -> View:
        size = prod(node.aval.shape) * node.aval.dtype.itemsize
        return View.dense(Storage(size, number), node.aval.shape, node.aval.dtype)

    def numbers(self) -> tuple[list[int], int]:
        """All operations as numbers, and the size of the arena in bytes."""
        size = self.arena.layout()
        encoded: list[int] = []
        for operation in self.operations:
            for item in operation:
                encoded += self._place(item) if isinstance(item, View) else [item]
        return encoded, size

    def _place(self, view: View) -> tuple[int, int]:
        storage = view.storage
        number = self.buffers if storage.buffer is None else storage.buffer
        return number, storage.offset + view.byte_offset

    def emit(self, kind: str, *fields: Field) -> None:
        now = len(self.operations)
        for item in fields:
            if isinstance(item, View):
                item.storage.first = now if item.storage.first < 0 else item.storage.first
                item.storage.last = now
        self.operations.append([_KIND[kind], *fields])

    def rows(self, view: View) -> tuple[View, int, int]:
        """The view, or a dense copy of it, with the number and the stride of its rows."""
        rows = view.rows()
        if rows is None:
            view = self.dense(view)
            rows = view.rows()
            assert rows is not None
        return view, *rows

    def allocate(self, shape: Sequence[int], dtype: np.dtype) -> View:
        storage = Storage(prod(shape) * dtype.itemsize)
        self.arena.storages.append(storage)
        return View.dense(storage, shape, dtype)

    def target(self, node: Node, over: Node | None = None) -> View:
        """The view that the node's value is to be written to. `over`: an operand of its shape and dtype that the
        operation reads value by value before it writes there; it is overwritten if nobody else reads it any more."""
        if node in self.views:
            return self.views[node]
        users = self.body.users[node]
        if node in self.body.outputs:
            target = self.results[self.body.outputs.index(node)]
        elif len(users) == 1 and (inside := self._inside(node, users[0])) is not None:
            target = inside
        elif over is not None and self._reads_last(node, over):
            target = self.views[over]
        else:
            target = self.allocate(node.aval.shape, node.aval.dtype)
        self.views[node] = target
        return target

    def _reads_last(self, node: Node, operand: Node) -> bool:
        """Whether the operand has memory of its own in the arena, and whoever else reads it is done."""
        view, others = self.views[operand], [user for user in self.body.users[operand] if user is not node]
        return (
            operand.op not in MOVES
            and operand not in self.body.outputs
            and view.storage.buffer is None
            and view.storage.size == prod(view.shape) * view.dtype.itemsize
            and all(user in self.views and user.op not in MOVES for user in others)
        )

    def _inside(self, node: Node, user: Node) -> View | None:
        """The node's place in its only user's value, if that is a concatenation of channels, or a transpose that its
        rows can be strided over."""
        if (
            user.op == "concatenate"
            and user.attrs["dimension"] == len(user.aval.shape) - 1
            and user.inputs.count(node) == 1
        ):
            whole = self.target(user)
            widths = [source.aval.shape[-1] for source in user.inputs]
            start = sum(widths[: user.inputs.index(node)])
            limit = (*whole.shape[:-1], start + node.aval.shape[-1])
            part = whole.slice((0,) * (len(limit) - 1) + (start,), limit, (1,) * len(limit))
            return part if part.rows() is not None else None
        if user.op == "transpose" and node.op == "matmul" and user.attrs["permutation"][-1] == len(node.aval.shape) - 1:
            permutation = user.attrs["permutation"]
            return self.target(user).transpose([permutation.index(i) for i in range(len(permutation))])
        return None

    def moved(self, node: Node) -> View:
        """The value of an op that moves values: a view of its operand where there is one, else a copy."""
        if node.op == "concatenate":
            return self._concatenated(node)
        x = self.views[node.inputs[0]]
        if node in self.views:  # its operand was written there
            return self.views[node]
        if node.op == "transpose":
            return x.transpose(node.attrs["permutation"])
        if node.op == "slice":
            strides = node.attrs["strides"] or (1,) * len(x.shape)
            return x.slice(node.attrs["start_indices"], node.attrs["limit_indices"], strides)
        if node.op in ("reshape", "squeeze"):
            view = x.reshape(node.aval.shape)
            return self.dense(x).reshape(node.aval.shape) if view is None else view  # type: ignore[return-value]
        return x

    def _concatenated(self, node: Node) -> View:
        whole = self.target(node)
        start, axis = 0, node.attrs["dimension"]
        for source in node.inputs:
            limit = list(whole.shape)
            low = [0] * len(limit)
            low[axis], limit[axis] = start, start + source.aval.shape[axis]
            part = whole.slice(low, limit, (1,) * len(limit))
            here = self.views[source]
            if here.storage is not part.storage or here.offset != part.offset:
                self.copy(here, part)
            start = limit[axis]
        return whole

    def dense(self, view: View) -> View:
        copy = self.allocate(view.shape, view.dtype)
        self.copy(view, copy)
        return copy

    def copy(self, source: View, target: View) -> None:
        pieces = [(n, source.byte_stride(i), target.byte_stride(i)) for i, n in enumerate(source.shape) if n != 1]
        axes: list[tuple[int, int, int]] = []  # axes that lie alike on both sides as one
        for n, a, b in pieces:
            if axes and axes[-1][1] == n * a and axes[-1][2] == n * b:
                axes[-1] = (axes[-1][0] * n, a, b)
            else:
                axes.append((n, a, b))
        itemsize = source.dtype.itemsize
        if axes and axes[-1][1:] == (itemsize, itemsize):
            itemsize *= axes.pop()[0]
        if len(axes) > 5:
            raise ValueError(f"a copy over {len(axes)} axes")
        axes = [(1, 0, 0)] * (5 - len(axes)) + axes
        self.emit("copy", *(axis[i] for i in range(3) for axis in axes), itemsize, source, target)


def bits(value: Any) -> int:
    """Those of a float32."""
    return int(struct.unpack("<I", struct.pack("<f", float(value)))[0])
