"""Which values cannot be negative, whatever the input: they are uint8, one bit of resolution more than int8."""

from collections.abc import Iterable

import jax
import numpy as np

from jaxq.graph.node import ACCUMULATING, LAYOUT, WEIGHTED, Aval, Graph, Node, reads_bytes

# Primitives whose result cannot be negative, whatever they are given.
_NEVER_NEGATIVE = frozenset({"abs", "exp", "exp2", "softmax", "logistic", "sqrt", "rsqrt", "square", "cosh", "erfc"})
# Primitives whose float result cannot be negative when no operand is.
_KEEPS_SIGN = LAYOUT | {"add", "mul", "div", "reduce_sum", "reduce_window_sum", "select_n", "cumsum", "log1p"}


def never_negative(graph: Graph, known: Iterable[Node] = ()) -> set[Node]:
    """The nodes whose value cannot be negative where those of `known` are not."""
    found: set[Node] = set(known)
    for node in graph.nodes:
        if _is_never_negative(node, found):
            found.add(node)
    return found


def _is_never_negative(node: Node, known: set[Node]) -> bool:
    if node.is_constant:
        value = np.asarray(node.value)
        return value.dtype.kind in "ub" or bool(np.all(value.astype(np.float32) >= 0))
    if not isinstance(node.aval, Aval):
        return False
    if jax.dtypes.issubdtype(node.aval.dtype, np.unsignedinteger) or node.aval.dtype == np.bool_:
        return True
    if not node.aval.is_float:
        return False  # integers wrap, and PRNG keys are no numbers
    operands_are = bool(node.inputs) and all(source in known for source in node.inputs)
    if node.op == "elementwise":
        body = node.attrs["body"]
        return body.outputs[0] in never_negative(body, set(body.inputs) if operands_are else set())
    if node.op in ACCUMULATING:
        return node.attrs["hi"] >= 0 and (node.attrs["lo"] >= 0 or (node.op not in WEIGHTED and operands_are))
    if reads_bytes(node):
        return True
    return node.op in _NEVER_NEGATIVE or (node.op in _KEEPS_SIGN and operands_are)
