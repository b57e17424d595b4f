"""int8 nodes of the CPU's kernels give the reference's bits: products, and what else ends in an epilogue."""

import jax
import numpy as np
import pytest
from cpu_nodes import check, int8_node, integers, source
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from nodes import row_scales

from jaxq.backends import cpu
from jaxq.graph.node import Aval, Node, QType
from jaxq.graph.primitives import BY_NAME

pytestmark = pytest.mark.skipif(cpu.available() is not None, reason=str(cpu.available()))

dtypes = st.sampled_from(["int8", "uint8"])
outputs = st.sampled_from(["int8", "uint8", "float32"])


@st.composite
def convs(draw):
    rank = draw(st.sampled_from([1, 2, 2, 2]))
    kind = draw(st.sampled_from(["full", "full", "depthwise", "groups"]))
    channels = draw(st.sampled_from([1, 3, 16, 20, 64, 70])) if kind != "groups" else 24
    features = {"full": draw(st.sampled_from([1, 5, 16, 33, 80])), "depthwise": channels, "groups": 36}[kind]
    groups = {"full": 1, "depthwise": channels, "groups": 4}[kind]
    each = lambda strategy: tuple(draw(strategy) for _ in range(rank))  # noqa: E731
    kernel = each(st.sampled_from([1, 1, 2, 3, 5, 7]))
    attrs = {
        "strides": each(st.integers(1, 3)),
        "padding": each(st.tuples(st.integers(0, 3), st.integers(0, 3))),
        "lhs_dilation": (1,) * rank,
        "rhs_dilation": each(st.sampled_from([1, 1, 2])),
        "groups": groups,
    }
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    batch = draw(st.sampled_from([1, 3]))
    x = integers(rng, (batch, *each(st.integers(13, 17)), channels), draw(dtypes))
    weight = integers(rng, (*kernel, channels // groups, features), "int8")
    out, table = draw(outputs), draw(st.booleans())
    node, data = int8_node("conv", attrs, {"x": x, "weight": weight}, out, rng, table=table and out != "float32")
    if draw(st.booleans()):
        residual = integers(rng, node.aval.shape, draw(dtypes))
        node, data = int8_node("conv", attrs, {"x": x, "weight": weight}, out, rng, residual=residual)
    return node, data


@settings(max_examples=4, deadline=None, phases=[Phase.generate])
@given(convs())
def test_convolutions(case):
    check(*case)


@settings(max_examples=4, deadline=None, phases=[Phase.generate])
@given(st.data())
def test_dots(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    rows, k, n = draw(st.integers(1, 70)), draw(st.sampled_from([1, 3, 64, 100, 130])), draw(st.integers(1, 90))
    x, weight = integers(rng, (2, rows, k), draw(dtypes)), integers(rng, (n, k), "int8")
    shape = draw(st.sampled_from([(2, rows, n), (1, rows, n), (2, 1, n), (n,), (2, rows, 1), (2, 1, 1)]))
    residual = draw(st.sampled_from([None, integers(rng, shape, "int8"), rng.normal(size=shape).astype(np.float32)]))
    row_scale = draw(st.sampled_from([None, row_scales(rng, (2, rows))]))
    check(*int8_node("dot", {}, {"x": x, "weight": weight}, draw(outputs), rng, residual, row_scale=row_scale))


@pytest.mark.parametrize(("out", "channels"), [("int8", 21), ("uint8", 96), ("float32", 5), ("float32", 96)])
def test_dots_of_rows_with_scales_of_their_own(out, channels):
    """Some of them beyond what the output holds; in the epilogue alone, and before a table."""
    rng = np.random.default_rng(channels)
    x, weight = integers(rng, (3, 40, 64), "int8"), integers(rng, (channels, 64), "int8")
    row_scale = row_scales(rng, (3, 40))
    row_scale[0, :3, 0] = 1e-20, 1e30, np.finfo(np.float32).max / 127
    for residual in (None, integers(rng, (3, 40, channels), "uint8")):
        for table in (False, True) if out != "float32" else (False,):
            check(*int8_node("dot", {}, {"x": x, "weight": weight}, out, rng, residual, table, row_scale))


def test_products_beyond_the_finite_floats():
    """A mask's: they are the largest finite ones, and no infinity reaches the output."""
    rng = np.random.default_rng(0)
    x, weight = integers(rng, (5, 64), "int8"), integers(rng, (21, 64), "int8")
    residual = rng.choice(np.array([1, np.finfo(np.float32).min, -np.inf], np.float32), (5, 21))
    check(*int8_node("dot", {}, {"x": x, "weight": weight}, "float32", rng, residual=residual))


@settings(max_examples=4, deadline=None, phases=[Phase.generate])
@given(st.data())
def test_products_of_two_values(data):
    """With the operands as attention has them: transposed views of (batch, rows, heads, depth)."""
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    heads, m, n, k = (draw(st.integers(1, most)) for most in (3, 40, 40, 70))
    x, y = integers(rng, (2, heads, m, k), draw(dtypes)), integers(rng, (2, heads, n, k), "int8")
    shape = draw(st.sampled_from([None, (2, heads, m, n), (2, 1, 1, n), (m, 1)]))
    residual = None if shape is None else rng.normal(size=shape).astype(np.float32) * 20
    node, arrays = int8_node("matmul", {}, {"x": x, "y": y}, draw(outputs), rng, residual=residual)
    turned = {}
    for role, permutation in (("x", (0, 2, 1, 3)), ("y", draw(st.sampled_from([(0, 2, 1, 3), (0, 3, 1, 2)])))):
        whole = node.operand(role)
        stored = np.ascontiguousarray(np.transpose(arrays[role], permutation))
        arrays[role] = stored
        inverse = tuple(np.argsort(permutation).tolist())
        turned[role] = Node(
            "transpose", (source(stored, role),), {"permutation": inverse}, whole.aval, f"{role}/turned"
        )
        turned[role] = turned[role].replace(qtype=whole.qtype)
    operands = {role: turned.get(role, node.operand(role)) for role in node.roles}
    check(node.with_operands(operands), arrays)


def window(size, strides, padding, rank=2):
    return {
        "window_dimensions": (1, *size, 1),
        "window_strides": (1, *strides, 1),
        "padding": ((0, 0), *padding, (0, 0)),
        "base_dilation": (1,) * (rank + 2),
        "window_dilation": (1,) * (rank + 2),
    }


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("channels", [3, 64, 130])
def test_what_is_no_product(every_node_is_a_region, dtype, channels):
    rng = np.random.default_rng(channels)
    x = integers(rng, (2, 9, 8, channels), dtype)
    for attrs in (window((3, 3), (2, 1), ((1, 1), (0, 1))), window((2, 5), (1, 2), ((0, 0), (2, 2)))):
        shape = jax.eval_shape(lambda x, a=attrs: BY_NAME["reduce_window_max"].apply(x, **a), x).shape
        pool = Node("reduce_window_max", (source(x),), attrs, Aval(shape, x.dtype), "pool", qtype=QType(dtype, 1.0))
        check(pool, {"x": x})
        check(*int8_node("window_sum", {"window": attrs}, {"x": x}, "int8", rng))
    check(*int8_node("sum", {"axes": (1, 2)}, {"x": x}, "uint8", rng))
    residual = integers(rng, x.shape, "int8")
    check(*int8_node("affine", {}, {"x": x}, "int8", rng, residual=residual))
    check(*int8_node("affine", {}, {"x": x}, "uint8", rng, residual=integers(rng, (9, 1, channels), "uint8")))
    check(*int8_node("affine", {}, {"x": x}, "uint8", rng, table=True))
    for shape in ((2, 1, 1, channels), x.shape, (8, 1)):
        check(*int8_node("product", {}, {"x": x, "y": integers(rng, shape, "uint8")}, "int8", rng))
