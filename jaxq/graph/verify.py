"""What a graph must hold at each stage: a pass that breaks it is a bug in jaxq, found here and not in a result."""

from collections.abc import Callable

import numpy as np

from jaxq import numerics
from jaxq.graph.node import ACCUMULATING, BORDERS, LAYOUT, WEIGHTED, Aval, Graph, Node
from jaxq.graph.ops import EPILOGUE, OPS, wrong_attribute
from jaxq.graph.primitives import BY_NAME


def verify(graph: Graph, stage: str) -> Graph:
    """The graph itself, if it is legal at the stage ("float" or "quantized"), bodies included; else a ValueError that
    names the node."""
    names: set[tuple[bool, str]] = set()
    for node in graph.all_nodes:
        for wrong, says in _CHECKS[stage]:
            if wrong(node):
                raise ValueError(f"{node!r} {says}")
        if (attribute := wrong_attribute(node)) is not None:
            raise ValueError(f"{node!r} {attribute}")
        name = (node.op == "param", node.name)  # arrays and layers have name spaces of their own
        if node.op != "const" and name in names:
            raise ValueError(f"{node!r} shares its name with another node")
        names.add(name)
    return graph


def _is_integer(node: Node) -> bool:
    return isinstance(node.aval, Aval) and node.aval.dtype.name in numerics.BOUNDS and not node.is_constant


def _is_int8(node: Node) -> bool:
    return node.op in ACCUMULATING and "multiplier" in node.roles


def _unknown(node: Node) -> bool:
    return node.op not in OPS and node.op not in BY_NAME


def _missing_roles(node: Node) -> bool:
    given = set(node.roles)
    needed = {*(OPS[node.op].roles if node.op in OPS else ()), *(EPILOGUE if _is_int8(node) else ())}
    if _is_int8(node) and "residual" in given:
        needed.add("residual_multiplier")
    return not needed <= given or (bool(given) and not len(given) == len(node.roles) == len(node.inputs))


def _bad_vector(node: Node) -> bool:
    channels = node.aval.shape[-1] if _is_int8(node) else 0
    return _is_int8(node) and any(
        node.operand(role).aval != Aval((channels,), np.dtype(np.float32)) for role in EPILOGUE
    )


def _bad_norm(node: Node) -> bool:
    vectors = [node.get(role) for role in ("scale", "bias")] if node.op == "layer_norm" else []
    expected = Aval(node.aval.shape[-1:], np.dtype(np.float32)) if vectors else None
    return any(vector is not None and vector.aval != expected for vector in vectors)


def _bad_groups(node: Node) -> bool:
    """Attributes are checked behind the checks."""
    if node.op != "weight_only_dot" or wrong_attribute(node) is not None:
        return False
    x = node.operand("x").aval
    if not isinstance(x, Aval) or not x.is_float or not x.shape or not isinstance(x.shape[-1], int):
        return True
    channels, depth = node.aval.shape[-1], x.shape[-1]
    width, dtype = (depth, np.int8) if node.attrs["bits"] == 8 else (-(-depth // 2), np.uint8)
    weight = Aval((channels, width), np.dtype(dtype))
    scale = Aval((channels, -(-depth // node.attrs["group_size"])), np.dtype(np.float32))
    expected = {"weight": weight, "scale": scale, "bias": Aval((channels,), np.dtype(np.float32))}
    return any(node.operand(role).aval != aval for role, aval in expected.items() if role in node.roles)


def _bad_table(node: Node) -> bool:
    table = node.get("table")
    return table is not None and table.aval != Aval((256,), node.aval.dtype)


def _unscaled(node: Node) -> bool:
    made = _is_int8(node) or node.op in ("quantize", "quantize_rows", "table")
    return made and _is_integer(node) and node.qtype is None


def _bad_scale(node: Node) -> bool:
    if node.qtype is None:
        return False
    scale = node.qtype.scale
    if not isinstance(node.aval, Aval) or node.qtype.dtype not in numerics.BOUNDS:
        return True
    if node.qtype.dtype != node.aval.dtype.name or not isinstance(scale, float | np.floating | np.ndarray):
        return True
    return np.ndim(scale) > 1 or not np.all(np.isfinite(scale) & (np.asarray(scale) > 0))


def _bad_zero_point(node: Node) -> bool:
    """A zero point is one of the dtype's integers. A border of values that have one takes it as an operand."""
    zero_point = 0 if node.qtype is None else node.qtype.zero_point
    lowest, highest = numerics.BOUNDS.get(node.aval.dtype.name, (0, 0))
    if not isinstance(zero_point, int) or not lowest <= zero_point <= highest:
        return True
    return node.op == "quantize" and _zero_operand(node) != zero_point


def _bad_dequantize(node: Node) -> bool:
    qtype = node.operand("x").qtype if node.op == "dequantize" else None
    return qtype is not None and _zero_operand(node) != qtype.zero_point


def _zero_operand(node: Node) -> float:
    zero_point = node.get("zero_point")
    return 0.0 if zero_point is None else float(zero_point.value) if zero_point.op == "const" else np.nan


def _moves_zero(node: Node) -> bool:
    """What only moves integers changes nothing of what they stand for."""
    if node.op not in LAYOUT or node.qtype is None:
        return False
    moved = (source.qtype for source in node.inputs)
    return any(qtype is not None and qtype.zero_point != node.qtype.zero_point for qtype in moved)


def _bad_row_scale(node: Node) -> bool:
    scale = node if node.op == "row_scale" else node.get("row_scale")
    if scale is None:
        return False
    factor, x = node.get("factor"), node.operand("x")
    is_off = factor is not None and factor.aval != Aval(x.aval.shape[-1:], np.dtype(np.float32))
    return is_off or node.op not in ("row_scale", "quantize_rows", "dot") or scale.aval != _of_rows(x)


def _of_rows(x: Node) -> Aval | None:
    """What the scales of the value's rows are; None where it has no rows."""
    return Aval((*x.aval.shape[:-1], 1), np.dtype(np.float32)) if x.aval.shape and x.aval.shape[-1] != 0 else None


def _mixed_weight(node: Node) -> bool:
    if node.op not in WEIGHTED:
        return False
    is_int8 = node.operand("weight").aval.dtype.name == "int8"
    return is_int8 != _is_int8(node) or is_int8 != (node.operand("x").aval.dtype.name in numerics.BOUNDS)


_Check = tuple[Callable[[Node], bool], str]
_ANY: tuple[_Check, ...] = (
    (_unknown, "is no op that jaxq knows"),
    (_missing_roles, "lacks an operand"),
    (_bad_norm, "has a scale or bias that is no float32 vector of its channels"),
    (_mixed_weight, "multiplies integers with floats"),
)
_CHECKS: dict[str, tuple[_Check, ...]] = {
    "float": (
        *_ANY,
        (_is_int8, "has an int8 epilogue in a float graph"),
        (lambda node: node.op in {*BORDERS, "table", "weight_only_dot"}, "is an int8 op in a float graph"),
    ),
    "quantized": (
        *_ANY,
        (_bad_vector, "has an epilogue operand that is no float32 vector of its channels"),
        (_bad_groups, "has a weight, scales or a bias that do not fit its groups and channels"),
        (_bad_table, "has a table that is not 256 entries of its dtype"),
        (_bad_row_scale, "has scales of rows that are no float32, or not one a row"),
        (_unscaled, "makes integers of unknown scale"),
        (_bad_scale, "has a scale that is no positive number, or is of another dtype"),
        (lambda node: node.qtype is not None and _bad_zero_point(node), "has a zero point that its dtype does not"),
        (_bad_dequantize, "takes another zero point than its operand has"),
        (_moves_zero, "moves integers of another zero point"),
    ),
}
