"""The algebra of accumulating ops: y = sum * scale[c] + bias[c] + residual, clipped to [lo, hi].

Scaling and shifting such an op by constants per channel changes only its weights, scale and bias.
"""

import numpy as np

from jaxq.graph.node import WEIGHTED, Node, constant

OPEN = {"lo": -np.inf, "hi": np.inf}


def is_open(node: Node) -> bool:
    """True for an accumulating op to whose sum more may be added: no activation and no residual yet."""
    return has_no_bounds(node) and node.get("residual") is None


def has_no_bounds(node: Node) -> bool:
    """True for an accumulating op without an activation: a bias may be added behind its residual as well as before."""
    return node.attrs["lo"] == -np.inf and node.attrs["hi"] == np.inf


def scaled(node: Node, scale: np.ndarray) -> Node:
    """The accumulating op with its sum and bias multiplied by scale[c]."""
    operands = dict(zip(node.roles, node.inputs, strict=True))
    if node.op in WEIGHTED:
        weight = operands["weight"].value
        factor = scale if node.op == "conv" else scale[:, None]
        operands["weight"] = weight_of(node, weight * factor)  # one rounding: a product of two float32 needs no more
    else:
        before = operands["scale"].value if "scale" in operands else 1.0
        operands["scale"] = vector(before * scale.astype(np.float64), node, "scale")
    if "bias" in operands:
        operands["bias"] = vector(operands["bias"].value * scale.astype(np.float64), node, "bias")
    return ordered(node, operands)


def shifted(node: Node, bias: np.ndarray) -> Node:
    """The accumulating op with bias[c] added."""
    operands = dict(zip(node.roles, node.inputs, strict=True))
    before = operands["bias"].value if "bias" in operands else 0.0
    operands["bias"] = vector(before + bias.astype(np.float64), node, "bias")
    return ordered(node, operands)


def ordered(node: Node, operands: dict[str, Node]) -> Node:
    order = ("x", "weight", "y", "scale", "bias", "residual")
    return node.with_operands({role: operands.get(role) for role in order})


def vector(value: np.ndarray, node: Node, role: str) -> Node:
    return constant(np.asarray(value, np.float32), f"{node.name}/{role}")


def weight_of(node: Node, value: np.ndarray) -> Node:
    return constant(np.ascontiguousarray(value, np.float32), f"{node.name}/weight")
