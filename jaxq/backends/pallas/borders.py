"""quantize and dequantize through the kernels of their names."""

from collections.abc import Callable
from typing import Any

import pallas_kernels
from jaxq.backends.pallas.operands import struct
from jaxq.graph.node import Node


def supports(node: Node) -> str | None:
    """Why the kernel does not take the bound node, or None."""
    x, factor = node.inputs
    return pallas_kernels.borders.supports(struct(x), struct(factor), dtype=node.aval.dtype)


def candidates(node: Node) -> tuple[Any, ...]:
    """The kernel's configs, the default first."""
    return pallas_kernels.borders.candidates(struct(node.inputs[0]).size)


def lower(node: Node, tactic: Any = None) -> Callable[..., Any]:
    """The function of the node's operands."""
    kernel = pallas_kernels.quantize if node.op == "quantize" else pallas_kernels.dequantize
    return lambda x, factor: kernel(x, factor, dtype=node.aval.dtype, config=tactic)
