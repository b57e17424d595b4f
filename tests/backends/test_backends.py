"""Every backend gives the reference's bits, on drawn geometries and on the numbers that saturate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pallas_kernels
from jaxq.backends import choose, pallas, xla
from jaxq.graph.evaluate import reference
from jaxq.graph.node import Aval, Node, QType


def leaf(array, qtype=None):
    return Node("input", (), {}, Aval(array.shape, array.dtype), qtype=qtype)


def int8_node(op, attrs, x, weight, out_shape, out_dtype, residual, rng):
    """An int8 node and its operands, random as a network's would be."""
    channels = out_shape[-1]
    depth = weight.size // channels
    operands = {
        "x": x,
        "weight": weight,
        "multiplier": (rng.uniform(0.5, 2, channels) / (60 * 127 * np.sqrt(depth))).astype(np.float32) * 100,
        "bias": rng.normal(size=channels).astype(np.float32) * 10,
        "lo": np.full(channels, {"int8": -127, "uint8": 0}.get(out_dtype, -np.inf), np.float32),
        "hi": np.full(channels, {"int8": 127, "uint8": 255}.get(out_dtype, np.inf), np.float32),
    }
    if residual:
        operands["residual"] = rng.integers(-127, 128, out_shape).astype(np.int8)
        operands["residual_multiplier"] = np.float32(0.37)
    nodes = {role: leaf(np.asarray(value)) for role, value in operands.items()}
    aval = Aval(out_shape, jnp.dtype(out_dtype))
    node = Node(op, (), attrs, aval, qtype=QType("int8", 1.0)).with_operands(nodes)
    return node, [jnp.asarray(value) for value in operands.values()]


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
    from jaxq.graph.evaluate import accumulate

    return accumulate(node, {"x": jnp.asarray(x), "weight": jnp.asarray(weight)}, jnp.int32)


@settings(max_examples=15)
@given(convs())
def test_xla_convolutions(case):
    node, operands = case
    np.testing.assert_array_equal(jax.jit(xla.lower(node))(*operands), reference(node)(*operands))


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize(
    ("window", "strides", "padding"),
    [((3, 3), (1, 1), (1, 1)), ((2, 2), (2, 2), (0, 0)), ((3, 2), (2, 1), (0, 1)), ((9, 9), (1, 1), (4, 4))],
)
def test_pools(dtype, window, strides, padding):
    rng = np.random.default_rng(4)
    x = rng.integers(*((-127, 128) if dtype == "int8" else (0, 256)), (2, 9, 8, 5)).astype(dtype)
    attrs = {"window_dimensions": (1, *window, 1), "window_strides": (1, *strides, 1)}
    attrs |= {"padding": ((0, 0), padding, padding, (0, 0)), "base_dilation": (1,) * 4, "window_dilation": (1,) * 4}
    source = leaf(x, QType(dtype, 1.0))
    node = Node("reduce_window_max", (source,), attrs, source.aval, qtype=source.qtype)
    np.testing.assert_array_equal(jax.jit(xla.lower(node))(x), reference(node)(x))

    shape = jax.eval_shape(reference(node), x).shape
    vectors = [np.full(5, value, np.float32) for value in (0.11, 0.3, -127, 127)]
    roles = dict(zip(("x", "multiplier", "bias", "lo", "hi"), map(leaf, (x, *vectors)), strict=True))
    total = Node("window_sum", (), {"window": attrs}, Aval(shape, jnp.dtype("int8"))).with_operands(roles)
    np.testing.assert_array_equal(jax.jit(xla.lower(total))(x, *vectors), reference(total)(x, *vectors))


@pytest.mark.parametrize("x_dtype", ["int8", "uint8"])
@pytest.mark.parametrize("out", ["int8", "uint8", "float32"])
@pytest.mark.parametrize("residual", [False, True])
def test_dots(x_dtype, out, residual):
    rng = np.random.default_rng(0)
    x = rng.integers(*((-127, 128) if x_dtype == "int8" else (0, 256)), (3, 5, 37)).astype(x_dtype)
    weight = rng.integers(-127, 128, (11, 37)).astype(np.int8)
    node, operands = int8_node("dot", {"lo": -np.inf, "hi": np.inf}, x, weight, (3, 5, 11), out, residual, rng)
    expected = reference(node)(*operands)
    np.testing.assert_array_equal(jax.jit(xla.lower(node))(*operands), expected)
    np.testing.assert_array_equal(jax.jit(choose(node))(*operands), expected)


@pytest.fixture
def interpreted(monkeypatch):
    """The Pallas kernels in interpret mode, as the machine has no GPU."""
    kernel = pallas_kernels.matmul
    monkeypatch.setattr(pallas_kernels, "matmul", lambda *a, **k: kernel(*a, **k, interpret=True))


@pytest.mark.parametrize("residual", [False, True])
def test_pallas_dot(interpreted, residual):
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (2, 9, 21)).astype(np.uint8)
    weight = rng.integers(-127, 128, (13, 21)).astype(np.int8)
    node, operands = int8_node("dot", {"lo": -np.inf, "hi": np.inf}, x, weight, (2, 9, 13), "int8", residual, rng)
    assert pallas.supports(node) is None
    np.testing.assert_array_equal(pallas.lower(node)(*operands), reference(node)(*operands))
    for tactic in pallas.candidates(node)[:2]:
        np.testing.assert_array_equal(pallas.lower(node, tactic)(*operands), reference(node)(*operands))


@pytest.mark.parametrize("stride", [1, 2])
def test_pallas_pointwise_convolution(interpreted, stride):
    rng = np.random.default_rng(2)
    x = rng.integers(-127, 128, (2, 6, 6, 8)).astype(np.int8)
    weight = rng.integers(-127, 128, (1, 1, 8, 5)).astype(np.int8)
    attrs = {"lo": -np.inf, "hi": np.inf, "strides": (stride,) * 2, "padding": ((0, 0),) * 2}
    attrs |= {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "groups": 1}
    side = 6 // stride
    node, operands = int8_node("conv", attrs, x, weight, (2, side, side, 5), "uint8", True, rng)
    assert pallas.supports(node) is None
    np.testing.assert_array_equal(pallas.lower(node)(*operands), reference(node)(*operands))


def test_saturated_sums_are_exact():
    """The largest magnitudes that the accumulator must hold: 255 * 127 and 127 * 127 at every one of K products."""
    rng = np.random.default_rng(3)
    for dtype, value in (("uint8", 255), ("int8", -127)):
        x, weight = np.full((2, 4096), value, dtype), np.full((3, 4096), -127, np.int8)
        node, operands = int8_node("dot", {"lo": -np.inf, "hi": np.inf}, x, weight, (2, 3), "float32", False, rng)
        operands[2:4] = [jnp.ones(3), jnp.zeros(3)]
        np.testing.assert_array_equal(jax.jit(xla.lower(node))(*operands), np.full((2, 3), value * -127.0 * 4096))


def test_the_network_lowers_to_cuda(small_cnn):
    """One function holds both forms: on CUDA, kernels for dots and 1x1 convs and no convolution at all."""
    qmodel = small_cnn.qmodel
    with pallas_kernels.compat.gpu_target():
        lowered = (
            jax.jit(qmodel.plan.evaluate, static_argnums=2)
            .trace(qmodel.params, (small_cnn.x,), choose)
            .lower(lowering_platforms=("cuda",))
        )
    text = lowered.as_text()
    assert text.count("__gpu$xla.gpu.triton") >= 3
    assert "stablehlo.convolution" not in text
