"""Loops, as the passes want them: a scan over stacked weights is written out, any other loop holds its constants.

Each turn of a scan over stacked weights (`nn.scan`, `nnx.scan`, `lax.scan` over layers) becomes plain nodes, as if the
user had written the layers one after the other: with names, scales and merges of their own. The number of the turn
stands in their names behind the path that all nodes of the turn share, `Net/layers/3/attn/query`, and so it does in
those of the parameters' slices, `layers/3/attn/query/kernel`.

Every other scan, while and cond stays; the constants among its operands move into its bodies, where the passes find
constant weights.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxq.graph.node import CONTROL, Aval, Graph, Node, constant

# What computes with weights, or may inside.
_READS_WEIGHTS = CONTROL | {"dot_general", "conv_general_dilated"}


def unrolled(graph: Graph) -> Graph:
    """The traced graph with its scans over stacked weights written out, and other loops' constants inside them."""
    return _Unrolling().body(graph, [None] * len(graph.inputs))


@dataclass
class _Unrolling:
    """`known`: the nodes that follow from constants alone."""

    known: set[Node] = field(default_factory=set)

    def body(self, graph: Graph, given: Sequence[Node | None]) -> Graph:
        """The graph with nodes in the place of those inputs for which one is given."""
        pairs = list(zip(graph.inputs, given, strict=True))
        outputs = self.inlined(graph, [node or own for own, node in pairs])
        return Graph(tuple(own for own, node in pairs if node is None), tuple(outputs))

    def inlined(
        self, graph: Graph, operands: Sequence[Node], rename: Callable[[Node], Node] = lambda node: node
    ) -> list[Node]:
        """The outputs of the graph on the operands, of nodes made anew."""
        new = dict(zip(graph.inputs, operands, strict=True))
        results: dict[Node, list[Node]] = {}  # of the scans that are written out
        for node in graph.nodes:
            if node in new:
                continue
            if node.is_constant:
                new[node] = node
            elif node.op == "item" and node.inputs[0] in results:
                new[node] = results[node.inputs[0]][node.attrs["index"]]
            else:
                moved = rename(node.replace(inputs=tuple(new[source] for source in node.inputs)))
                if self.scans_weights(moved):
                    results[node] = self.turns(moved)
                else:
                    new[node] = self.note(self.holding_constants(moved))
        return [new[node] for node in graph.outputs]

    def is_known(self, node: Node) -> bool:
        return node.is_constant or node in self.known

    def note(self, node: Node) -> Node:
        plain = node.op != "opaque" and isinstance(node.aval, Aval) and not node.aval.follows_batch
        if plain and node.inputs and all(map(self.is_known, node.inputs)):
            self.known.add(node)
        return node

    def scans_weights(self, node: Node) -> bool:
        """Whether a dot, a convolution or a loop in the body of a scan reads what follows from the slices of stacked
        constants."""
        if node.op != "scan" or node.attrs["length"] == 0:
            return False
        body, first = node.attrs["body"], node.attrs["num_consts"] + node.attrs["num_carry"]
        pairs = list(zip(body.inputs, node.inputs, strict=True))
        sliced = {own for own, operand in pairs[first:] if self.is_known(operand)}
        known = sliced | {own for own, operand in pairs[: node.attrs["num_consts"]] if self.is_known(operand)}
        for inner in body.nodes if sliced else ():
            if inner.op in _READS_WEIGHTS and any(source in sliced for source in inner.inputs):
                return True
            if inner.is_constant or (inner.inputs and all(source in known for source in inner.inputs)):
                known.add(inner)
                if any(source in sliced for source in inner.inputs):
                    sliced.add(inner)
        return False

    def turns(self, node: Node) -> list[Node]:
        """The results of a scan, turn after turn."""
        attrs = node.attrs
        body, length, num_carry, num_consts = attrs["body"], attrs["length"], attrs["num_carry"], attrs["num_consts"]
        consts, rest = node.inputs[:num_consts], node.inputs[num_consts:]
        carry, stacks = list(rest[:num_carry]), rest[num_carry:]
        own_path = _shared(inner.scope.split("/") for inner in body.nodes if inner.scope)
        array_path = _shared(stack.name.split("/")[:-1] for stack in stacks if stack.is_constant)
        ys: list[list[Node]] = [[]] * length
        for turn in reversed(range(length)) if attrs["reverse"] else range(length):
            slices = [self.slice(stack, turn, array_path, f"{node.name}/{turn}/slice") for stack in stacks]
            results = self.inlined(body, [*consts, *carry, *slices], _numbered(own_path, turn))
            carry, ys[turn] = results[:num_carry], results[num_carry:]
        avals = node.aval[num_carry:]
        stacked = [
            Node("stack", column, {"axis": 0}, aval, f"{node.name}/stack", scope=node.scope)
            for column, aval in zip(zip(*ys, strict=True), avals, strict=True)
        ]
        return [*carry, *stacked]

    def slice(self, stack: Node, turn: int, shared: Sequence[str], name: str) -> Node:
        """What a turn sees of what is scanned over: of a parameter its slice, at once."""
        if stack.is_constant:
            is_key = jax.dtypes.issubdtype(stack.aval.dtype, jax.dtypes.prng_key)
            array = stack.value if is_key else np.asarray(stack.value)
            path = [*shared, str(turn), *stack.name.split("/")[len(shared) :]]
            return constant(array[turn], "/".join(part for part in path if part))
        shape = stack.aval.shape[1:]
        attrs = {
            "start_indices": (turn, *(0 for _ in shape)),
            "limit_indices": (turn + 1, *shape),
            "strides": None,
        }
        row = Node("slice", (stack,), attrs, Aval((1, *shape), stack.aval.dtype), name, scope=stack.scope)
        aval = Aval(shape, stack.aval.dtype)
        return self.note(Node("squeeze", (self.note(row),), {"dimensions": (0,)}, aval, name, scope=stack.scope))

    def holding_constants(self, node: Node) -> Node:
        """A scan, while or cond with its constant operands inside its bodies; any other node as it is."""
        if node.op not in CONTROL:
            return node
        given = [operand if self.is_known(operand) else None for operand in node.inputs]
        attrs: dict[str, Any]
        if node.op == "scan":
            consts, others = given[: node.attrs["num_consts"]], node.inputs[node.attrs["num_consts"] :]
            body = self.body(node.attrs["body"], [*consts, *(None for _ in others)])
            attrs, kept = {"body": body, "num_consts": consts.count(None)}, len(consts)
        elif node.op == "while":
            first, kept = node.attrs["cond_nconsts"], node.attrs["cond_nconsts"] + node.attrs["body_nconsts"]
            carry = [None] * (len(given) - kept)
            attrs = {
                "cond": self.body(node.attrs["cond"], [*given[:first], *carry]),
                "body": self.body(node.attrs["body"], [*given[first:kept], *carry]),
                "cond_nconsts": given[:first].count(None),
                "body_nconsts": given[first:kept].count(None),
            }
        else:
            given, kept = [None, *given[1:]], len(given)
            attrs = {"branches": tuple(self.body(branch, given[1:]) for branch in node.attrs["branches"])}
        left = (operand for i, operand in enumerate(node.inputs) if i >= kept or given[i] is None)
        return node.with_attrs(**attrs).replace(inputs=tuple(left))


def _shared(paths: Iterable[Sequence[str]]) -> Sequence[str]:
    """The components with which all the paths begin."""
    shared: Sequence[str] | None = None
    for path in paths:
        same = 0
        while shared is not None and same < min(len(shared), len(path)) and shared[same] == path[same]:
            same += 1
        shared = path if shared is None else shared[:same]
    return shared or ()


def _numbered(shared: Sequence[str], turn: int) -> Callable[[Node], Node]:
    """Puts the number of the turn behind the shared path; nodes without a layer keep their names, which then come from
    their weights."""

    def numbered(path: str) -> str:
        parts = path.split("/")
        inside = shared and tuple(parts[: len(shared)]) == tuple(shared)
        return "/".join([*shared, str(turn), *parts[len(shared) :]]) if inside else path

    def rename(node: Node) -> Node:
        node = node.with_bodies(lambda body: body.map(rename))
        return node.replace(name=numbered(node.name), scope=numbered(node.scope))

    return rename
