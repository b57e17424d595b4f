"""int8 nodes for the tests of the CPU's kernels, and the check that these give the reference's bits."""

import cheap
import jax
import jax.numpy as jnp
import numpy as np
from networks import equations

from jaxq.backends import choose, gather, prepare
from jaxq.backends.cpu.takes import why_not
from jaxq.graph.evaluate import accumulate, evaluate
from jaxq.graph.node import Aval, Graph, Node, QType, constant, topological

INFINITE = {"lo": -np.inf, "hi": np.inf}


def source(array, name="x"):
    return Node("input", (), {}, Aval(array.shape, array.dtype), name, qtype=QType(array.dtype.name, 1.0))


def integers(rng, shape, dtype):
    """Bytes as a network has them, many of them at the ends of their range."""
    low, high = (0, 255) if dtype == "uint8" else (-127, 127)
    drawn = rng.integers(low, high + 1, shape)
    return np.where(rng.random(shape) < 0.1, rng.choice([low, high], shape), drawn).astype(dtype)


def int8_node(op, attrs, operands, out_dtype, rng, residual=None, table=False, row_scale=None):
    """An int8 node whose data are inputs of a graph and whose weights and epilogue are constants, and the data."""
    data = {role: array for role, array in operands.items() if role != "weight"}
    probe = {role: source(array) for role, array in operands.items()}
    bare = Node(op, (), {**INFINITE, **attrs}, Aval((0,), np.dtype(np.int8))).with_operands(probe)
    sums = np.asarray(cheap.jit(lambda given: accumulate(bare, dict(given), jnp.int32))(operands))
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
    if row_scale is not None:
        data["row_scale"] = row_scale
        nodes["row_scale"] = source(row_scale, "row_scale").replace(qtype=None)
    if table:
        nodes["table"] = constant(integers(rng, (256,), out_dtype), "table")
    order = ("x", "weight", "y", "multiplier", "bias", "lo", "hi", "row_scale", "residual", "residual_multiplier")
    order += ("table",)
    aval = Aval(sums.shape, np.dtype(out_dtype))
    node = Node(op, (), {**INFINITE, **attrs}, aval, op, qtype=QType(out_dtype, 1.0))
    return node.with_operands({role: nodes[role] for role in order if role in nodes}), data


def check(node, data):
    """The node in a region, with packed weights, gives the reference's bits; so does a batch of it by vmap."""
    inputs = tuple(s for s in topological((node,)) if s.op == "input")
    arrays = [jnp.asarray(data[s.name]) for s in inputs]
    graph = Graph(inputs, (node,))
    gathered = gather(graph)
    # One region, also where the node alone would not be worth one.
    assert any(n.op == "region" for n in gathered.nodes), why_not(node)
    run = jax.jit(lambda params, arrays: evaluate(gathered, params, arrays, choose)[0])
    params = jax.tree.map(jnp.asarray, graph.params)
    expected = cheap.jit(lambda params, arrays: evaluate(graph, params, arrays)[0])(params, arrays)
    np.testing.assert_array_equal(run(prepare(gathered, graph.params), arrays), expected)
    np.testing.assert_array_equal(run(params, arrays), expected)


def calls(function, *args):
    return [e for e in equations(jax.make_jaxpr(function)(*args)) if e.primitive.name == "ffi_call"]
