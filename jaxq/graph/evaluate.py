"""A graph as a JAX function: float nodes in float, int8 nodes by their definition. The oracle of every backend.

`evaluate` walks the nodes of a bound graph (every dimension an int). How a node is computed is `lower`'s choice:
`reference` here, or a backend's. The reference computes the int8 ops on integer arrays in int32, as plainly as it can.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxq import numerics
from jaxq.graph.node import ACCUMULATING, CONTROL, WEIGHTED, Graph, Node
from jaxq.graph.primitives import BY_NAME, precision_of

Lower = Callable[[Node], Callable[..., Any]]


def evaluate(
    graph: Graph,
    params: Mapping[str, Any],
    inputs: Sequence[Any],
    lower: Lower | None = None,
    tap: Callable[[Node, Any], None] | None = None,
    control: Lower | None = None,
) -> list[Any]:
    """The graph's outputs.

    Args:
      graph: a bound graph (`Graph.bind`).
      params: the arrays of its "param" nodes, of those in bodies too, by name.
      inputs: one array for each of `graph.inputs`.
      lower: node to the function of its operands; `reference` unless given.
      tap: called with every computed node and its value, in order; not with those of bodies.
      control: as `lower`, for scan, while and cond; unless given, their bodies are evaluated by `lower`.
    """
    values: dict[Node, Any] = dict(zip(graph.inputs, inputs, strict=True))
    for node, value in steps(graph, params, inputs, lower, control):
        values[node] = value
        if tap is not None and not node.is_constant:
            tap(node, value)
    return [values[node] for node in graph.outputs]


def steps(
    graph: Graph,
    params: Mapping[str, Any],
    inputs: Sequence[Any],
    lower: Lower | None = None,
    control: Lower | None = None,
) -> Iterator[tuple[Node, Any]]:
    """Every node but the inputs, constants too, and its value, in order, computed when asked for; arguments as of
    `evaluate`."""
    lower = lower or reference
    control = control or _with_bodies(params, lower)
    values: dict[Node, Any] = dict(zip(graph.inputs, inputs, strict=True))
    for node in graph.nodes:
        if node in values:
            continue
        if node.op == "param":
            values[node] = params[node.name]
        elif node.op == "const":
            values[node] = jnp.asarray(node.value)
        elif node.op == "item":
            values[node] = values[node.inputs[0]][node.attrs["index"]]
        else:
            run = control(node) if node.op in CONTROL else lower(node)
            values[node] = run(*(values[source] for source in node.inputs))
        yield node, values[node]


def reference(node: Node) -> Callable[..., Any]:
    """The function of the node's operands that defines it, at every stage."""
    if "multiplier" in node.roles and node.op != "quantize":
        return _int8_reference(node)
    if node.op in _FLOAT:
        return _FLOAT[node.op](node)
    if node.op == "opaque":
        return lambda *args: node.attrs["primitive"].bind(*args, **node.attrs["params"])
    return lambda *args: BY_NAME[node.op].apply(*args, **node.attrs)


def control_flow(node: Node, function: Callable[[Graph], Callable[..., Any]], **attrs: Any) -> Callable[..., Any]:
    """A scan, while or cond as a function of its operands, its bodies as the functions that `function` makes of them;
    `attrs` replace attributes of the node."""

    def callable_(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(callable_, value))
        return function(value) if isinstance(value, Graph) else value

    given = {key: callable_(value) for key, value in {**node.attrs, **attrs}.items()}
    return lambda *args: BY_NAME[node.op].apply(*args, **given)


def _with_bodies(params: Mapping[str, Any], lower: Lower) -> Lower:
    """JAX makes operands of the parameters that a body reads, so that they stay arguments of the whole function."""
    return lambda node: control_flow(node, lambda body: lambda *args: evaluate(body, params, args, lower))


def convolve(node: Node, x: jax.Array, weight: jax.Array, dtype: Any, precision: Any = None) -> jax.Array:
    """The convolution of node's geometry: x (N, spatial..., C), weight (spatial..., C / groups, O)."""
    rank = len(node.attrs["strides"])
    spatial = "DHW"[3 - rank :]
    return lax.conv_general_dilated(
        x,
        weight,
        window_strides=node.attrs["strides"],
        padding=node.attrs["padding"],
        lhs_dilation=node.attrs["lhs_dilation"],
        rhs_dilation=node.attrs["rhs_dilation"],
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=node.attrs["groups"],
        precision=precision_of(precision),
        preferred_element_type=dtype,
    )


def contract(x: jax.Array, weight: jax.Array, dtype: Any, precision: Any = None) -> jax.Array:
    """x (..., K) times weight (N, K) to (..., N)."""
    dimensions = (((x.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(x, weight, dimensions, precision=precision_of(precision), preferred_element_type=dtype)


def matmul(x: jax.Array, y: jax.Array, dtype: Any, precision: Any = None) -> jax.Array:
    """x (..., M, K) times y (..., N, K) to (..., M, N), the leading axes of both alike."""
    batch = tuple(range(x.ndim - 2))
    dimensions = (((x.ndim - 1,), (y.ndim - 1,)), (batch, batch))
    return lax.dot_general(x, y, dimensions, precision=precision_of(precision), preferred_element_type=dtype)


def accumulate(node: Node, operands: dict[str, Any], dtype: Any) -> jax.Array:
    """The sum of an accumulating op before its epilogue, in `dtype` (float32, or int32 for integer operands). What is
    summed, "x" and "weight" or "y", is taken out of the operands."""
    precision = node.attrs.get("precision") if dtype == jnp.float32 else None
    x = operands.pop("x").astype(dtype)
    if node.op == "conv":
        return convolve(node, x, operands.pop("weight").astype(dtype), dtype, precision)
    if node.op == "dot":
        return contract(x, operands.pop("weight").astype(dtype), dtype, precision)
    if node.op == "matmul":
        return matmul(x, operands.pop("y").astype(dtype), dtype, precision)
    if node.op == "product":
        return x * operands.pop("y").astype(dtype)
    if node.op == "sum":
        return lax.reduce_sum(x, node.attrs["axes"])
    if node.op == "window_sum":
        return BY_NAME["reduce_window_sum"].apply(x, **node.attrs["window"])
    return x


def _int8_reference(node: Node) -> Callable[..., Any]:
    def run(*operands: Any) -> Any:
        given = dict(zip(node.roles, operands, strict=True))
        acc = accumulate(node, given, jnp.int32)
        return numerics.epilogue(acc, **given, dtype=node.aval.dtype)

    return run


def _float_accumulating(node: Node) -> Callable[..., Any]:
    def run(*operands: Any) -> Any:
        given = dict(zip(node.roles, operands, strict=True))
        y = accumulate(node, given, jnp.float32)
        if "scale" in given:
            y = y * given["scale"]
        return float_epilogue(node, y, given)

    return run


def float_epilogue(node: Node, y: jax.Array, given: Mapping[str, Any]) -> jax.Array:
    """What an op does after its float32 sum, with those of its operands that it has of bias and residual."""
    if "bias" in given:
        y = y + given["bias"]
    if "residual" in given:
        y = y + given["residual"].astype(jnp.float32)
    if np.isfinite(node.attrs["lo"]):
        y = jnp.maximum(y, jnp.float32(node.attrs["lo"]))
    if np.isfinite(node.attrs["hi"]):
        y = jnp.minimum(y, jnp.float32(node.attrs["hi"]))
    return y.astype(node.aval.dtype)


def float_weight(node: Node, weight: jax.Array, scale: jax.Array) -> jax.Array:
    """The float32 weight (N, K) of a weight-only dot."""
    depth = node.operand("x").aval.shape[-1]
    levels = weight if node.attrs["bits"] == 8 else numerics.unpack_int4(weight, depth)
    return numerics.dequantize_groups(levels, scale, node.attrs["group_size"])


def _weight_only_dot(node: Node) -> Callable[..., Any]:
    def run(*operands: Any) -> Any:
        given = dict(zip(node.roles, operands, strict=True))
        x = given["x"].astype(jnp.float32)
        weight = float_weight(node, given["weight"], given["scale"])
        return float_epilogue(node, contract(x, weight, jnp.float32, node.attrs["precision"]), given)

    return run


def _elementwise(node: Node) -> Callable[..., Any]:
    body = node.attrs["body"]
    return lambda x: evaluate(body, body.params, [x])[0]


def _softmax(node: Node) -> Callable[..., Any]:
    def run(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        y = jnp.exp(x - jnp.max(x, -1, keepdims=True))
        return (y / jnp.sum(y, -1, keepdims=True)).astype(node.aval.dtype)

    return run


def _layer_norm(node: Node) -> Callable[..., Any]:
    """The variance is that of x - mean; E[x^2] - E[x]^2, which Flax computes, agrees up to float rounding."""

    def run(*operands: jax.Array) -> jax.Array:
        given = dict(zip(node.roles, operands, strict=True))
        y = given["x"].astype(jnp.float32)
        if node.attrs["center"]:
            y = y - jnp.mean(y, -1, keepdims=True)
        y = y * lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + jnp.float32(node.attrs["epsilon"]))
        y = y * given.get("scale", jnp.float32(1)) + given.get("bias", jnp.float32(0))
        return y.astype(node.aval.dtype)

    return run


def _stablehlo(node: Node) -> Callable[..., Any]:
    """A module for any batch takes none of no examples, but that gives nothing."""
    avals = node.aval if isinstance(node.aval, tuple) else (node.aval,)
    if any(0 in source.aval.shape for source in node.inputs) and all(0 in aval.shape for aval in avals):
        empty = [jnp.zeros(aval.shape, aval.dtype) for aval in avals]
        return lambda *_: empty if isinstance(node.aval, tuple) else empty[0]
    return lambda *args: node.attrs["exported"].call(*args)


def _table(node: Node) -> Callable[..., Any]:
    del node
    return numerics.lookup


def _quantize(node: Node) -> Callable[..., Any]:
    return lambda *operands: numerics.quantize(*operands, dtype=node.aval.dtype.name)


def _row_scale(node: Node) -> Callable[..., Any]:
    del node
    return numerics.row_scale


def _quantize_rows(node: Node) -> Callable[..., Any]:
    def run(*operands: jax.Array) -> jax.Array:
        given = dict(zip(node.roles, operands, strict=True))
        return numerics.quantize_rows(given["x"], given["row_scale"], given.get("factor"))

    return run


def _dequantize(node: Node) -> Callable[..., Any]:
    return lambda *operands: numerics.dequantize(*operands, dtype=node.aval.dtype)


_FLOAT: dict[str, Callable[[Node], Callable[..., Any]]] = {
    **dict.fromkeys(ACCUMULATING, _float_accumulating),
    "weight_only_dot": _weight_only_dot,
    "elementwise": _elementwise,
    "softmax": _softmax,
    "layer_norm": _layer_norm,
    "stablehlo": _stablehlo,
    "table": _table,
    "quantize": _quantize,
    "dequantize": _dequantize,
    "row_scale": _row_scale,
    "quantize_rows": _quantize_rows,
}


def _scale(node: Node) -> Any:
    return 1.0 if node.qtype is None else node.qtype.scale


def fake_quantized(node: Node) -> Callable[..., jax.Array]:
    """An int8 node in float: a function of its integer operands to the value it stands for, before rounding.

    Operands are multiplied by their scales (zero points are in the bias), the float op runs on them, and the result is
    divided by the output's scale: what the rounded value must lie within 1 LSB of. (End to end the two drift: 6 LSB at
    depth 16.)
    """

    def run(*operands: Any) -> jax.Array:
        given = dict(zip(node.roles, operands, strict=True))
        scale_out = jnp.asarray(_scale(node), jnp.float32)

        def real(role: str) -> Any:
            return given[role].astype(jnp.float32) * jnp.float32(_scale(node.operand(role)))

        summed: dict[str, Any] = {role: real(role) for role in ("x", "y") if role in given}
        scale_in = jnp.asarray(1.0, jnp.float32)
        if node.op in WEIGHTED:
            scale_weight = jnp.asarray(_scale(node.operand("weight")), jnp.float32)
            axis = (-1,) if node.op == "conv" else (-1, 1)
            summed["weight"] = given["weight"].astype(jnp.float32) * scale_weight.reshape(axis)
            y = accumulate(node, summed, jnp.float32) / scale_out
        else:
            for role in summed:
                scale_in = scale_in * jnp.float32(_scale(node.operand(role)))
            y = accumulate(node, summed, jnp.float32) * (given["multiplier"] / scale_in)
        y = y * given.get("row_scale", jnp.float32(1)) + given["bias"]
        if "residual" in given:
            y = y + real("residual") / scale_out
        return jnp.clip(y, given["lo"], given["hi"])

    return run
