"""The backend for NVIDIA GPUs: dots and 1x1 convolutions through `pallas_kernels.matmul` (4-way int8 dot products)."""

from collections.abc import Callable
from math import prod
from typing import Any

import jax

import pallas_kernels
from jaxq.graph.node import Node


def supports(node: Node) -> str | None:
    """Why the kernel does not take the (bound) node, or None."""
    if "multiplier" not in node.roles or node.op not in ("conv", "dot"):
        return f"{node.op} has no kernel yet"
    if node.op == "conv" and not _is_pointwise(node):
        return "only 1x1 convolutions without padding and groups are matrix products"
    rows, depth, columns = _sizes(node)
    if not isinstance(rows, int):
        return "its batch size is symbolic"
    x = jax.ShapeDtypeStruct((rows, depth), node.operand("x").aval.dtype)
    weight = jax.ShapeDtypeStruct((columns, depth), node.operand("weight").aval.dtype)
    shortcut = node.get("residual")
    if shortcut is not None and shortcut.aval.shape != node.aval.shape:
        return "its residual is broadcast"
    given = {
        role: jax.ShapeDtypeStruct((rows, columns) if role == "residual" else node.operand(role).aval.shape, node.operand(role).aval.dtype)
        for role in node.roles
        if role not in ("x", "weight")
    }
    return pallas_kernels.supports(x, weight, pallas_kernels.Epilogue(**given), out_dtype=node.aval.dtype)


def candidates(node: Node) -> tuple[pallas_kernels.Config, ...]:
    """The kernel's configs for the node's shapes, the heuristic default first."""
    rows, depth, columns = _sizes(node)
    return pallas_kernels.candidates(rows, columns, depth)


def lower(node: Node, tactic: pallas_kernels.Config | None = None) -> Callable[..., Any]:
    """The function of the node's operands as one kernel; the heuristic config unless a tactic is given."""
    rows, depth, columns = _sizes(node)

    def run(*operands: Any) -> Any:
        given = dict(zip(node.roles, operands, strict=True))
        x, weight = given.pop("x"), given.pop("weight")
        if node.op == "conv":
            strides = (1, *node.attrs["strides"], 1)
            x = jax.lax.slice(x, (0,) * x.ndim, x.shape, strides)
            weight = weight.reshape(depth, columns).T
        if "residual" in given:
            given["residual"] = given["residual"].reshape(rows, columns)
        epilogue = pallas_kernels.Epilogue(**given)
        y = pallas_kernels.matmul(x.reshape(rows, depth), weight, epilogue, out_dtype=node.aval.dtype, config=tactic)
        return y.reshape(node.aval.shape)

    return run


def _is_pointwise(node: Node) -> bool:
    kernel = node.operand("weight").aval.shape[:-2]
    attrs = node.attrs
    plain = attrs["groups"] == 1 and not any(map(any, attrs["padding"])) and set(attrs["lhs_dilation"]) == {1}
    return plain and set(kernel) == {1}


def _sizes(node: Node) -> tuple[Any, int, int]:
    """Rows M, depth K and columns N of the node's matrix product."""
    *outer, columns = node.aval.shape
    return prod(outer), node.operand("x").aval.shape[-1], columns
