"""The graph: frozen nodes whose edges are references. A rewrite makes new nodes and never changes one.

Ops that jaxq understands (after `passes`):

    conv, dot          x, weight, [bias], [residual]           channels last; weight HWIO for conv, (N, K) for dot
    matmul             x, y, [scale], [bias], [residual]       two values: (..., M, K) times (..., N, K) to (..., M, N)
    product            x, y, [scale], [bias], [residual]       x * y, y broadcast to the shape of x: a gate
    sum, window_sum    x, [scale], [bias], [residual]          mean and average pool: a sum and its scale
    affine             x, [scale], [bias], [residual]          x * scale + bias + residual: batch norm, add, relu
    elementwise        x                                       any function of one value, as a graph `attrs["body"]`;
                                                               `attrs["word"]` names it: "gelu", "silu", ...
    table              x, table                                its int8 form: 256 entries, one for each byte
    softmax            x                                       exp(x - max) / sum of the last axis, in float32
    layer_norm         x, [scale], [bias]                      of the last axis, in float32, scale and bias by channel;
                                                               `attrs["epsilon"]`; without `attrs["center"]` RMS norm
    weight_only_dot    x, weight, scale, [bias], [residual]    a dot of floats; by `attrs["bits"]` the weight is int8
                                                               (N, K), or int4 packed to uint8 (N, K / 2); its scale by
                                                               channel and `attrs["group_size"]` inputs
    quantize, dequantize                                       the borders of the int8 regions
    row_scale          x, [factor]                             the scale of each row, (..., 1), of its largest magnitude
    quantize_rows      x, row_scale, [factor]                  the border of a dot that reads such rows

The first five rows are the accumulating ops: they clip to `attrs["lo"], attrs["hi"]` last (an activation), and in the
quantized graph take x, [weight or y], multiplier, bias, lo, hi, [residual, residual_multiplier], [table], see
`numerics.epilogue`; a dot of rows with scales of their own takes row_scale, too. A residual may broadcast to the op's
shape.
Every other op is a JAX primitive: by its portable name (`graph/primitives.py`), or "opaque" with the primitive itself,
which a file holds as "stablehlo" (`plan/stablehlo.py`).

The attributes of scan, while and cond hold graphs, their bodies, whose "input" nodes stand for the operands. What a
body reads of constants stands inside it (`graph/unroll.py`). Names are unique over a graph and all its bodies.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np

ACCUMULATING = frozenset({"conv", "dot", "matmul", "product", "sum", "window_sum", "affine"})
WEIGHTED = frozenset({"conv", "dot"})
# The ops that int8 is there for. They read these operands as integers.
ANCHORS = {"conv": ("x",), "dot": ("x",), "matmul": ("x", "y")}

# What stands between floats and integers, and computes neither.
BORDERS = frozenset({"quantize", "dequantize", "row_scale", "quantize_rows"})

# The primitives whose attributes hold graphs, their bodies.
CONTROL = frozenset({"scan", "while", "cond"})
# Primitives that move values, or choose among them, and make none: integers pass through as they are.
LAYOUT = frozenset(
    {
        *("reshape", "transpose", "squeeze", "broadcast_in_dim", "tile", "rev", "concatenate", "stack"),
        *("slice", "dynamic_slice", "gather", "pad", "max", "min", "reduce_max", "reduce_window_max"),
        *("convert_element_type", "copy", "name", "stop_gradient"),
    }
)


@dataclass(frozen=True)
class Dim:
    """A dimension that follows the batch size: `per_batch * batch + constant`."""

    per_batch: int
    constant: int

    def bind(self, batch: int) -> int:
        return self.per_batch * batch + self.constant


@dataclass(frozen=True)
class Aval:
    """Shape and dtype of a value. A dimension is an int, or a `Dim` where it follows the batch size."""

    shape: tuple[Any, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        dims = ", ".join("batch" if dim == Dim(1, 0) else str(dim) for dim in self.shape)
        return f"{self.dtype}[{dims}]"

    @property
    def is_float(self) -> bool:
        return self.dtype.name in ("float32", "bfloat16", "float16")

    @property
    def leads_batch(self) -> bool:
        """True where the leading axis is the batch."""
        return bool(self.shape) and self.shape[0] == Dim(1, 0)

    @property
    def follows_batch(self) -> bool:
        """True where any axis follows the batch size."""
        return any(isinstance(dim, Dim) for dim in self.shape)


@dataclass(frozen=True, eq=False)
class QType:
    """What an integer value stands for: real = scale * (q - zero_point). `scale` is a float, or one per last-axis
    channel; where rows have scales of their own, it is in units of these. `zero_point` is another integer than 0 only
    of uint8 values that can be negative, and of int8 values that tables read."""

    dtype: str
    scale: float | np.ndarray
    zero_point: int = 0


@dataclass(frozen=True, eq=False)
class Node:
    """One operation and the value it makes.

    `roles` names the inputs where the op takes them by name; `aval` is a tuple for the few primitives with several
    results, whose values are then picked by "item" nodes; `scope` is the path of the layer the node was traced in. In
    the quantized graph `fused` says what the node's epilogue holds and `reason` why a node stays in float.
    """

    op: str
    inputs: tuple["Node", ...]
    attrs: Mapping[str, Any]
    aval: Any
    name: str = ""
    roles: tuple[str, ...] = ()
    qtype: QType | None = None
    scope: str = ""
    fused: tuple[str, ...] = ()
    reason: str = ""

    def get(self, role: str) -> "Node | None":
        """The input of that role, or None."""
        return self.inputs[self.roles.index(role)] if role in self.roles else None

    def operand(self, role: str) -> "Node":
        """The input of that role."""
        return self.inputs[self.roles.index(role)]

    @property
    def is_constant(self) -> bool:
        return self.op in ("const", "param")

    @property
    def value(self) -> Any:
        """The array of a "const" or "param" node."""
        return self.attrs["value"]

    @property
    def bodies(self) -> "tuple[Graph, ...]":
        """The graphs inside a scan, while or cond."""
        if self.op not in CONTROL:
            return ()
        values = (value if isinstance(value, tuple) else (value,) for value in self.attrs.values())
        return tuple(item for items in values for item in items if isinstance(item, Graph))

    def with_bodies(self, change: "Callable[[Graph], Graph]") -> "Node":
        """The node with `change` applied to each of its bodies."""
        if self.op not in CONTROL:
            return self

        def changed(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(changed, value))
            return change(value) if isinstance(value, Graph) else value

        return self.replace(attrs={key: changed(value) for key, value in self.attrs.items()})

    def replace(self, **changes: Any) -> "Node":
        return dataclasses.replace(self, **changes)

    def with_operands(self, operands: Mapping[str, "Node | None"], **changes: Any) -> "Node":
        """The same op on the given operands; those that are None are left out."""
        present = {role: node for role, node in operands.items() if node is not None}
        return self.replace(inputs=tuple(present.values()), roles=tuple(present), **changes)

    def with_attrs(self, **attrs: Any) -> "Node":
        return self.replace(attrs={**self.attrs, **attrs})

    def __repr__(self) -> str:
        return f"Node({self.op}, {self.name!r}, {self.aval})"


def constant(value: Any, name: str = "") -> Node:
    """A node that holds a value: "const" for a scalar, which is compiled in; "param" for an array, an argument."""
    if not isinstance(value, jax.Array):
        value = np.asarray(value)
        value = value.astype(jax.dtypes.canonicalize_dtype(value.dtype), copy=False)
    aval = Aval(tuple(value.shape), value.dtype)
    return Node("const" if aval.shape == () else "param", (), {"value": value}, aval, name)


def uniform(node: Node) -> Any:
    """The one number that every element of a constant is, also of one that is broadcast at run time; else None."""
    if node.op in ("broadcast_in_dim", "reshape", "convert_element_type"):
        return uniform(node.inputs[0])
    if not node.is_constant or node.value.size == 0:
        return None
    value = np.asarray(node.value)
    first = value.reshape(-1)[0]
    return first if value.size == 1 or bool(np.all(value == first)) else None


def is_int8(node: Node) -> bool:
    """True for what computes in int8: it makes integers or reads them."""
    if node.op == "input" or node.is_constant:
        return False
    return node.qtype is not None or "multiplier" in node.roles or node.op in BORDERS


def precision(node: Node) -> str:
    """What a node computes in: "int8" or "float"; "int8 weight-only" or "int4 weight-only", on floats."""
    if node.op == "weight_only_dot":
        return f"int{node.attrs['bits']} weight-only"
    return "int8" if is_int8(node) else "float"


def reads_bytes(node: Node) -> bool:
    """True for the conversion of bytes, an image's, to floats."""
    if node.op != "convert_element_type" or not node.aval.is_float or node.inputs[0].is_constant:
        return False
    return bool(node.inputs[0].aval.dtype == np.uint8)


def topological(outputs: tuple[Node, ...]) -> tuple[Node, ...]:
    """All nodes that the outputs need, inputs before users."""
    order: dict[int, Node] = {}
    stack: list[tuple[Node, Iterator[Node]]] = []
    entered: set[int] = set()
    for output in outputs:
        if id(output) in entered:
            continue
        entered.add(id(output))
        stack.append((output, iter(output.inputs)))
        while stack:
            node, rest = stack[-1]
            below = next((child for child in rest if id(child) not in entered), None)
            if below is None:
                stack.pop()
                order[id(node)] = node
            else:
                entered.add(id(below))
                stack.append((below, iter(below.inputs)))
    return tuple(order.values())


@dataclass(frozen=True, eq=False)
class Graph:
    """A function: `inputs` (nodes of op "input", one per array argument) to `outputs`."""

    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every node that the outputs need, in topological order."""
        return topological(self.outputs)

    @cached_property
    def users(self) -> dict[Node, list[Node]]:
        """The nodes that read each node, once per edge; being a graph output is not counted."""
        users: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for source in node.inputs:
                users[source].append(node)
        return users

    @cached_property
    def all_nodes(self) -> tuple[Node, ...]:
        """The inputs, then every node in topological order; those of a body stand before the node that holds it."""
        found: dict[Node, None] = dict.fromkeys(self.inputs)
        for node in self.nodes:
            for body in node.bodies:
                found.update(dict.fromkeys(body.all_nodes))
            found[node] = None
        return tuple(found)

    @cached_property
    def params(self) -> dict[str, Any]:
        """The arrays of all "param" nodes, of bodies too, by name: the argument `params` of the evaluated function."""
        return {node.name: node.value for node in self.all_nodes if node.op == "param"}

    def map(self, change: Callable[[Node], Node]) -> "Graph":
        """The graph with `change` applied to every node, whose inputs are already the changed ones."""
        new: dict[Node, Node] = {}
        for node in topological((*self.inputs, *self.outputs)):
            moved = tuple(new[source] for source in node.inputs)
            same = all(a is b for a, b in zip(moved, node.inputs, strict=True))
            new[node] = change(node if same else node.replace(inputs=moved))
        return Graph(tuple(new[node] for node in self.inputs), tuple(new[node] for node in self.outputs))

    def bind(self, batch: int) -> "Graph":
        """The graph for one batch size: every `Dim` becomes an int."""
        return self.map(lambda node: node.replace(attrs=bind(node.attrs, batch), aval=bind(node.aval, batch)))


def bind(value: Any, batch: int) -> Any:
    """`value` with every `Dim` inside it evaluated at the batch size."""
    if isinstance(value, Dim):
        return value.bind(batch)
    if isinstance(value, Aval):
        return Aval(bind(value.shape, batch), value.dtype)
    if type(value) is tuple:
        return tuple(bind(item, batch) for item in value)
    if isinstance(value, dict):
        return {key: bind(item, batch) for key, item in value.items()}
    if isinstance(value, Graph):
        return value.bind(batch)
    return value


@dataclass
class Names:
    """Hands out unique names: the nth use of one name is `name#n`."""

    used: dict[str, int] = field(default_factory=dict)

    def unique(self, name: str) -> str:
        while True:
            count = self.used[name] = self.used.get(name, 0) + 1
            candidate = name if count == 1 else f"{name}#{count}"
            if count == 1 or candidate not in self.used:
                if count > 1:
                    self.used[candidate] = 1
                return candidate
