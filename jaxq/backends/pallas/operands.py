"""A node's operands as the kernels take them: as types, to ask whether they do, and as arrays."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import pallas_kernels
from jaxq.graph.node import Node

_SUMMED = ("x", "y", "weight")


def struct(node: Node, shape: tuple[int, ...] | None = None) -> jax.ShapeDtypeStruct:
    """The type of a value, in a shape of as many elements."""
    return jax.ShapeDtypeStruct(node.aval.shape if shape is None else shape, node.aval.dtype)


def epilogue_struct(node: Node, shape: tuple[int, ...]) -> pallas_kernels.Epilogue:
    """The types of the epilogue's operands, for an output that the kernel sees in that shape."""
    shapes = {"residual": shape, "row_scale": shape[:-1]}
    given = {role: struct(node.operand(role), shapes.get(role)) for role in node.roles if role not in _SUMMED}
    return pallas_kernels.Epilogue(**given)


def epilogue(node: Node, given: Mapping[str, Any], shape: tuple[int, ...]) -> pallas_kernels.Epilogue:
    """The epilogue's operands, for an output that the kernel sees in that shape."""
    operands = {role: value for role, value in given.items() if role not in _SUMMED}
    if "residual" in operands:
        operands["residual"] = jnp.broadcast_to(operands["residual"], node.aval.shape).reshape(shape)
    if "row_scale" in operands:
        operands["row_scale"] = operands["row_scale"].reshape(shape[:-1])
    return pallas_kernels.Epilogue(**operands)


def why_not_residual(node: Node) -> str | None:
    """Why the residual is not written out in the output's shape, or None. Of bytes that costs what the output does; of
    floats (an attention's mask), several times that, where XLA reads them as they are."""
    residual = node.get("residual")
    if residual is None or residual.aval.shape == node.aval.shape or residual.aval.dtype.itemsize == 1:
        return None
    return "its residual is broadcast from floats"
