"""A simplified float graph of jaxq as an ONNX model, for the runtimes that jaxq is compared with.

The peers get the graph that jaxq quantizes, batch norms folded, but channels first throughout, as they like it:
pictures go in as NCHW, and no transpose is left inside.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from jaxq.graph.node import Graph, Node

OPSET = 17
IR_VERSION = 10  # the newest that both runtimes read
BATCH = "batch"
_TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}


class Writer:
    """Collects the nodes and arrays of an ONNX graph; every method returns the name of a value."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, dtype: str, *shape: int) -> str:
        """An input of that shape behind the batch axis."""
        self.inputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], [BATCH, *shape]))
        return name

    def array(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"array{len(self.arrays)}"
        self.arrays.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def op(self, op: str, *inputs: str, **attrs: Any) -> str:
        name = f"{op}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name, **attrs))
        return f"{name}_out"

    def model(self, output: str, *shape: int) -> onnx.ModelProto:
        """The model with that output, of that shape behind the batch axis."""
        made = helper.make_tensor_value_info(output, TensorProto.FLOAT, [BATCH, *shape])
        graph = helper.make_graph(self.nodes, "network", self.inputs, [made], self.arrays)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return model


def convolutional(graph: Graph) -> onnx.ModelProto:
    """The simplified graph of a convolutional network with one input and one output, as ONNX."""
    writer, values = Writer(), dict[Node, str]()
    for node in graph.nodes:
        if node.op == "input":
            values[node] = writer.input("input", node.aval.dtype.name, *_channels_first(node.aval.shape[1:]))
        elif not node.is_constant:
            values[node] = _write(writer, node, [values.get(source, "") for source in node.inputs])
    (output,) = graph.outputs
    return writer.model(values[output], *_channels_first(output.aval.shape[1:]))


def _channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[-1], *shape[:-1])


def _write(writer: Writer, node: Node, inputs: list[str]) -> str:
    """The node's value, computed from the values of its operands ("" for those that are constant)."""
    if node.op == "reduce_window_max":
        window, strides = node.attrs["window_dimensions"][1:3], node.attrs["window_strides"][1:3]
        pads = _pads(node.attrs["padding"][1:3])
        return writer.op("MaxPool", inputs[0], kernel_shape=window, strides=strides, pads=pads)
    if node.op == "concatenate" and node.attrs["dimension"] == len(node.aval.shape) - 1:
        return writer.op("Concat", *inputs, axis=1)
    given = dict(zip(node.roles, inputs, strict=True))
    if node.op == "conv":
        value = _convolution(writer, node, given["x"])
    elif node.op == "dot":
        bias = node.get("bias")
        arrays = [writer.array(array.value) for array in (node.operand("weight"), bias) if array is not None]
        value = writer.op("Gemm", given["x"], *arrays, transB=1)
    elif node.op == "sum" and node.attrs["axes"] == (1, 2):
        value = writer.op("Flatten", writer.op("GlobalAveragePool", given["x"]))
        _check_mean(node)
    elif node.op == "affine" and set(node.roles) == {"x", "residual"}:
        value = given["x"]
    else:
        raise NotImplementedError(f"{node.name}: no ONNX form of {node.op} {node.roles} is written here")
    if "residual" in given:
        value = writer.op("Add", value, given["residual"])
    return _clipped(writer, node, value)


def _convolution(writer: Writer, node: Node, x: str) -> str:
    weight, bias = np.asarray(node.operand("weight").value), node.get("bias")
    arrays = [writer.array(weight.transpose(3, 2, 0, 1))]
    if bias is not None:
        arrays.append(writer.array(bias.value))
    return writer.op(
        "Conv",
        x,
        *arrays,
        kernel_shape=weight.shape[:2],
        strides=node.attrs["strides"],
        dilations=node.attrs["rhs_dilation"],
        pads=_pads(node.attrs["padding"]),
        group=node.attrs["groups"],
    )


def _pads(padding: tuple[tuple[int, int], ...]) -> list[int]:
    """ONNX lists what is added before every axis, then what is added behind."""
    return [low for low, _ in padding] + [high for _, high in padding]


def _check_mean(node: Node) -> None:
    _, height, width, _ = node.operand("x").aval.shape
    if not np.allclose(np.asarray(node.operand("scale").value), 1 / (height * width)):
        raise NotImplementedError(f"{node.name}: a sum that is not a mean")


def _clipped(writer: Writer, node: Node, value: str) -> str:
    low, high = node.attrs["lo"], node.attrs["hi"]
    if (low, high) == (-np.inf, np.inf):
        return value
    if (low, high) == (0, np.inf):
        return writer.op("Relu", value)
    return writer.op("Clip", value, writer.array(low), writer.array(high))
