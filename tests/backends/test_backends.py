"""Every backend gives the reference's bits, on drawn geometries and on the numbers that saturate."""

import cheap
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from nodes import convs, int8_node, leaf

from jaxq.backends import choose, xla
from jaxq.graph.evaluate import reference
from jaxq.graph.node import Aval, Node, QType


@settings(max_examples=8)
@given(convs())
def test_xla_convolutions(case):
    node, operands = case
    np.testing.assert_array_equal(jax.jit(xla.lower(node))(*operands), cheap.jit(reference(node))(*operands))


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
    np.testing.assert_array_equal(jax.jit(xla.lower(node))(x), cheap.jit(reference(node))(x))

    shape = jax.eval_shape(reference(node), x).shape
    vectors = [np.full(5, value, np.float32) for value in (0.11, 0.3, -127, 127)]
    roles = dict(zip(("x", "multiplier", "bias", "lo", "hi"), map(leaf, (x, *vectors)), strict=True))
    total = Node("window_sum", (), {"window": attrs}, Aval(shape, jnp.dtype("int8"))).with_operands(roles)
    np.testing.assert_array_equal(jax.jit(xla.lower(total))(x, *vectors), cheap.jit(reference(total))(x, *vectors))


@pytest.mark.parametrize("x_dtype", ["int8", "uint8"])
@pytest.mark.parametrize("out", ["int8", "uint8", "float32"])
@pytest.mark.parametrize(("residual", "by_row"), [(False, False), (True, False), (True, True)])
def test_dots(x_dtype, out, residual, by_row):
    rng = np.random.default_rng(0)
    x = rng.integers(*((-127, 128) if x_dtype == "int8" else (0, 256)), (3, 5, 37)).astype(x_dtype)
    weight = rng.integers(-127, 128, (11, 37)).astype(np.int8)
    attrs = {"lo": -np.inf, "hi": np.inf}
    node, operands = int8_node("dot", attrs, x, weight, (3, 5, 11), out, residual, rng, by_row)
    expected = cheap.jit(reference(node))(*operands)
    np.testing.assert_array_equal(jax.jit(xla.lower(node))(*operands), expected)
    np.testing.assert_array_equal(cheap.jit(choose(node))(*operands), expected)


def test_saturated_sums_are_exact():
    """The largest magnitudes that the accumulator must hold: 255 * 127 and 127 * 127 at every one of K products."""
    rng = np.random.default_rng(3)
    for dtype, value in (("uint8", 255), ("int8", -127)):
        x, weight = np.full((2, 4096), value, dtype), np.full((3, 4096), -127, np.int8)
        node, operands = int8_node("dot", {"lo": -np.inf, "hi": np.inf}, x, weight, (2, 3), "float32", False, rng)
        operands[2:4] = [np.ones(3, np.float32), np.zeros(3, np.float32)]
        np.testing.assert_array_equal(jax.jit(xla.lower(node))(*operands), np.full((2, 3), value * -127.0 * 4096))
