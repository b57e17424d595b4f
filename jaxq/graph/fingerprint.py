"""What tells one network from another: a line for every node of its graph, and a digest for every array it is made of.

Two fingerprints are compared part by part, so that a difference has a name.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxq.graph.node import Graph, Names, Node


@dataclass(frozen=True)
class Fingerprint:
    """`layers`: {node name: op, value, operands and a digest of the attributes} of the traced graph and its bodies, in
    program order.
    `variables`: {name: shape, dtype and a digest of the bytes} of the user's variables and of the arrays that the
    function closes over; what the result does not depend on, such as the state of dropout, is left out."""

    layers: Mapping[str, str]
    variables: Mapping[str, str]

    def differences(self, other: "Fingerprint") -> list[str]:
        """What `other` has differently, each in one phrase: changed variables first, then layers."""
        found = _differences("variable", self.variables, other.variables)
        return found + _differences("layer", self.layers, other.layers)


def fingerprint(traced: Graph) -> Fingerprint:
    """The fingerprint of a graph as it was traced.

    (In a simplified one, folded weights stand for the variables, the numbers and the ops that made them, and depend in
    their last bits on the device that folded them.)
    """
    names = Names()
    variables = {node: names.unique(node.name) for node in traced.all_nodes if node.is_constant and node.name}

    def operand(node: Node) -> str:
        return variables.get(node) or _operand(node, node.name)

    nodes = [node for node in traced.all_nodes if not node.is_constant]
    lines = {node.name: _line(node, operand) for node in nodes}
    return Fingerprint(
        layers=lines | {"(outputs)": " ".join(map(operand, traced.outputs))},
        variables={name: _array_line(node.value) for node, name in variables.items()},
    )


def _differences(kind: str, ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    changed = [f"{kind} {name!r} differs" for name in ours if name in theirs and ours[name] != theirs[name]]
    missing = [f"{kind} {name!r} is missing" for name in ours if name not in theirs]
    added = [f"{kind} {name!r} is new" for name in theirs if name not in ours]
    return changed + missing + added


def _signature(body: Graph) -> list[str]:
    """What a body takes and gives; its nodes have lines of their own."""
    return [" ".join(_operand(node, node.name) for node in ends) for ends in (body.inputs, body.outputs)]


def _operand(node: Node, name: str) -> str:
    if not node.is_constant:
        return name
    return _array_line(node.value) if node.aval.shape else f"{node.aval} {node.value}"


def _line(node: Node, operand: Callable[[Node], str]) -> str:
    attrs = {key: _plain(value) for key, value in sorted(node.attrs.items())}
    operands = ", ".join(map(operand, node.inputs))
    return f"{node.op} {_plain(node.aval)} ({operands}) {_digest(repr(attrs).encode())}"


def _plain(value: Any) -> Any:
    """Attributes as data whose `repr` says all of them, and nothing of where they lie in memory."""
    if isinstance(value, Graph):
        return _signature(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(str(_plain(item)) for item in value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _array_line(value)
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def _array_line(array: Any) -> str:
    if jax.dtypes.issubdtype(getattr(array, "dtype", None), jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    array = np.asarray(array)
    return f"{array.dtype}{list(array.shape)} {_digest(np.ascontiguousarray(array).tobytes())}"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
