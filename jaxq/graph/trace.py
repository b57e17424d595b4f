"""A function of parameters and arrays to a float `Graph`. The only file that walks jaxprs; what the parameters of an
equation mean stands in `primitives`; what becomes of loops in `unroll`.

The function is traced at two batch sizes and the two graphs are laid over each other: where a dimension differs, it
follows the batch and becomes a `Dim`, affine through the two sizes. The trace at the batch's own size must then agree,
or one at a third size if its own is none. Concrete traces see what the model does at real sizes and need no support for
symbolic shapes from the model. Where the graphs cannot be laid over each other, the batch is fixed and
`Traced.fixed_because` says why.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.extend.core import primitives as jp

from jaxq.errors import JaxqError, TraceError
from jaxq.graph.node import Aval, Dim, Graph, Names, Node, constant
from jaxq.graph.primitives import CALLS, RANDOM, TABLE
from jaxq.graph.unroll import unrolled
from jaxq.models import ADVICE

SIZES = (2, 3)
CHECK = 5

# The last component of a parameter's path when it names the array and not the layer that owns it.
_LEAF = re.compile(r"^(kernel|weight|w|bias|b|embedding|scale|\d+)$", re.IGNORECASE)

# JAX writes an index i as `select(i < 0, i + size, i)`, and the size may be the batch's. Where i is a number, that is
# worked out while tracing, so that no number is left that depends on the batch size.
_ON_INDICES: dict[Any, Callable[..., Any]] = {
    jp.lt_p: np.less,
    jp.add_p: np.add,
    jp.select_n_p: lambda which, *cases: cases[int(which)],
}


@dataclass(frozen=True)
class Traced:
    """The float graph of a function; `graph.inputs` are the argument leaves, in the order of `in_tree`."""

    graph: Graph
    in_tree: Any
    out_tree: Any
    fixed_because: str | None


def trace(fun: Callable[..., Any], params: Any, args: tuple[Any, ...]) -> Traced:
    """Traces `fun(params, *args)`.

    Args:
      fun: any JAX-traceable function.
      params: a pytree of arrays; it becomes constants of the graph, named by their paths.
      args: a tuple of pytrees of arrays or `jax.ShapeDtypeStruct`, one calibration batch. The batch axis is the
        leading axis of every leaf of one leading size: the first of their leading sizes that may vary.

    Raises:
      TraceError: the function raises under tracing, draws random numbers, or mixes the examples of a batch.
    """
    leaves, in_tree = jax.tree.flatten(args)
    shapes = [jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.canonicalize_dtype(leaf.dtype)) for leaf in leaves]

    def resized(shape: jax.ShapeDtypeStruct, batch: int, size: int) -> jax.ShapeDtypeStruct:
        leads = bool(shape.shape) and shape.shape[0] == batch
        return jax.ShapeDtypeStruct((size, *shape.shape[1:]), shape.dtype) if leads else shape

    try:
        graph, out_tree = _trace_once(fun, params, jax.tree.unflatten(in_tree, shapes))
    except JaxqError:
        raise
    except Exception as error:
        taken = str(jax.tree.unflatten(in_tree, [f"{shape.dtype}{list(shape.shape)}" for shape in shapes]))
        given = f"a batch makes it fun(params, {taken[1:-1].rstrip(',')})".replace("'", "")
        advice = ADVICE.get(type(error).__name__, f"{given}; a tuple is the arguments, anything else the one argument")
        what = f"{type(error).__name__}: {first_line(error)}"
        raise TraceError(f"tracing the function failed: {advice}. {what}") from error
    _check_random(graph)

    reasons = []
    for batch in _batch_sizes(shapes):

        def at(size: int, batch: int = batch) -> Graph:
            sized = [resized(shape, batch, size) for shape in shapes]
            return _trace_once(fun, params, jax.tree.unflatten(in_tree, sized))[0]

        followed = _follow(at, graph, batch)
        if isinstance(followed, Graph):
            return Traced(named(unrolled(followed)), in_tree, out_tree, None)
        reasons.append(followed)
    reason = reasons[0] if reasons else "no argument has a batch axis"
    return Traced(named(unrolled(graph)), in_tree, out_tree, reason)


def _batch_sizes(shapes: Sequence[jax.ShapeDtypeStruct]) -> list[int]:
    """What the batch size may be, likeliest first: the leading sizes of the arguments, the one of a shared argument (a
    mask, say) that broadcasts last."""
    sizes = dict.fromkeys(shape.shape[0] for shape in shapes if shape.shape)
    return sorted(sizes, key=lambda size: size == 1)


def _follow(at: Callable[[int], Graph], graph: Graph, batch: int) -> Graph | str:
    """The graph whose dimensions follow the batch, or why it does not.

    Args:
      at: a batch size to the function's trace at that size.
      graph: its trace at the size `batch`.
    """
    size = batch if batch > max(SIZES) else CHECK
    try:
        first, second = map(at, SIZES)
        third = graph if size == batch else at(size)
    except Exception as error:  # whatever the model raises at another batch size, it holds for this one only
        return f"the function fails at other batch sizes: {type(error).__name__}: {first_line(error)}"
    overlay = _Overlay(*SIZES)
    template = overlay.graph(first, second)
    if template is None:
        return overlay.differences[0]
    _check_mixing(template)
    if not overlay.differences:
        check = _Overlay(size, size)
        check.graph(template.bind(size), third)
        overlay.differences += check.differences
    return overlay.differences[0] if overlay.differences else template


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _trace_once(fun: Callable[..., Any], params: Any, args: tuple[Any, ...]) -> tuple[Graph, Any]:
    closed, out_shape = jax.make_jaxpr(fun, return_shape=True)(params, *args)
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    constants = [constant(leaf, _path(path)) for path, leaf in paths]
    keyed = jax.tree_util.tree_flatten_with_path(args)[0]
    inputs = []
    for (path, _), var in zip(keyed, closed.jaxpr.invars[len(constants) :], strict=True):
        name = "input" if len(keyed) == 1 else f"input/{_path(path)}"
        inputs.append(Node("input", (), {}, _aval(var), name))
    outputs = _Interpreter().run(closed, [*constants, *inputs], scope="", label="")
    return Graph(tuple(inputs), tuple(outputs)), jax.tree.structure(out_shape)


def _path(path: Sequence[Any]) -> str:
    """A pytree path as `a/b/0`; an NNX variable's attribute `.value` is not part of its name."""
    keys = [key for key in path if key != jax.tree_util.GetAttrKey("value")]
    return "/".join(jax.tree_util.keystr((key,), simple=True) for key in keys)


def _aval(var: Any) -> Aval:
    aval: Any = var.aval
    return Aval(tuple(aval.shape), aval.dtype)


class _Interpreter:
    """Reads a jaxpr equation by equation, in the manner of JAX's own interpreters."""

    def run(self, closed: ClosedJaxpr, inputs: Sequence[Node], scope: str, label: str) -> list[Node]:
        jaxpr = closed.jaxpr
        env: dict[Any, Node] = {}

        def read(atom: Any) -> Node:
            return constant(np.asarray(atom.val, _aval(atom).dtype)) if isinstance(atom, Literal) else env[atom]

        env.update(zip(jaxpr.constvars, (constant(value, "const") for value in closed.consts), strict=True))
        env.update(zip(jaxpr.invars, inputs, strict=True))
        for eqn in jaxpr.eqns:
            inner = _join(scope, _layers(str(eqn.source_info.name_stack)))
            operands = tuple(read(atom) for atom in eqn.invars)
            body = _called(eqn)
            if body is not None:
                short = eqn.params.get("name", "") if inner and len(body.jaxpr.eqns) <= 4 else ""
                results = self.run(body, operands[len(operands) - len(body.jaxpr.invars) :], inner, short or label)
            else:
                results = self._node(eqn, operands, inner, label or eqn.primitive.name)
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _node(self, eqn: Any, operands: tuple[Node, ...], scope: str, label: str) -> list[Node]:
        if eqn.primitive in _ON_INDICES and all(node.op == "const" for node in operands):
            value = _ON_INDICES[eqn.primitive](*(node.value for node in operands))
            return [constant(np.asarray(value, eqn.outvars[0].aval.dtype))]
        row = TABLE.get(eqn.primitive)
        if row is None:
            op, attrs = "opaque", {"primitive": eqn.primitive, "params": dict(eqn.params)}
        else:
            op, attrs = row.name, {key: self._data(value, scope) for key, value in row.read(eqn).items()}
        avals = tuple(_aval(var) for var in eqn.outvars)
        name = _join(scope, label)
        if not eqn.primitive.multiple_results:
            return [Node(op, operands, attrs, avals[0], name, scope=scope)]
        node = Node(op, operands, attrs, avals, name, scope=scope)
        return [Node("item", (node,), {"index": i}, aval, name, scope=scope) for i, aval in enumerate(avals)]

    def _data(self, value: Any, scope: str) -> Any:
        """A jaxpr among the parameters (scan, while, cond) becomes a graph of its own."""
        if isinstance(value, tuple) and value and isinstance(value[0], ClosedJaxpr):
            return tuple(self._data(item, scope) for item in value)
        if not isinstance(value, ClosedJaxpr):
            return value
        inputs = [Node("input", (), {}, _aval(var), f"operand{i}") for i, var in enumerate(value.jaxpr.invars)]
        return Graph(tuple(inputs), tuple(self.run(value, inputs, scope, label="")))


def _called(eqn: Any) -> ClosedJaxpr | None:
    """The jaxpr that the equation only calls, if it is such an equation."""
    if eqn.primitive not in CALLS:
        return None
    body = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return ClosedJaxpr(body, ()) if isinstance(body, Jaxpr) else body


def _layers(name_stack: str) -> str:
    """The layers of a name stack: without the transformations around them (`vmap(Block_0)`), einsum's formulas and a
    lifted method before its own module (`Cell_0.scan_fn/Cell_0`)."""
    parts = (re.sub(r"^\w+\((.*)\)$", r"\1", part) for part in name_stack.split("/"))
    path = "/".join(part for part in parts if part and "->" not in part)
    return re.sub(r"(^|/)([^/]+)\.\w+/\2(?=/|$)", r"\1\2", path)


def _join(scope: str, inner: str) -> str:
    return f"{scope}/{inner}" if scope and inner else scope or inner


def named(graph: Graph) -> Graph:
    """The graph with unique names: a conv or dot is named by its layer, or by its weight's path where the trace has
    no layer names (NNX, plain functions); any other node by its layer and primitive; a body's inputs by the node that
    holds the body."""
    names, arrays, origin = Names(), Names(), dict[Node, str]()

    def change(node: Node, holder: str = "") -> Node:
        node = node.with_bodies(lambda body: body.map(lambda inner: change(inner, node.name)))
        paths = [origin[source] for source in node.inputs if origin.get(source)]
        name = f"{holder}/{node.name}" if node.op == "input" and holder else node.name
        if node.op in ("conv_general_dilated", "dot_general") and paths:
            name = node.scope or _layer(paths[-1])
        elif node.op == "const":
            return node
        new = node.replace(name=(arrays if node.op == "param" else names).unique(name or node.op))
        if node.op == "param" or (paths and all(origin.get(s) is not None or s.is_constant for s in node.inputs)):
            origin[new] = node.name if node.op == "param" else paths[0]
        return new

    return graph.map(change)


def _layer(path: str) -> str:
    """The layer that owns the parameter at that path."""
    parts = path.split("/")
    return "/".join(parts[:-1] if len(parts) > 1 and _LEAF.match(parts[-1]) else parts)


class _Overlay:
    """Lays two graphs of one function, traced at two batch sizes, over each other."""

    def __init__(self, small: int, large: int) -> None:
        self.small, self.large = small, large
        self.differences: list[str] = []

    def graph(self, a: Graph, b: Graph) -> Graph | None:
        """The graph whose dimensions follow the batch; None (with a difference noted) if the two have other ops."""
        if [node.op for node in a.nodes] != [node.op for node in b.nodes]:
            self.differences.append("the function does other operations at other batch sizes")
            return None
        twin = dict(zip((*a.inputs, *a.nodes), (*b.inputs, *b.nodes), strict=True))
        for node, other in twin.items():
            if [twin[source] for source in node.inputs] != list(other.inputs):
                self.differences.append(f"{node.name}: reads other values at other batch sizes")
                return None
        if [twin[node] for node in a.outputs] != list(b.outputs):
            self.differences.append("the function returns other values at other batch sizes")
            return None
        merged = {}
        for node, other in twin.items():
            attrs = self.value(node.attrs, other.attrs, node.name)
            merged[node] = attrs, self.value(node.aval, other.aval, node.name)
        new: dict[Node, Node] = {}
        for node in (*a.inputs, *a.nodes):
            if node not in new:
                attrs, aval = merged[node]
                new[node] = node.replace(inputs=tuple(new[s] for s in node.inputs), attrs=attrs, aval=aval)
        return Graph(tuple(new[n] for n in a.inputs), tuple(new[n] for n in a.outputs))

    def value(self, a: Any, b: Any, where: str) -> Any:
        if a is b:
            return a
        if isinstance(a, Aval) and isinstance(b, Aval) and a.dtype == b.dtype:
            return Aval(self.value(a.shape, b.shape, where), a.dtype)
        if isinstance(a, Mapping) and isinstance(b, Mapping) and a.keys() == b.keys():
            return {key: self.value(a[key], b[key], where) for key in a}
        if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
            return tuple(self.value(x, y, where) for x, y in zip(a, b, strict=True))
        if isinstance(a, Graph) and isinstance(b, Graph):
            return self.graph(a, b) or a
        if isinstance(a, np.ndarray | jax.Array) and isinstance(b, np.ndarray | jax.Array):
            if a.dtype == b.dtype and _same_array(a, b):
                return a
            self.differences.append("a number in the function depends on the batch size")
            return a
        if isinstance(a, int) and isinstance(b, int) and a != b and self.small != self.large:
            slope, rest = divmod(b - a, self.large - self.small)
            if rest == 0:
                return Dim(slope, a - slope * self.small)
        if type(a) is type(b) and (a == b or str(a) == str(b)):
            return a
        self.differences.append(f"{where}: {a} at batch size {self.small} is {b} at {self.large}")
        return a


def _same_array(a: Any, b: Any) -> bool:
    if a.shape != b.shape:
        return False
    if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
        return True
    return np.array_equal(np.asarray(a), np.asarray(b), equal_nan=np.asarray(a).dtype.kind == "f")


def _check_random(graph: Graph) -> None:
    for node in graph.all_nodes:
        if node.op == "opaque" and node.attrs["primitive"] in RANDOM:
            raise TraceError(
                f"layer {node.scope or node.name!r} draws random numbers: dropout is on. Put the model in inference "
                "mode: model.eval() for NNX, deterministic=True or train=False (static_kwargs) for Linen"
            )


def _check_mixing(graph: Graph) -> None:
    """A sum over the batch axis that flows back into batched values is a training-mode batch norm. (Where it is only
    compared, as in a branch on it, it does not flow.)"""
    reduced: dict[Node, Node] = {}  # a value to the reduction that it comes from
    for node in graph.nodes:
        over = next((reduced[source] for source in node.inputs if source in reduced), None)
        if over is not None and isinstance(node.aval, Aval) and node.aval.is_float:
            if node.aval.follows_batch:
                raise TraceError(
                    f"layer {over.scope or over.name!r} computes statistics over the batch and gives them back to its "
                    "examples, as a batch norm in training mode does. Put the model in inference mode: model.eval() "
                    "for NNX, use_running_average=True or train=False (static_kwargs) for Linen"
                )
            reduced[node] = over
        elif node.op == "reduce_sum":
            shape = node.inputs[0].aval.shape
            if any(isinstance(shape[axis], Dim) for axis in node.attrs["axes"]):
                reduced[node] = node
