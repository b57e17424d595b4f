"""A region as the program that `src/region.cc` runs: a list of numbers.

    version, bytes of the arena, helpers wanted, number of operations, then each operation: its kind and its fields

A value is (buffer, offset in bytes): the call's operands first, then its results, then the arena. Views make slices,
transposes and most concatenations free: whoever reads or writes the value strides over it.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from math import prod

import numpy as np

from jaxq.backends.cpu.packing import Form
from jaxq.backends.cpu.takes import MOVES
from jaxq.backends.cpu.views import Arena, Broadcast, Storage, View
from jaxq.graph.node import ACCUMULATING, Graph, Node

VERSION = 1
_KINDS = (
    *("convolution", "depthwise", "matrix_product", "elementwise", "max_pool", "sum_pool", "sum", "table"),
    *("quantize", "dequantize", "softmax", "layer_norm", "copy"),
)
_KIND = {name: i for i, name in enumerate(_KINDS)}
_DTYPE = {"int8": 0, "uint8": 1, "float32": 2}
_NONE = (-1, 0)
# Below so many multiply-adds a second thread takes longer to wake up than it would help.
_WORTH_HELP = 1 << 21


@dataclass(frozen=True)
class Program:
    """`numbers` of the program; `constants` are the scalars that it reads from its first operand; `packed` the forms of
    those inputs of the region that are packed weights, by index."""

    numbers: np.ndarray
    constants: np.ndarray
    packed: dict[int, Form]


def encode(body: Graph) -> Program:
    """The program of a bound region."""
    return _Encoder(body).program()


def packed_weights(body: Graph) -> dict[int, Form]:
    """By the index of the region's input, the form of every weight that its program reads packed."""
    index = {node: i for i, node in enumerate(body.inputs)}
    return {index[node.operand("weight")]: Form.of(node) for node in body.nodes if node.op in ("conv", "dot")}


# What an operation has read: a value, encoded when the arena is laid out.
_Field = int | View


class _Encoder:
    def __init__(self, body: Graph) -> None:
        self.body = body
        self.views: dict[Node, View] = {}
        self.operations: list[list[_Field]] = []
        self.constants: list[float] = []
        self.arena = Arena()
        self.work = 0
        numbers = count(1)  # buffer 0 holds the constants
        for node in body.inputs:
            self.views[node] = self._buffer(next(numbers), node)
        self.results = [self._buffer(next(numbers), node) for node in body.outputs]
        self.buffers = next(numbers)

    def _buffer(self, number: int, node: Node) -> View:
        size = prod(node.aval.shape) * node.aval.dtype.itemsize
        return View.dense(Storage(size, number), node.aval.shape, node.aval.dtype)

    def program(self) -> Program:
        for node in self.body.nodes:
            if node.op in ("input", "const"):
                continue
            if node.op in MOVES:
                self.views[node] = self._moved(node)
            elif not self._is_part_of_next(node):
                self._compute(node)
        for node, result in zip(self.body.outputs, self.results, strict=True):
            if self.views[node].storage is not result.storage:
                self._copy(self.views[node], result)
        size = self.arena.layout()
        helpers = 0 if self.work < _WORTH_HELP else 2**31
        numbers = [VERSION, size, helpers, len(self.operations)]
        for operation in self.operations:
            for item in operation:
                numbers += self._place(item) if isinstance(item, View) else [item]
        constants = np.asarray(self.constants or [0.0], np.float32)
        return Program(np.asarray(numbers, np.int64), constants, packed_weights(self.body))

    def _place(self, view: View) -> tuple[int, int]:
        storage = view.storage
        number = self.buffers if storage.buffer is None else storage.buffer
        return number, storage.offset + view.byte_offset

    # --------------------------------------------------------------------------------------------------- where values lie

    def _allocate(self, shape: Sequence[int], dtype: np.dtype) -> View:
        storage = Storage(prod(shape) * dtype.itemsize)
        self.arena.storages.append(storage)
        return View.dense(storage, shape, dtype)

    def _target(self, node: Node) -> View:
        """The view that the node's value is to be written to."""
        if node in self.views:
            return self.views[node]
        users = self.body.users[node]
        if node in self.body.outputs:
            target = self.results[self.body.outputs.index(node)]
        elif len(users) == 1 and (inside := self._inside(node, users[0])) is not None:
            target = inside
        else:
            target = self._allocate(node.aval.shape, node.aval.dtype)
        self.views[node] = target
        return target

    def _inside(self, node: Node, user: Node) -> View | None:
        """The node's place in its only user's value, if that is a concatenation of channels, or a transpose that its rows
        can be strided over."""
        if user.op == "concatenate" and user.attrs["dimension"] == len(user.aval.shape) - 1 and user.inputs.count(node) == 1:
            whole = self._target(user)
            widths = [source.aval.shape[-1] for source in user.inputs]
            start = sum(widths[: user.inputs.index(node)])
            limit = (*whole.shape[:-1], start + node.aval.shape[-1])
            part = whole.slice((0,) * (len(limit) - 1) + (start,), limit, (1,) * len(limit))
            return part if part.rows() is not None else None
        if user.op == "transpose" and node.op == "matmul" and user.attrs["permutation"][-1] == len(node.aval.shape) - 1:
            permutation = user.attrs["permutation"]
            return self._target(user).transpose([permutation.index(i) for i in range(len(permutation))])
        return None

    def _moved(self, node: Node) -> View:
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
            return self._dense(x).reshape(node.aval.shape) if view is None else view  # type: ignore[return-value]
        return x

    def _concatenated(self, node: Node) -> View:
        whole = self._target(node)
        start, axis = 0, node.attrs["dimension"]
        for source in node.inputs:
            limit = list(whole.shape)
            low = [0] * len(limit)
            low[axis], limit[axis] = start, start + source.aval.shape[axis]
            part = whole.slice(low, limit, (1,) * len(limit))
            here = self.views[source]
            if here.storage is not part.storage or here.offset != part.offset:
                self._copy(here, part)
            start = limit[axis]
        return whole

    def _dense(self, view: View) -> View:
        copy = self._allocate(view.shape, view.dtype)
        self._copy(view, copy)
        return copy

    def _copy(self, source: View, target: View) -> None:
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
        self._emit("copy", *(axis[i] for i in range(3) for axis in axes), itemsize, source, target)

    # ---------------------------------------------------------------------------------------------------------- operations

    def _emit(self, kind: str, *fields: _Field) -> None:
        now = len(self.operations)
        for item in fields:
            if isinstance(item, View):
                item.storage.first = now if item.storage.first < 0 else item.storage.first
                item.storage.last = now
        self.operations.append([_KIND[kind], *fields])

    def _rows(self, view: View) -> tuple[View, int, int]:
        """The view, or a dense copy of it, with the number and the stride of its rows."""
        rows = view.rows()
        if rows is None:
            view = self._dense(view)
            rows = view.rows()
            assert rows is not None
        return view, *rows

    def _floats(self, node: Node) -> tuple[_Field, ...]:
        """A float32 constant: one of the call's operands, or a scalar among the constants."""
        if node.op != "const":
            return (self.views[node],)
        self.constants.append(float(node.value))
        return 0, 4 * (len(self.constants) - 1)

    def _compute(self, node: Node) -> None:
        if node.op in ACCUMULATING:
            getattr(self, f"_{node.op}")(node)
        elif node.op == "reduce_window_max":
            self._max_pool(node)
        else:
            self._by_rows(node)

    def _epilogue(self, node: Node, residual: Sequence[_Field] | None = None) -> list[_Field]:
        """The fields of the node's epilogue; its result is placed, as rows."""
        fields: list[_Field] = []
        for role in ("multiplier", "bias", "lo", "hi"):
            fields.append(self.views[node.operand(role)])
        fields += [self.views[node.operand("table")]] if node.get("table") is not None else _NONE
        fields += self._residual(node) if residual is None else residual
        target = self._target(node)
        rows = target.rows()
        if node.op == "matmul":
            stride = target.byte_stride(-2)
        else:
            assert rows is not None, node
            stride = rows[1]
        return [*fields, target, _DTYPE[node.aval.dtype.name], stride]

    def _residual(self, node: Node) -> list[_Field]:
        residual = node.get("residual")
        if residual is None:
            return [*_NONE, 0, 0, 1, 1, 1, 0]
        view, _, stride = self._rows(self.views[residual])
        how = Broadcast.of(residual.aval.shape, node.aval.shape)
        assert how is not None, node
        return [*self._residual_at(view, node), stride, how.repeat, how.period, how.step, self._factor(node)]

    def _residual_at(self, view: View, node: Node) -> list[_Field]:
        return [view, _DTYPE[node.operand("residual").aval.dtype.name]]

    @staticmethod
    def _factor(node: Node) -> int:
        return int(struct.unpack("<I", struct.pack("<f", float(node.operand("residual_multiplier").value)))[0])

    def _conv(self, node: Node) -> None:
        x, attrs = self.views[node.operand("x")], node.attrs
        kernel = node.operand("weight").aval.shape[:-2]
        window = self._window(node, x, kernel, attrs["strides"], attrs["padding"], attrs["rhs_dilation"])
        form = Form.of(node)
        groups: tuple[int, ...] = () if form.depthwise else (attrs["groups"], node.aval.shape[-1])
        weight = self.views[node.operand("weight")]
        self.work += prod(node.aval.shape) * prod(form.shape[:-1])
        epilogue = self._epilogue(node)
        self._emit("depthwise" if form.depthwise else "convolution", *window, *groups, weight, *epilogue)

    def _dot(self, node: Node) -> None:
        x, rows, stride = self._rows(self.views[node.operand("x")])
        depth = x.shape[-1]
        window = [rows, x, _DTYPE[x.dtype.name], 1, 1, depth, stride, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1]
        weight = self.views[node.operand("weight")]
        self.work += prod(node.aval.shape) * depth
        epilogue = self._epilogue(node)
        self._emit("convolution", *window, 1, node.aval.shape[-1], weight, *epilogue)

    def _window(
        self,
        node: Node,
        x: View,
        kernel: Sequence[int],
        strides: Sequence[int],
        padding: Sequence[tuple[int, int]],
        dilation: Sequence[int],
    ) -> list[_Field]:
        """The fields of a window over x; one spatial axis is an image one pixel high."""
        x, _, stride = self._rows(x)
        images, *spatial, channels = x.shape
        one = [1] * (2 - len(kernel))
        out = node.aval.shape[1:-1]
        low = [pair[0] for pair in padding]
        none = [0] * len(one)
        sizes = [*one, *spatial, channels, stride, *one, *kernel, *one, *strides, *none, *low, *one, *dilation, *one, *out]
        return [images, x, _DTYPE[x.dtype.name], *sizes]

    def _pool_window(self, node: Node, attrs: dict) -> list[_Field]:
        inner = slice(1, -1)
        return self._window(
            node,
            self.views[node.inputs[0]],
            attrs["window_dimensions"][inner],
            attrs["window_strides"][inner],
            attrs["padding"][inner],
            attrs["window_dilation"][inner],
        )

    def _max_pool(self, node: Node) -> None:
        window = self._pool_window(node, dict(node.attrs))
        target = self._target(node)
        rows = target.rows()
        assert rows is not None, node
        self._emit("max_pool", *window, target, rows[1])

    def _window_sum(self, node: Node) -> None:
        window = self._pool_window(node, dict(node.attrs["window"]))
        epilogue = self._epilogue(node)
        self._emit("sum_pool", *window, *epilogue)

    def _sum(self, node: Node) -> None:
        x, _, stride = self._rows(self.views[node.operand("x")])
        rows, channels = prod(node.aval.shape[:-1]), node.aval.shape[-1]
        terms = prod(x.shape[axis] for axis in node.attrs["axes"])
        source = x
        epilogue = self._epilogue(node)
        self._emit("sum", rows, terms, channels, source, _DTYPE[x.dtype.name], stride, *epilogue)

    def _affine(self, node: Node) -> None:
        self._elementwise(node, [*_NONE, 0, 0, 1, 1, 1])

    def _product(self, node: Node) -> None:
        y = node.operand("y")
        view, _, stride = self._rows(self.views[y])
        how = Broadcast.of(y.aval.shape, node.aval.shape)
        assert how is not None, node
        fields = [view, _DTYPE[view.dtype.name], stride, how.repeat, how.period, how.step]
        self._elementwise(node, fields)

    def _elementwise(self, node: Node, y: Sequence[_Field]) -> None:
        x, rows, stride = self._rows(self.views[node.operand("x")])
        source = [x, _DTYPE[x.dtype.name], stride]
        epilogue = self._epilogue(node)
        self._emit("elementwise", rows, x.shape[-1], *source, *y, *epilogue)

    def _matmul(self, node: Node) -> None:
        x, y = self.views[node.operand("x")], self.views[node.operand("y")]
        if x.shape[-1] != 1 and x.strides[-1] != 1:
            x = self._dense(x)
        target = self._target(node)
        residual, residual_fields = self._matmul_residual(node)
        views = [x, y, target] + ([residual] if residual is not None else [])
        batch = [1] * (5 - len(x.shape)) + list(target.shape[:-2])
        strides = [[0] * (5 - len(x.shape)) + [view.byte_stride(i) for i in range(len(x.shape) - 2)] for view in views]
        if residual is None:
            strides.append([0, 0, 0])
        rows, columns, depth = *target.shape[-2:], x.shape[-1]
        self.work += prod(target.shape) * depth
        fields: list[_Field] = [*batch, *(s for values in strides for s in values), rows, columns, depth]
        fields += [x, _DTYPE[x.dtype.name], x.byte_stride(-2)]
        fields += [y, y.byte_stride(-2), y.byte_stride(-1)]
        self._emit("matrix_product", *fields, *self._epilogue(node, residual_fields))

    def _matmul_residual(self, node: Node) -> tuple[View | None, list[_Field]]:
        """The residual's view over the axes of batch, and the fields that say how its rows go with the result's."""
        residual = node.get("residual")
        if residual is None:
            return None, self._residual(node)
        view = self.views[residual]
        view = View(view.storage, view.shape, view.strides, view.dtype, view.offset)
        missing = len(node.aval.shape) - len(view.shape)
        shape, strides = (1,) * missing + view.shape, (0,) * missing + view.strides
        if shape[-1] != 1 and strides[-1] != 1:
            view = self._dense(view)
            strides = (0,) * missing + view.strides
        strides = tuple(0 if n == 1 else stride for n, stride in zip(shape, strides, strict=True))
        view = View(view.storage, shape, strides, view.dtype, view.offset)
        how = Broadcast.of(shape[-2:], node.aval.shape[-2:])
        assert how is not None, node
        stride = view.byte_stride(-2)
        return view, [*self._residual_at(view, node), stride, how.repeat, how.period, how.step, self._factor(node)]

    def _is_part_of_next(self, node: Node) -> bool:
        """Whether the quantize that alone reads a softmax or layer norm computes it too."""
        users = self.body.users[node]
        fused = node.op in ("softmax", "layer_norm") and node not in self.body.outputs and len(users) == 1
        return fused and users[0].op == "quantize" and users[0].operand("multiplier").op == "const"

    def _by_rows(self, node: Node) -> None:
        """quantize, dequantize, table, softmax and layer_norm."""
        quantizer = None
        if node.op == "quantize" and node.operand("x").op in ("softmax", "layer_norm"):
            if self._is_part_of_next(node.operand("x")):
                quantizer, node = node, node.operand("x")
        result = quantizer or node
        x, rows, stride = self._rows(self.views[node.operand("x")])
        source = x
        operands = self._row_operands(node, quantizer)
        target = self._target(result)
        out = target.rows()
        if out is None:
            whole, target = target, self._allocate(target.shape, target.dtype)
            out = target.rows()
        else:
            whole = target
        assert out is not None
        fields = [rows, x.shape[-1], source, _DTYPE[x.dtype.name], stride]
        self._emit(node.op, *fields, target, _DTYPE[target.dtype.name], out[1], *operands)
        if whole is not target:
            self._copy(target, whole)

    def _row_operands(self, node: Node, quantizer: Node | None) -> list[_Field]:
        if node.op == "table":
            return [self.views[node.operand("table")]]
        if node.op in ("quantize", "dequantize"):
            factor = node.operand("multiplier" if node.op == "quantize" else "scale")
            return [int(factor.aval.shape != ()), *self._floats(factor)]
        self.constants.append(1.0)
        one = (0, 4 * (len(self.constants) - 1))
        fields: list[_Field] = [*(one if quantizer is None else self._floats(quantizer.operand("multiplier")))]
        if node.op == "layer_norm":
            for role in ("scale", "bias"):
                fields += self._floats(node.operand(role)) if node.get(role) is not None else _NONE
            epsilon = struct.unpack("<I", struct.pack("<f", node.attrs["epsilon"]))[0]
            fields += [int(epsilon), int(node.attrs["center"])]
        return fields
