"""Which nodes the CPU kernels take. One look at the node, whose dimensions may follow the batch (`Dim`)."""

from collections.abc import Mapping
from math import prod
from typing import Any

from jaxq.backends.cpu.functions import form_of
from jaxq.backends.cpu.views import Broadcast
from jaxq.backends.tactics import XLA, of
from jaxq.graph.node import ACCUMULATING, Aval, Node

MOVES = frozenset({"reshape", "transpose", "squeeze", "slice", "concatenate", "copy", "stop_gradient", "name"})
_ROWS = frozenset({"quantize", "dequantize", "table", "softmax", "layer_norm", "row_scale", "quantize_rows"})
_OF_FLOATS = frozenset({"quantize", "softmax", "layer_norm", "row_scale", "quantize_rows"})
_TO_FLOATS = frozenset({"dequantize", "softmax", "layer_norm", "row_scale"})
_MOVES_FLOATS = "it moves floats"
_DTYPES = ("int8", "uint8", "float32")


def why_not(node: Node) -> str | None:
    """Why the kernels do not take a node of the int8 graph, or None."""
    if of(node) == XLA:
        return "its tactic is XLA's"
    if not isinstance(node.aval, Aval) or node.aval.dtype.name not in _DTYPES:
        return "its result is neither int8, uint8 nor float32"
    if any(
        not isinstance(s.aval, Aval) or (not s.is_constant and s.aval.dtype.name not in _DTYPES) for s in node.inputs
    ):
        return "an operand is neither int8, uint8 nor float32"
    if not node.aval.shape or (node.op not in MOVES and not isinstance(node.aval.shape[-1], int)):
        return "it has no axis of channels"
    if 0 in node.aval.shape:
        return "it is empty"
    if "multiplier" in node.roles and node.op in ACCUMULATING:
        return _epilogue(node) or _accumulating(node)
    if node.op == "weight_only_dot":
        return _weight_only_dot(node)
    if node.op in MOVES:
        if _is_bytes(node):
            return None
        return _MOVES_FLOATS if node.inputs[0].aval.dtype == node.aval.dtype else "it converts"
    if node.op == "reduce_window_max":
        return _window(node, node.attrs) if _is_bytes(node) else "it is float"
    if node.op == "pad":
        return _pad(node) if _is_bytes(node) else "it pads floats"
    if node.op == "elementwise":
        return "there is no kernel for its function" if form_of(node) is None else None
    if node.op in _ROWS:
        return _rows(node)
    return f"there is no kernel for {node.op}"


def moves_floats(node: Node) -> bool:
    """Whether the node moves floats, which is worth nothing where no kernels make them or read them."""
    return why_not(node) == _MOVES_FLOATS


def _is_bytes(node: Node) -> bool:
    return node.aval.dtype.name != "float32" and node.inputs[0].aval.dtype == node.aval.dtype


def _rows(node: Node) -> str | None:
    x = node.operand("x")
    if node.get("zero_point") is not None:
        return "its values have a zero point"
    takes_float, gives_float = node.op in _OF_FLOATS, node.op in _TO_FLOATS
    if (x.aval.dtype.name == "float32") != takes_float or (node.aval.dtype.name == "float32") != gives_float:
        return "it computes in another dtype than float32"
    if node.op == "quantize_rows" and not _has_its_own_scales(node):
        return "its rows have the scales of others"
    return None if x.aval.shape else "it is one number"


def _pad(node: Node) -> str | None:
    config = node.attrs["padding_config"]
    if node.inputs[1].op != "const":
        return "its padding is not constant"
    if any(low < 0 or high < 0 for low, high, _ in config):
        return "it crops its operand"
    if any(config[0]) or 0 in node.inputs[0].aval.shape:
        return "it pads its batch, or nothing"
    return "it has more than five axes" if len(config) > 5 else None


def _has_its_own_scales(node: Node) -> bool:
    scale = node.operand("row_scale")
    return scale.op == "row_scale" and all(scale.get(role) is node.get(role) for role in ("x", "factor"))


def _epilogue(node: Node) -> str | None:
    if any(not node.operand(role).is_constant for role in ("multiplier", "bias", "lo", "hi")):
        return "its epilogue is not constant"
    residual = node.get("residual")
    if residual is None:
        return None
    if not node.operand("residual_multiplier").is_constant or node.operand("residual_multiplier").op != "const":
        return "its residual's scale is not constant"
    if residual.aval.dtype.name not in _DTYPES:
        return "its residual is neither int8, uint8 nor float32"
    axes = len(node.aval.shape) - 2 if node.op == "matmul" else 0
    return broadcasts(residual.aval.shape, node.aval.shape, axes)


def broadcasts(operand: tuple[Any, ...], result: tuple[Any, ...], batch_axes: int = 0) -> str | None:
    """Any axes of a batch are strided over; the others have to broadcast as rows do."""
    shape = (1,) * (len(result) - len(operand)) + tuple(operand)
    fits = Broadcast.of(_sized(shape[batch_axes:]), _sized(result[batch_axes:]))
    return "an operand is broadcast over axes in the middle" if fits is None else None


def _sized(shape: tuple[Any, ...]) -> tuple[int, ...]:
    """Axes that follow the batch as some number that no other axis has."""
    return tuple(dim if isinstance(dim, int) else 10007 for dim in shape)


def _accumulating(node: Node) -> str | None:
    x = node.operand("x")
    if x.aval.dtype.name == "float32":
        return "it computes on floats"
    if node.op == "conv":
        return _conv(node)
    if node.op == "matmul":
        if node.operand("y").aval.dtype.name != "int8":
            return "its second operand is not int8"
        return "it has more than three axes of batch" if len(node.aval.shape) > 5 else None
    if node.op == "product":
        if x.aval.shape != node.aval.shape:
            return "its first operand is broadcast"
        return broadcasts(node.operand("y").aval.shape, node.aval.shape)
    if node.op == "window_sum":
        return _window(node, node.attrs["window"])
    if node.op == "sum":
        rank = len(x.aval.shape)
        axes = tuple(sorted(node.attrs["axes"]))
        return None if axes == tuple(range(rank - 1 - len(axes), rank - 1)) else "it sums over other axes than rows"
    if node.op == "affine" and x.aval.shape != node.aval.shape:
        return "its operand is broadcast"
    return None


def _weight_only_dot(node: Node) -> str | None:
    if any(node.operand(role).aval.dtype.name != "float32" for role in ("x", "residual") if role in node.roles):
        return "it computes in another dtype than float32"
    if node.aval.dtype.name != "float32":
        return "its result is not float32"
    if any(not node.operand(role).is_constant for role in ("weight", "scale", "bias") if role in node.roles):
        return "its weight is not constant"
    if node.operand("x").aval.shape[-1] == 0:
        return "it is empty"
    residual = node.get("residual")
    return None if residual is None else broadcasts(residual.aval.shape, node.aval.shape)


def _conv(node: Node) -> str | None:
    attrs = node.attrs
    if not 1 <= len(attrs["strides"]) <= 2:
        return "it has three spatial axes"
    if any(d != 1 for d in attrs["lhs_dilation"]):
        return "it dilates its input"
    if any(p < 0 for pair in attrs["padding"] for p in pair):
        return "it crops its input"
    spatial = (*node.operand("x").aval.shape[1:-1], *node.aval.shape[1:-1])
    if not all(isinstance(dim, int) for dim in spatial):
        return "a spatial axis follows the batch"
    return None if node.operand("weight").is_constant else "its kernel is not constant"


def _window(node: Node, attrs: Mapping[str, Any]) -> str | None:
    sizes = attrs["window_dimensions"]
    rank = len(sizes)
    still = (0, rank - 1)
    moves = any(attrs[key][i] != 1 for key in ("window_dimensions", "window_strides", "window_dilation") for i in still)
    padded = any(any(attrs["padding"][i]) for i in still)
    if not 3 <= rank <= 4 or moves or padded or any(d != 1 for d in attrs["base_dilation"]):
        return "its window is not one over an image"
    if any(p < 0 for pair in attrs["padding"] for p in pair):
        return "it crops its input"
    spatial = (*node.inputs[0].aval.shape[1:-1], *node.aval.shape[1:-1])
    if not all(isinstance(dim, int) for dim in spatial):
        return "a spatial axis follows the batch"
    return None if prod(sizes) < 2**23 else "its window is too large"
