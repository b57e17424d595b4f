"""int8 nodes for tests: with operands as a network has them, and convolutions that hypothesis draws."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from jaxq.graph.evaluate import accumulate
from jaxq.graph.node import Aval, Node, QType


def leaf(array, qtype=None):
    return Node("input", (), {}, Aval(array.shape, array.dtype), qtype=qtype)


def int8_node(op, attrs, x, weight, out_shape, out_dtype, residual, rng, by_row=False):
    """An int8 node and its operands, random as a network's would be; `weight` is the second factor of a matmul, too."""
    channels = out_shape[-1]
    depth = x.shape[-1] if op == "matmul" else weight.size // channels
    operands = {
        "x": x,
        "y" if op == "matmul" else "weight": weight,
        "multiplier": (rng.uniform(0.5, 2, channels) / (60 * 127 * np.sqrt(depth))).astype(np.float32) * 100,
        "bias": rng.normal(size=channels).astype(np.float32) * 10,
        "lo": np.full(channels, {"int8": -127, "uint8": 0}.get(out_dtype, -np.inf), np.float32),
        "hi": np.full(channels, {"int8": 127, "uint8": 255}.get(out_dtype, np.inf), np.float32),
    }
    if by_row:
        operands["row_scale"] = row_scales(rng, x.shape[:-1])
    if residual:
        operands["residual"] = rng.integers(-127, 128, out_shape).astype(np.int8)
        operands["residual_multiplier"] = np.float32(0.37)
    nodes = {role: leaf(np.asarray(value)) for role, value in operands.items()}
    aval = Aval(out_shape, jnp.dtype(out_dtype))
    node = Node(op, (), attrs, aval, qtype=QType("int8", 1.0)).with_operands(nodes)
    return node, [jnp.asarray(value) for value in operands.values()]


def row_scales(rng, rows):
    """Those of rows some of which are far larger than others."""
    return np.exp(rng.normal(0, 1, (*rows, 1))).astype(np.float32)


@st.composite
def convs(draw):
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    groups = draw(st.sampled_from([1, 1, 2, "depthwise"]))
    channels = draw(st.sampled_from([1, 2, 6, 20]))
    if groups == 2 and channels % 2:
        groups = 1
    features = channels if groups == "depthwise" else draw(st.sampled_from([2, 4, 18]))
    groups = channels if groups == "depthwise" else groups
    one = st.integers(1, 2)
    each = lambda strategy: tuple(draw(strategy) for _ in range(rank))  # noqa: E731
    kernel = each(st.integers(1, 3))
    attrs = {
        "lo": -np.inf,
        "hi": np.inf,
        "strides": each(one),
        "padding": each(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        "lhs_dilation": each(one),
        "rhs_dilation": each(one),
        "groups": groups,
    }
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    dtype = draw(st.sampled_from(["int8", "uint8"]))
    info = (-127, 128) if dtype == "int8" else (0, 256)
    x = rng.integers(*info, (2, *each(st.integers(5, 7)), channels)).astype(dtype)
    weight = rng.integers(-127, 128, (*kernel, channels // groups, features)).astype(np.int8)
    node, _ = int8_node("conv", attrs, x, weight, (0,) * (rank + 1) + (features,), "int8", False, rng)
    shape = jax.eval_shape(lambda: sum_of(node, x, weight)).shape
    out = draw(st.sampled_from(["int8", "uint8", "float32"]))
    return int8_node("conv", attrs, x, weight, shape, out, draw(st.booleans()), rng)


def sum_of(node, x, weight):
    return accumulate(node, {"x": jnp.asarray(x), "weight": jnp.asarray(weight)}, jnp.int32)
