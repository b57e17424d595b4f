"""A region as the program that `src/operations.h` runs: a list of numbers.

    version, bytes of the arena, helpers wanted, number of blocks (`blocks.py`)
    number of operands and results, and of each the bytes from one block to the next
    number of operations, and of each its kind and its fields, for one block

A value is (buffer, offset in bytes): the call's operands first, then its results, then the arena. Views make slices,
transposes and most concatenations free: whoever reads or writes the value strides over it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from jaxq.backends.cpu.blocks import batch_of, block_size
from jaxq.backends.cpu.epilogues import Epilogues, overwritten
from jaxq.backends.cpu.functions import form_of
from jaxq.backends.cpu.fused import expansion_of, is_made_before, is_part_of_next, quantize_of
from jaxq.backends.cpu.library import cpus
from jaxq.backends.cpu.packing import AnyForm, Form, GroupForm
from jaxq.backends.cpu.row_sums import RowSums
from jaxq.backends.cpu.takes import MOVES
from jaxq.backends.cpu.values import DTYPE, NONE, Field, bits
from jaxq.backends.cpu.views import Broadcast, View, dense_strides
from jaxq.graph.node import ACCUMULATING, Graph, Node

VERSION = 10
# Below so many multiply-adds a second thread takes longer to wake up than it would help.
_WORTH_HELP = 1 << 21


@dataclass(frozen=True)
class Program:
    """`numbers` of the program; `constants` are the scalars that it reads from its first operand; `packed` the forms of
    those inputs of the region that are packed weights, by index."""

    numbers: np.ndarray
    constants: np.ndarray
    packed: dict[int, AnyForm]


def encode(body: Graph, unbound: Graph) -> Program:
    """The program of a region: `body` is `unbound` bound to a batch size."""
    is_cut = [node.aval.follows_batch for node in (*unbound.inputs, *unbound.outputs)]
    batch = batch_of(unbound, body)
    if batch < 2:
        return _Encoder(body).program(1, is_cut)
    size = block_size(batch, _Encoder(unbound.bind(1)).numbers()[1], cpus())
    return _Encoder(unbound.bind(size)).program(batch // size, is_cut)


def packed_weights(body: Graph) -> dict[int, AnyForm]:
    """By the index of the region's input, the form of every weight, and of scales in groups, that its program reads
    packed."""
    index = {node: i for i, node in enumerate(body.inputs)}
    forms: dict[int, AnyForm] = {}
    for node in body.nodes:
        if node.op in ("conv", "dot"):
            forms[index[node.operand("weight")]] = Form.of(node)
        elif node.op == "weight_only_dot":
            for source in (node.operand("weight"), node.operand("scale")):
                forms[index[source]] = GroupForm(source.aval.shape, source.aval.dtype)
    return forms


class _Encoder(Epilogues, RowSums):
    def __init__(self, body: Graph) -> None:
        super().__init__(body)
        self.constants: list[float] = []
        self.work = 0
        for node in self.body.nodes:
            if node.op in ("input", "const"):
                continue
            if node.op in MOVES:
                self.views[node] = self.moved(node)
            elif not (
                is_part_of_next(self.body, node) or is_made_before(self.body, node) or self.is_summed_later(node)
            ):
                self._compute(node)
        for node, result in zip(self.body.outputs, self.results, strict=True):
            if self.views[node].storage is not result.storage:
                self.copy(self.views[node], result)

    def program(self, blocks: int, is_cut: Sequence[bool]) -> Program:
        """That of so many blocks, of which the body is one; each has a part of its own of the inputs and results that
        are cut."""
        helpers = 0 if self.work * blocks < _WORTH_HELP else 2**31
        operations, size = self.numbers()
        ends = [self.views[node] for node in self.body.inputs] + self.results
        steps = [view.storage.size if cut else 0 for view, cut in zip(ends, is_cut, strict=True)]
        numbers = [VERSION, size, helpers, blocks, len(steps), *steps, len(self.operations), *operations]
        constants = np.asarray(self.constants or [0.0], np.float32)
        return Program(np.asarray(numbers, np.int64), constants, packed_weights(self.body))

    def _floats(self, node: Node) -> tuple[Field, ...]:
        """A float32 constant: one of the call's operands, or a scalar among the constants."""
        if node.op != "const":
            return (self.views[node],)
        self.constants.append(float(node.value))
        return 0, 4 * (len(self.constants) - 1)

    def _compute(self, node: Node) -> None:
        if self.row_sum(node):
            return
        if node.op in ACCUMULATING:
            getattr(self, f"_{node.op}")(node)
        elif node.op == "weight_only_dot":
            self._weight_only_dot(node)
        elif node.op == "reduce_window_max":
            self._max_pool(node)
        elif node.op == "pad":
            self._pad(node)
        elif node.op == "row_scale":
            self._rows_and_scales(node)
        else:
            self._by_rows(node)

    def _conv(self, node: Node) -> None:
        form, expansion = Form.of(node), expansion_of(node)
        self.work += prod(node.aval.shape) * prod(form.shape[:-1])
        if expansion is not None and is_part_of_next(self.body, expansion):
            return self._expansion(expansion, node)
        groups: tuple[int, ...] = () if form.depthwise else (node.attrs["groups"], node.aval.shape[-1])
        window, weight = self._conv_window(node), self.views[node.operand("weight")]
        self.emit("depthwise" if form.depthwise else "convolution", *window, *groups, weight, *self.epilogue(node))

    def _conv_window(self, node: Node) -> list[Field]:
        x, attrs, kernel = self.views[node.operand("x")], node.attrs, node.operand("weight").aval.shape[:-2]
        return self._window(node, x, kernel, attrs["strides"], attrs["padding"], attrs["rhs_dilation"])

    def _expansion(self, node: Node, depthwise: Node) -> None:
        """A convolution and the depthwise one of its result, which is nowhere as a whole."""
        self.work += prod(node.aval.shape) * prod(node.operand("weight").aval.shape[:-1])
        fields = [*self._conv_window(node), node.aval.shape[-1], self.views[node.operand("weight")]]
        fields += [*self.epilogue_values(node), DTYPE[node.aval.dtype.name]]
        attrs = depthwise.attrs
        low = [pair[0] for pair in attrs["padding"]]
        fields += [*depthwise.operand("weight").aval.shape[:-2], *attrs["strides"], *low, *attrs["rhs_dilation"]]
        fields += [*depthwise.aval.shape[1:-1], self.views[depthwise.operand("weight")], *self.epilogue(depthwise)]
        self.emit("expansion", *fields)

    def _dot(self, node: Node) -> None:
        x, rows, stride = self.rows(self.views[node.operand("x")])
        depth = x.shape[-1]
        window: list[Field] = [rows, x, DTYPE[x.dtype.name], 1, 1, depth, stride, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1]
        weight = self.views[node.operand("weight")]
        self.work += prod(node.aval.shape) * depth
        epilogue = self.epilogue(node)
        self.emit("convolution", *window, 1, node.aval.shape[-1], weight, *epilogue)

    def _weight_only_dot(self, node: Node) -> None:
        x, rows, stride = self.rows(self.views[node.operand("x")])
        depth, channels, attrs = x.shape[-1], node.aval.shape[-1], node.attrs
        self.work += prod(node.aval.shape) * depth
        fields: list[Field] = [rows, x, stride, depth, int(attrs["bits"] == 4), attrs["group_size"], channels]
        fields += [self.views[node.operand("weight")], self.views[node.operand("scale")]]
        fields += NONE if node.get("bias") is None else [self.views[node.operand("bias")]]
        fields += [bits(attrs["lo"]), bits(attrs["hi"])]
        residual = node.get("residual")
        fields += [*NONE, 0, 1, 1, 1] if residual is None else self.broadcast(residual, node)
        target = self.target(node)
        out = target.rows()
        assert out is not None, node
        self.emit("weight_only_dot", *fields, target, out[1])

    def _window(
        self,
        node: Node,
        x: View,
        kernel: Sequence[int],
        strides: Sequence[int],
        padding: Sequence[tuple[int, int]],
        dilation: Sequence[int],
    ) -> list[Field]:
        """The fields of a window over x; one spatial axis is an image one pixel high."""
        x, _, stride = self.rows(x)
        images, *spatial, channels = x.shape
        one = [1] * (2 - len(kernel))
        out = node.aval.shape[1:-1]
        low = [pair[0] for pair in padding]
        none = [0] * len(one)
        sizes = [
            *one,
            *spatial,
            channels,
            stride,
            *one,
            *kernel,
            *one,
            *strides,
            *none,
            *low,
            *one,
            *dilation,
            *one,
            *out,
        ]
        return [images, x, DTYPE[x.dtype.name], *sizes]

    def _pool_window(self, node: Node, attrs: dict) -> list[Field]:
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
        target = self.target(node)
        rows = target.rows()
        assert rows is not None, node
        self.emit("max_pool", *window, target, rows[1])

    def _pad(self, node: Node) -> None:
        """A buffer of the padding's value, and the operand copied into it."""
        target, x = self.target(node), self.views[node.inputs[0]]
        is_dense = target.strides == dense_strides(target.shape)
        whole = target if is_dense else self.allocate(target.shape, target.dtype)
        low, _, between = zip(*node.attrs["padding_config"], strict=True)
        step = [gap + 1 for gap in between]
        limit = [start + (n - 1) * s + 1 for start, n, s in zip(low, x.shape, step, strict=True)]
        self.emit("fill", prod(whole.shape), int(node.inputs[1].value) & 255, whole)
        self.copy(x, whole.slice(low, limit, step))
        if not is_dense:
            self.copy(whole, target)

    def _window_sum(self, node: Node) -> None:
        window = self._pool_window(node, dict(node.attrs["window"]))
        epilogue = self.epilogue(node)
        self.emit("sum_pool", *window, *epilogue)

    def _sum(self, node: Node) -> None:
        x, _, stride = self.rows(self.views[node.operand("x")])
        rows, channels = prod(node.aval.shape[:-1]), node.aval.shape[-1]
        terms = prod(x.shape[axis] for axis in node.attrs["axes"])
        source = x
        epilogue = self.epilogue(node)
        self.emit("sum", rows, terms, channels, source, DTYPE[x.dtype.name], stride, *epilogue)

    def _affine(self, node: Node) -> None:
        self._elementwise(node, [*NONE, 0, 0, 1, 1, 1])

    def _product(self, node: Node) -> None:
        view, *how = self.broadcast(node.operand("y"), node)
        self._elementwise(node, [view, DTYPE[view.dtype.name], *how])

    def _elementwise(self, node: Node, y: Sequence[Field]) -> None:
        x, rows, stride = self.rows(self.views[node.operand("x")])
        source: list[Field] = [x, DTYPE[x.dtype.name], stride]
        epilogue = self.epilogue(node)
        self.emit("elementwise", rows, x.shape[-1], *source, *y, *epilogue)

    def _matmul(self, node: Node, result: Node | None = None, softmax: Sequence[Field] = NONE) -> None:
        """The product; with the multiplier of a softmax, `result`, which is that or its quantized value."""
        x, y = self.views[node.operand("x")], self.views[node.operand("y")]
        if x.shape[-1] != 1 and x.strides[-1] != 1:
            x = self.dense(x)
        target = self.target(result or node)
        residual, residual_fields = self._matmul_residual(node)
        views = [x, y, target] + ([residual] if residual is not None else [])
        batch = [1] * (5 - len(x.shape)) + list(target.shape[:-2])
        strides = [[0] * (5 - len(x.shape)) + [view.byte_stride(i) for i in range(len(x.shape) - 2)] for view in views]
        if residual is None:
            strides.append([0, 0, 0])
        rows, columns, depth = *target.shape[-2:], x.shape[-1]
        self.work += prod(target.shape) * depth
        fields: list[Field] = [*batch, *(s for values in strides for s in values), rows, columns, depth]
        fields += [x, DTYPE[x.dtype.name], x.byte_stride(-2)]
        fields += [y, y.byte_stride(-2), y.byte_stride(-1)]
        self.emit("matrix_product", *fields, *self.epilogue(node, residual_fields, result), *softmax)

    def _matmul_residual(self, node: Node) -> tuple[View | None, list[Field]]:
        """The residual's view over the axes of batch, and the fields that say how its rows go with the result's."""
        residual = node.get("residual")
        if residual is None:
            return None, self.residual(node)
        view = self.views[residual]
        view = View(view.storage, view.shape, view.strides, view.dtype, view.offset)
        missing = len(node.aval.shape) - len(view.shape)
        shape, strides = (1,) * missing + view.shape, (0,) * missing + view.strides
        if shape[-1] != 1 and strides[-1] != 1:
            view = self.dense(view)
            strides = (0,) * missing + view.strides
        strides = tuple(0 if n == 1 else stride for n, stride in zip(shape, strides, strict=True))
        view = View(view.storage, shape, strides, view.dtype, view.offset)
        how = Broadcast.of(shape[-2:], node.aval.shape[-2:])
        assert how is not None, node
        stride = view.byte_stride(-2)
        return view, [*self.residual_at(view, node), stride, how.repeat, how.period, how.step, self.factor(node)]

    def _by_rows(self, node: Node) -> None:
        """quantize, dequantize, table, softmax, layer_norm and functions of floats."""
        quantizer, result = None, node
        if node.op == "quantize" and is_part_of_next(self.body, node.operand("x")):
            quantizer, node = node, node.operand("x")
        if node.op == "softmax" and is_part_of_next(self.body, node.operand("x")):
            return self._matmul(node.operand("x"), result, self._row_operands(node, quantizer))
        x, rows, stride = self.rows(self.views[node.operand("x")])
        operands = self._row_operands(node, quantizer)
        target = self.target(result, overwritten(result))
        out = target.rows()
        if out is None:
            whole, target = target, self.allocate(target.shape, target.dtype)
            out = target.rows()
        else:
            whole = target
        assert out is not None
        fields: list[Field] = [rows, x.shape[-1], x, DTYPE[x.dtype.name], stride]
        kind = "function" if node.op == "elementwise" else node.op
        self.emit(kind, *fields, target, DTYPE[target.dtype.name], out[1], *operands)
        if whole is not target:
            self.copy(target, whole)

    def _rows_and_scales(self, node: Node) -> None:
        """row_scale and the quantize_rows that reads it, as one operation, and the function of the rows before them."""
        source = node.operand("x")
        form = form_of(source) if is_part_of_next(self.body, source) else None
        x, rows, stride = self.rows(self.views[source if form is None else source.operand("x")])
        quantized = next((user for user in self.body.users[node] if user.op == "quantize_rows"), None)
        factor = self._floats(node.operand("factor")) if node.get("factor") is not None else NONE
        fields: list[Field] = [rows, x.shape[-1], x, DTYPE[x.dtype.name], stride]
        if quantized is None:
            fields += [self.allocate(x.shape, np.dtype(np.int8)), DTYPE["int8"], x.shape[-1]]
        else:
            fields += self._target_rows(quantized)
        function = [0] if form is None else [1, *form.fields()]
        self.emit("quantize_rows", *fields, self.target(node), *factor, *function)

    def _row_operands(self, node: Node, quantizer: Node | None) -> list[Field]:
        if node.op == "table":
            return [self.views[node.operand("table")]]
        if node.op == "elementwise":
            form = form_of(node)
            assert form is not None
            return [*form.fields()]
        if node.op in ("quantize", "dequantize"):
            factor = node.operand("multiplier" if node.op == "quantize" else "scale")
            return [int(factor.aval.shape != ()), *self._floats(factor)]
        made_with = quantize_of(self.body, node)
        quantizer = quantizer or made_with
        self.constants.append(1.0)
        one = (0, 4 * (len(self.constants) - 1))
        fields: list[Field] = [*(one if quantizer is None else self._floats(quantizer.operand("multiplier")))]
        if node.op == "layer_norm":
            for role in ("scale", "bias"):
                fields += self._floats(node.operand(role)) if node.get(role) is not None else NONE
            fields += [bits(node.attrs["epsilon"]), int(node.attrs["center"])]
            fields += [*NONE, 0, 0] if made_with is None else self._target_rows(made_with)
        return fields

    def _target_rows(self, node: Node) -> list[Field]:
        """Where the node's value is to be written to, its dtype, and the stride of its rows."""
        target = self.target(node)
        rows = target.rows()
        assert rows is not None, node
        return [target, DTYPE[target.dtype.name], rows[1]]
