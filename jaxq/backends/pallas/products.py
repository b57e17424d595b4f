"""dot and matmul through `pallas_kernels.matmul`; a dot's leading axes are rows of one matrix."""

from collections.abc import Callable
from math import prod
from typing import Any

import pallas_kernels
from jaxq.backends.pallas.operands import epilogue, epilogue_struct, struct, why_not_residual
from jaxq.backends.pallas.weights import deepened, for_kernel
from jaxq.graph.node import Node


def supports(node: Node) -> str | None:
    """Why no kernel takes the bound node, or None."""
    return why_not_residual(node) or pallas_kernels.supports(*_types(node), out_dtype=node.aval.dtype)


def candidates(node: Node) -> tuple[Any, ...]:
    """The kernels' configs, the default first."""
    return pallas_kernels.candidates(*_types(node), out_dtype=node.aval.dtype)


def lower(node: Node, tactic: Any = None) -> Callable[..., Any]:
    """The function of the node's operands."""
    x_shape, _, out_shape = _shapes(node)

    def run(*operands: Any) -> Any:
        given = dict(zip(node.roles, operands, strict=True))
        w, offset = (given["y"], None) if node.op == "matmul" else for_kernel(given["weight"], is_conv=False)
        y = pallas_kernels.matmul(
            deepened(given["x"].reshape(x_shape), w.shape[-1]),
            w,
            epilogue(node, given, out_shape),
            out_dtype=node.aval.dtype,
            offset=offset,
            config=tactic,
        )
        return y.reshape(node.aval.shape)

    return run


def _second(node: Node) -> Node:
    return node.operand("y" if node.op == "matmul" else "weight")


def _types(node: Node) -> tuple[Any, Any, pallas_kernels.Epilogue]:
    x, w, out = _shapes(node)
    return struct(node.operand("x"), x), struct(_second(node), w), epilogue_struct(node, out)


def _shapes(node: Node) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The shapes of x (..., M, K), w (..., N, K) and the output (..., M, N) as the kernel takes them."""
    x, w = node.operand("x").aval.shape, _second(node).aval.shape
    if node.op == "dot":
        return (prod(x[:-1]), x[-1]), w, (prod(x[:-1]), w[0])
    return x, w, node.aval.shape
