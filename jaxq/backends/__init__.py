"""How an int8 node is computed on a device. A backend is a module of three functions over a node:

    supports(node) -> str | None        why it does not take the node, or None
    candidates(node) -> tuple           its tactics (kernel configs), the default first
    lower(node, tactic) -> function     of the node's operands

All backends give the bits of `graph.evaluate.reference`. `choose` is the table that puts one in place.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from jaxq.backends import pallas, xla
from jaxq.backends.cpu import library
from jaxq.graph.node import Node


def choose(node: Node) -> Callable[..., Any]:
    """The node's function: Pallas on NVIDIA GPUs where it takes the node, XLA everywhere else. (Which of them is
    faster for a shape is for a measurement to say, not for this table.)"""
    if "multiplier" in node.roles:
        library.tell_if_missing()
    default = xla.lower(node)
    if pallas.supports(node) is not None:
        return default
    kernel = pallas.lower(node)

    def run(*operands: Any) -> Any:
        if any(jax.typeof(operand).sharding.mesh.explicit_axes for operand in operands):
            return default(*operands)  # XLA partitions its own ops, but no kernel of ours
        return lax.platform_dependent(*operands, cuda=kernel, default=default)

    return run
