"""The backend for NVIDIA GPUs: int8 products and convolutions through `pallas_kernels`.

products.py         dot, and matmul, the product of two activations
convolutions.py     conv, of any geometry
operands.py         a node's operands as the kernels take them
weights.py          weights in the kernels' form, made once

quantize and dequantize are XLA's: it fuses them into the float ops around them, which then move no byte more.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from jaxq.backends.pallas import convolutions, products
from jaxq.backends.pallas.weights import pack
from jaxq.graph.node import Node

__all__ = ["candidates", "lower", "pack", "supports"]

# Each module gives supports, candidates and lower, of a bound node.
_MODULES: dict[str, ModuleType] = {
    "dot": products,
    "matmul": products,
    "conv": convolutions,
}


def supports(node: Node) -> str | None:
    """Why no kernel takes the (bound) node, or None."""
    if node.op not in _MODULES or "multiplier" not in node.roles:
        return f"{node.op} has no kernel"
    if not all(isinstance(dim, int) for value in (node, *node.inputs) for dim in value.aval.shape):
        return "its batch size is symbolic"
    reason: str | None = _MODULES[node.op].supports(node)
    return reason


def candidates(node: Node) -> tuple[Any, ...]:
    """The kernels' configs for the node's shapes, the heuristic default first."""
    configs: tuple[Any, ...] = _MODULES[node.op].candidates(node)
    return configs


def lower(node: Node, tactic: Any = None) -> Callable[..., Any]:
    """The function of the node's operands as one kernel; the heuristic config unless a tactic is given."""
    function: Callable[..., Any] = _MODULES[node.op].lower(node, tactic)
    return function
