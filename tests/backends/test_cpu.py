"""The CPU's kernels give the reference's bits: drawn nodes, whole networks, every transform of JAX."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from jaxq.backends import choose, cpu, gather, prepare
from jaxq.backends.cpu.packing import Form, PackedWeight
from jaxq.graph.evaluate import accumulate, evaluate, reference
from jaxq.graph.node import Aval, Graph, Node, QType, constant

pytestmark = pytest.mark.skipif(cpu.available() is not None, reason=str(cpu.available()))

INFINITE = {"lo": -np.inf, "hi": np.inf}


def source(array, name="x"):
    return Node("input", (), {}, Aval(array.shape, array.dtype), name, qtype=QType(array.dtype.name, 1.0))


def integers(rng, shape, dtype):
    """Bytes as a network has them, many of them at the ends of their range."""
    low, high = (0, 255) if dtype == "uint8" else (-127, 127)
    drawn = rng.integers(low, high + 1, shape)
    return np.where(rng.random(shape) < 0.1, rng.choice([low, high], shape), drawn).astype(dtype)


def int8_node(op, attrs, operands, out_dtype, rng, residual=None, table=False):
    """An int8 node whose data are inputs of a graph and whose weights and epilogue are constants, and the data."""
    data = {role: array for role, array in operands.items() if role != "weight"}
    probe = {role: source(array) for role, array in operands.items()}
    bare = Node(op, (), {**INFINITE, **attrs}, Aval((0,), np.dtype(np.int8))).with_operands(probe)
    sums = np.asarray(accumulate(bare, {k: jnp.asarray(v) for k, v in operands.items()}, jnp.int32))
    channels, spread = sums.shape[-1], max(float(np.std(sums)), 1.0)
    bounds = {"int8": (-127, 127), "uint8": (0, 255), "float32": (-np.inf, np.inf)}["int8" if table else out_dtype]
    lo = np.full(channels, bounds[0], np.float32)
    if rng.random() < 0.5 and bounds[0] < 0:
        lo[::2] = 0
    vectors = {
        "multiplier": (rng.uniform(20, 120, channels) / spread).astype(np.float32),
        "bias": rng.normal(0, 20, channels).astype(np.float32),
        "lo": lo,
        "hi": np.full(channels, bounds[1], np.float32),
    }
    nodes = {role: source(array, role) for role, array in data.items()}
    if "weight" in operands:
        nodes["weight"] = constant(operands["weight"], "weight").replace(qtype=QType("int8", 1.0))
    nodes |= {role: constant(value, role) for role, value in vectors.items()}
    if residual is not None:
        data["residual"] = residual
        nodes["residual"] = source(residual, "residual")
        nodes["residual_multiplier"] = constant(np.float32(0.371))
    if table:
        nodes["table"] = constant(integers(rng, (256,), out_dtype), "table")
    order = ("x", "weight", "y", "multiplier", "bias", "lo", "hi", "residual", "residual_multiplier", "table")
    aval = Aval(sums.shape, np.dtype(out_dtype))
    node = Node(op, (), {**INFINITE, **attrs}, aval, op, qtype=QType(out_dtype, 1.0))
    return node.with_operands({role: nodes[role] for role in order if role in nodes}), data


def check(node, data):
    """The node in a region, with packed weights, gives the reference's bits; so does a batch of it by vmap."""
    inputs = tuple(s for s in node.inputs if s.op == "input")
    arrays = [jnp.asarray(data[s.name]) for s in inputs]
    graph = Graph(inputs, (node,))
    gathered = gather(graph)
    # One region, also where the node alone would not be worth one.
    assert any(n.op == "region" for n in gathered.nodes), cpu.why_not(node)
    run = jax.jit(lambda params, arrays: evaluate(gathered, params, arrays, choose)[0])
    params = jax.tree.map(jnp.asarray, graph.params)
    expected = evaluate(graph, params, arrays)[0]
    np.testing.assert_array_equal(run(prepare(gathered, graph.params), arrays), expected)
    np.testing.assert_array_equal(run(params, arrays), expected)


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


@settings(max_examples=40, deadline=None, phases=[Phase.generate])
@given(convs())
def test_convolutions(case):
    check(*case)


@settings(max_examples=15, deadline=None, phases=[Phase.generate])
@given(st.data())
def test_dots(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    rows, k, n = draw(st.integers(1, 70)), draw(st.sampled_from([1, 3, 64, 100, 130])), draw(st.integers(1, 90))
    x, weight = integers(rng, (2, rows, k), draw(dtypes)), integers(rng, (n, k), "int8")
    shape = draw(st.sampled_from([(2, rows, n), (1, rows, n), (2, 1, n), (n,), (2, rows, 1), (2, 1, 1)]))
    residual = draw(st.sampled_from([None, integers(rng, shape, "int8"), rng.normal(size=shape).astype(np.float32)]))
    check(*int8_node("dot", {}, {"x": x, "weight": weight}, draw(outputs), rng, residual=residual))
