"""The int8 ops in NumPy give the bits of the reference in JAX."""

import cheap
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from nodes import convs, int8_node, leaf

from jaxq.graph.evaluate import reference
from jaxq.graph.node import Aval, Node, QType, constant, is_int8
from jaxq.graph.replay import replay

RNG = np.random.default_rng(0)
INFINITE = {"lo": -np.inf, "hi": np.inf}
X = RNG.integers(-127, 128, (2, 6, 5, 4)).astype(np.int8)


def check(node, operands):
    expected = np.asarray(cheap.jit(reference(node))(*operands))
    found = replay(node)(*map(np.asarray, operands))
    assert is_int8(node)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=10, derandomize=True)
@given(convs())
def test_convolutions(case):
    check(*case)


def epilogue(op, attrs, data, out="int8", residual=None, table=None, spread=100.0):
    """A node of an accumulating op on the data, its epilogue drawn so that some of the values saturate."""
    probe = Node(op, (), {**INFINITE, **attrs}, Aval((0,), np.dtype("float32")))
    probe = probe.with_operands({role: leaf(array) for role, array in data.items()})
    shape = jax.eval_shape(reference(probe), *data.values()).shape
    bounds = {"int8": (-127, 127), "uint8": (0, 255)}
    lo, hi = bounds["int8"] if table is not None else bounds.get(out, (-np.inf, np.inf))
    channels = shape[-1]
    operands = {
        **data,
        "multiplier": (RNG.uniform(0.5, 2, channels) / spread).astype(np.float32),
        "bias": RNG.normal(size=channels).astype(np.float32),
        "lo": np.full(channels, lo, np.float32),
        "hi": np.full(channels, hi, np.float32),
    }
    if residual is not None:
        operands |= {"residual": residual, "residual_multiplier": np.float32(0.37)}
    if table is not None:
        operands["table"] = table
    nodes = {role: constant(value) if role not in data else leaf(value) for role, value in operands.items()}
    node = Node(op, (), {**INFINITE, **attrs}, Aval(shape, jnp.dtype(out)), qtype=QType(out, 1.0))
    return node.with_operands(nodes), list(operands.values())


WINDOW = {"window_dimensions": (1, 3, 2, 1), "window_strides": (1, 2, 1, 1), "window_dilation": (1, 1, 2, 1)}
PLAIN = {**WINDOW, "padding": ((0, 0),) * 4, "base_dilation": (1,) * 4}
PADDED = {**WINDOW, "padding": ((0, 0), (1, 2), (2, -1), (0, 0)), "base_dilation": (1, 2, 1, 1)}
BYTES = X.view(np.uint8)
MATRIX = RNG.integers(-127, 128, (2, 6, 3, 4)).astype(np.int8)


@pytest.mark.parametrize(
    ("op", "attrs", "data", "spread"),
    [
        ("dot", {}, {"x": BYTES, "weight": RNG.integers(-127, 128, (3, 4)).astype(np.int8)}, 300.0),
        ("matmul", {}, {"x": BYTES, "y": MATRIX}, 300.0),
        ("product", {}, {"x": X, "y": BYTES[:, :1, :1]}, 60.0),
        ("sum", {"axes": (1, 2)}, {"x": X}, 10.0),
        ("window_sum", {"window": PLAIN}, {"x": BYTES}, 5.0),
        ("window_sum", {"window": PADDED}, {"x": X}, 5.0),
        ("affine", {}, {"x": X}, 0.7),
    ],
)
def test_accumulating_ops(op, attrs, data, spread):
    for out in ("int8", "uint8", "float32", "bfloat16"):
        check(*epilogue(op, attrs, data, out, spread=spread))


def test_epilogues():
    half = np.full_like(X, 1)  # sums that lie between two integers: half to even
    node, operands = epilogue("affine", {}, {"x": half})
    operands[1][:], operands[2][:] = 0.5, [0.0, 1.0, -1.0, 2.0]
    check(node, operands)
    table = RNG.integers(0, 256, 256).astype(np.uint8)
    check(*epilogue("affine", {}, {"x": X}, "uint8", residual=X[:1], table=table, spread=1.0))
    odd = np.array([np.nan, np.inf, -np.inf, 3e38], np.float32)
    for out in ("int8", "uint8", "float32"):
        check(*epilogue("affine", {}, {"x": X}, out, residual=odd))


def test_borders_and_tables():
    x = np.array([np.nan, np.inf, -np.inf, 0.5, 1.5, -0.5, 300.0, -300.0, 3e38], np.float32)
    for dtype in ("int8", "uint8"):
        for kind in (np.float32, jnp.bfloat16):
            node = Node("quantize", (), {}, Aval(x.shape, np.dtype(dtype)), qtype=QType(dtype, 1.0))
            operands = {"x": x.astype(kind), "multiplier": np.float32(1.0)}
            check(node.with_operands({role: leaf(np.asarray(v)) for role, v in operands.items()}), operands.values())
    for kind in ("float32", "bfloat16"):
        node = Node("dequantize", (), {}, Aval(X.shape, jnp.dtype(kind)))
        check(node.with_operands({"x": leaf(X), "scale": constant(np.float32(0.037))}), [X, np.float32(0.037)])
    table = RNG.integers(-127, 128, 256).astype(np.int8)
    for array in (X, BYTES):
        node = Node("table", (), {"word": "gelu"}, Aval(X.shape, np.dtype("int8")), qtype=QType("int8", 1.0))
        check(node.with_operands({"x": leaf(array), "table": constant(table)}), [array, table])


GATHER = {
    "dimension_numbers": {
        "offset_dims": (1, 2, 3),
        "collapsed_slice_dims": (0,),
        "start_index_map": (0,),
        "operand_batching_dims": (),
        "start_indices_batching_dims": (),
    },
    "slice_sizes": (1, 6, 5, 4),
    "mode": "CLIP",
    "indices_are_sorted": False,
    "unique_indices": False,
    "fill_value": None,
}


@pytest.mark.parametrize(
    ("op", "operands", "attrs"),
    [
        ("reshape", [X], {"new_sizes": (12, 20)}),
        ("transpose", [X], {"permutation": (0, 3, 1, 2)}),
        ("squeeze", [X[:1]], {"dimensions": (0,)}),
        ("broadcast_in_dim", [X[0, 0]], {"shape": (3, 5, 2, 4), "broadcast_dimensions": (1, 3)}),
        ("tile", [X], {"reps": (1, 2, 1, 3)}),
        ("rev", [X], {"dimensions": (1, 3)}),
        ("concatenate", [X, X[:, :2]], {"dimension": 1}),
        ("stack", [X, X[::-1]], {"axis": 2}),
        ("slice", [X], {"start_indices": (0, 1, 0, 2), "limit_indices": (2, 6, 5, 4), "strides": (1, 2, 1, 1)}),
        ("slice", [X], {"start_indices": (0, 1, 0, 2), "limit_indices": (2, 6, 5, 4), "strides": None}),
        ("dynamic_slice", [X, *map(np.int32, (1, 9, 2, 0))], {"slice_sizes": (1, 2, 3, 4)}),
        ("gather", [X, np.array([[1], [0], [7]], np.int32)], GATHER),
        ("pad", [X, np.int8(0)], {"padding_config": ((0, 0, 0), (1, 2, 1), (-1, 3, 0), (2, -1, 2))}),
        ("max", [X, X[::-1]], {}),
        ("min", [X, X[::-1]], {}),
        ("reduce_max", [X], {"axes": (1, 2)}),
        ("reduce_window_max", [X], PLAIN),
        ("reduce_window_max", [BYTES], PADDED),
        ("copy", [X], {}),
        ("name", [X], {"name": "here"}),
        ("stop_gradient", [X], {}),
    ],
)
def test_moves(op, operands, attrs):
    dtype = operands[0].dtype
    sources = tuple(leaf(np.asarray(array)) for array in operands)
    check(Node(op, sources, attrs, Aval((), dtype), qtype=QType(dtype.name, 1.0)), operands)


def test_dots_at_the_ends_of_the_range():
    """Sums as large as an int32 holds, whose conversion to float32 rounds."""
    x, weight = np.full((2, 66_311), 255, np.uint8), np.full((3, 66_311), 127, np.int8)
    weight[1] = -127
    weight[2, 0] = 126
    check(*int8_node("dot", INFINITE, x, weight, (2, 3), "float32", True, RNG))
