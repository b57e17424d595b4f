"""Floats beside the CPU's kernels: functions, norms, softmax, rows and their scales, weights in groups."""

import cheap
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cpu_nodes import calls, int8_node, integers, source
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from networks import images

import jaxq
from jaxq import numerics, passes
from jaxq.backends import choose, cpu, gather, prepare
from jaxq.backends.cpu import epilogues, program, values
from jaxq.backends.cpu.takes import why_not
from jaxq.graph.evaluate import evaluate
from jaxq.graph.node import Aval, Graph, Node, QType, constant, topological
from jaxq.graph.trace import trace

pytestmark = pytest.mark.skipif(cpu.available() is not None, reason=str(cpu.available()))


def by_row(x, factor, value=None):
    """The scales of the rows, and the rows; those of a value unless they are an input."""
    operands = {
        "x": source(x).replace(qtype=None) if value is None else value,
        "factor": None if factor is None else constant(factor, "factor"),
    }
    scale = Node("row_scale", (), {}, Aval((*x.shape[:-1], 1), x.dtype), "scale").with_operands(operands)
    rows = Node("quantize_rows", (), {}, Aval(x.shape, np.dtype(np.int8)), "rows", qtype=QType("int8", 1.0))
    return Graph(
        (operands["x"],) if value is None else value.inputs,
        (scale, rows.with_operands({**operands, "row_scale": scale})),
    )


@pytest.mark.parametrize("columns", [1, 7, 64, 200])
@pytest.mark.parametrize("with_factor", [False, True])
def test_rows_and_their_scales(every_node_is_a_region, columns, with_factor):
    rng = np.random.default_rng(columns)
    x = rng.normal(0, 3, (3, 5, columns)).astype(np.float32)
    x[0, 0], x[1, 0, 0], x[1, 1, -1], x[2, 2] = 0, np.nan, -np.inf, np.nan
    graph = by_row(x, rng.uniform(0.1, 9, columns).astype(np.float32) if with_factor else None)
    gathered = gather(graph)
    assert [node.op for node in gathered.nodes if node.op in ("region", "row_scale", "quantize_rows")] == ["region"]
    params = jax.tree.map(jnp.asarray, graph.params)
    found = jax.jit(lambda params, x: evaluate(gathered, params, [x], choose))(params, x)
    expected = cheap.jit(lambda params, x: evaluate(graph, params, [x]))(params, x)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


FUNCTIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False) * 2,
    "gelu by tanh": jax.nn.gelu,
    "silu": lambda x: jax.nn.silu(-x),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


def function_of(x, f):
    """The "elementwise" node that is made of a function."""
    (node,) = passes.simplify(trace(lambda _, x: f(x), {}, (x,)).graph).bind(len(x)).outputs
    assert node.op == "elementwise"
    return node.replace(name="f").with_operands({"x": source(x).replace(qtype=None)})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_floats(every_node_is_a_region, name):
    """On floats, to floats and to rows of bytes; a rounding or two away from XLA's."""
    x = np.linspace(-30, 30, 6 * 77, dtype=np.float32).reshape(6, 77)
    x[0, :3], x[1, 0] = [np.inf, -np.inf, 0.0], np.nan
    f = function_of(x, FUNCTIONS[name])
    scale, rows = by_row(x, None, f).outputs
    graph = Graph(f.inputs, (f, rows)) if name == "gelu" else Graph(f.inputs, (scale, rows))
    gathered = gather(graph)
    assert [node.op for node in gathered.nodes if node.op in ("region", "elementwise")] == ["region"]
    found = jax.jit(lambda x: evaluate(gathered, {}, [x], choose))(x)
    expected = cheap.jit(lambda x: evaluate(graph, {}, [x]))(x)
    np.testing.assert_allclose(found[0][2:], expected[0][2:], rtol=2e-6, atol=1e-5)
    bytes_ = [np.asarray(y[1][2:], np.int32) for y in (found, expected)]
    assert np.max(np.abs(bytes_[0] - bytes_[1])) <= 1 and np.mean(bytes_[0] != bytes_[1]) < 0.01
    if name == "gelu":
        np.testing.assert_array_equal(np.asarray(found[0])[0, :3], [np.inf, 0, 0])
        assert np.isnan(found[0][1, 0])


@pytest.mark.parametrize("f", [jax.nn.mish, lambda x: jax.nn.gelu(1.5 * x), lambda x: jnp.exp(-x * x)])
def test_other_functions_are_xlas(f):
    assert "no kernel" in why_not(function_of(np.ones((3, 8), np.float32), f))


def test_a_transformer_by_row_is_one_region():
    """Functions and moves of floats stand inside it."""

    def fun(params, x):
        y = jax.nn.gelu(x @ params["a"]) @ params["b"]
        heads = [y.reshape(2, 5, 2, 8).swapaxes(1, 2)] * 2
        context = jax.nn.softmax(heads[0] @ heads[1].swapaxes(-1, -2)) @ heads[1]
        return context.swapaxes(1, 2).reshape(2, 5, 16) @ params["a"]

    params = {"a": images(16, 32), "b": images(32, 16, seed=1)}
    config = jaxq.QuantConfig(method="amax", activation_scales="token")
    x = images(2, 5, 16)
    qmodel = jaxq.quantize(fun, params, [x], config=config)
    gathered = [node.op for node in qmodel.plan.gathered.nodes if not node.is_constant]
    assert gathered == ["input", "region", "item"]
    expected = np.asarray(cheap.oracle(qmodel, x))
    np.testing.assert_allclose(qmodel(x), expected, atol=0.02 * np.max(np.abs(expected)))


def test_rows_with_the_scales_of_others_are_xlas():
    graph = by_row(np.ones((3, 8), np.float32), None)
    scale, rows = graph.outputs
    other = source(np.ones((3, 8), np.float32), "other").replace(qtype=None)
    assert why_not(rows) is None
    assert "the scales of others" in why_not(rows.with_operands({"x": other, "row_scale": scale}))


@settings(max_examples=6, deadline=None, phases=[Phase.generate])
@given(st.data())
def test_weight_only_dots(data):
    """Every sum and product is rounded: those of a group, then those of the groups, bias and residual."""
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    rows, depth, channels = (draw(st.sampled_from(sizes)) for sizes in ([1, 2, 5, 40], [1, 33, 300], [3, 16, 90]))
    bits, size, lo = (draw(st.sampled_from(choices)) for choices in ([8, 4], [16, 128], [-np.inf, 0.0]))
    x, weight = (rng.normal(size=shape).astype(np.float32) for shape in ((2, rows, depth), (channels, depth)))
    levels, scale = numerics.quantize_groups(weight, group_size=size, bits=bits)
    constants = {"weight": levels if bits == 8 else numerics.pack_int4(levels), "scale": scale}
    constants |= {"bias": rng.normal(size=channels).astype(np.float32)} if draw(st.booleans()) else {}
    nodes, arrays = {"x": source(x)}, {"x": x}
    if (shape := draw(st.sampled_from([None, (2, rows, channels), (channels,), (2, 1, 1)]))) is not None:
        arrays["residual"] = rng.normal(size=shape).astype(np.float32)
        nodes["residual"] = source(arrays["residual"], "residual")
    nodes |= {role: constant(value, role) for role, value in constants.items()}
    attrs = {"precision": None, "bits": bits, "group_size": size, "lo": lo, "hi": np.inf}
    node = Node("weight_only_dot", (), attrs, Aval((2, rows, channels), x.dtype), "dot").with_operands(nodes)

    graph = Graph(tuple(nodes[name] for name in arrays), (node,))
    gathered, leaves = gather(graph), [jnp.asarray(array) for array in arrays.values()]
    assert [n.op for n in gathered.nodes if n.op == "region"]
    run = jax.jit(lambda params, leaves: evaluate(gathered, params, leaves, choose)[0])
    found = np.asarray(run(prepare(gathered, graph.params), leaves))
    np.testing.assert_array_equal(run(graph.params, leaves), found)

    factors = np.float64(levels) * np.repeat(scale, size, 1)[:, :depth]
    terms = [constants.get("bias", 0.0), arrays.get("residual", 0.0)]
    exact = np.maximum(np.float64(x) @ factors.T + sum(terms), lo)
    magnitude = np.abs(x) @ np.abs(factors).T + sum(map(np.abs, terms))
    roundings = min(size, depth) + scale.shape[1] + 4
    assert np.all(np.abs(found - exact) <= roundings * 2.0**-24 * magnitude)


@pytest.mark.parametrize("op", ["softmax", "layer_norm"])
@pytest.mark.parametrize("columns", [7, 128, 200])
def test_floats_between_bytes(every_node_is_a_region, op, columns):
    """Within one step after requantizing."""
    rng = np.random.default_rng(columns)
    x = rng.normal(0, 3, (3, 5, columns)).astype(np.float32)
    attrs = {"epsilon": 1e-6, "center": True} if op == "layer_norm" else {}
    floats = Node(op, (source(x),), attrs, Aval(x.shape, x.dtype), op, ("x",))
    dtype, scale = ("uint8", 0.2 / 255) if op == "softmax" else ("int8", 3 / 127)
    inputs = (floats, constant(np.float32(1 / scale)))
    bytes_ = Node("quantize", inputs, {}, Aval(x.shape, np.dtype(dtype)), "q", ("x", "multiplier"), QType(dtype, scale))
    graph = Graph(floats.inputs, (bytes_,))
    found = jax.jit(lambda x: evaluate(gather(graph), {}, [x], choose)[0])(x)
    expected = cheap.jit(lambda x: evaluate(graph, {}, [x])[0])(x)
    assert np.max(np.abs(found.astype(np.int32) - expected.astype(np.int32))) <= 1
    assert np.mean(found != expected) < 0.01


def operations(body):
    """The kinds of operations that a region's program consists of."""
    return [values._KINDS[operation[0]] for operation in program._Encoder(body).operations]


@pytest.mark.parametrize("mask", [None, (2, 1, 1, 70), (30, 70)])
@pytest.mark.parametrize("ends", ["softmax", "quantize"])
def test_scores_and_their_softmax(mask, ends):
    """One operation, whose bits are those of the product and the softmax one after the other."""
    rng = np.random.default_rng(0)
    x, y = integers(rng, (2, 30, 3, 20), "int8"), integers(rng, (2, 70, 3, 20), "int8")
    if mask is not None:
        mask = np.where(rng.random(mask) < 0.3, rng.choice([-np.inf, np.finfo(np.float32).min]), 0).astype(np.float32)
    turned = {"x": np.swapaxes(x, 1, 2), "y": np.swapaxes(y, 1, 2)}
    scores, data = int8_node("matmul", {}, turned, "float32", rng, residual=mask)
    heads = {
        role: Node("transpose", (source(whole, role),), {"permutation": (0, 2, 1, 3)}, scores.operand(role).aval, role)
        for role, whole in (("x", x), ("y", y))
    }
    operands = {role: heads.get(role, scores.operand(role)) for role in scores.roles}
    scores = scores.with_operands(operands)
    softmax = Node("softmax", (scores,), {}, scores.aval, "softmax", ("x",))
    node = softmax
    if ends == "quantize":
        aval, qtype = Aval(scores.aval.shape, np.dtype(np.uint8)), QType("uint8", 1 / 255)
        node = Node("quantize", (softmax, constant(np.float32(255))), {}, aval, "q", ("x", "multiplier"), qtype)
    inputs = tuple(s for s in topological((node,)) if s.op == "input")
    arrays = [jnp.asarray({**data, "x": x, "y": y}[s.name]) for s in inputs]

    def run(*outputs):
        gathered = gather(graph := Graph(inputs, outputs))
        (region,) = (n for n in gathered.nodes if n.op == "region")
        found = jax.jit(lambda params: evaluate(gathered, params, arrays, choose))(prepare(gathered, graph.params))
        return region.attrs["body"], found

    body, (together,) = run(node)
    assert operations(body) == ["matrix_product"]
    body, (_, apart) = run(scores, node)  # whoever reads the scores needs them in memory
    assert operations(body) == ["matrix_product", "softmax"]
    np.testing.assert_array_equal(together, apart)


@pytest.mark.parametrize("columns", [7, 200])
def test_a_norm_that_others_read_too(every_node_is_a_region, columns):
    """Its floats and their quantized values are made in one pass, as the norm and the quantize after it make them."""
    rng = np.random.default_rng(columns)
    x = rng.normal(0, 3, (3, 5, columns)).astype(np.float32)
    norm = Node("layer_norm", (source(x),), {"epsilon": 1e-6, "center": True}, Aval(x.shape, x.dtype), "norm", ("x",))

    def quantized(multiplier, name):
        aval, qtype = Aval(x.shape, np.dtype(np.int8)), QType("int8", 1.0)
        return Node("quantize", (norm, multiplier), {}, aval, name, ("x", "multiplier"), qtype)

    by_one, by_other = (quantized(constant(np.float32(factor)), f"by {factor}") for factor in (40, 30))
    by_channel = quantized(constant(np.full(columns, 40, np.float32), "multipliers"), "by channel")

    def run(*outputs):
        gathered = gather(graph := Graph(norm.inputs, outputs))
        (region,) = (n for n in gathered.nodes if n.op == "region")
        params = jax.tree.map(jnp.asarray, graph.params)
        found = jax.jit(lambda params, x: evaluate(gathered, params, [x], choose))(params, x)
        return operations(region.attrs["body"]), found

    kinds, (floats, together) = run(norm, by_one)
    assert kinds == ["layer_norm"]
    kinds, (alone, apart) = run(norm, by_channel)
    assert kinds == ["layer_norm", "quantize"]
    np.testing.assert_array_equal(floats, alone)
    np.testing.assert_array_equal(together, apart)
    kinds, (first, second) = run(by_other, by_one)
    assert kinds == ["layer_norm", "quantize"]
    np.testing.assert_array_equal(second, apart)
    assert np.max(first) < np.max(second)


def test_floats_that_nobody_reads_any_more_are_overwritten(monkeypatch):
    """A residual by the dot that adds it, and what a norm reads by the norm; not what somebody reads later."""

    def fun(params, x):
        first = jax.nn.standardize(x @ params["a"])
        y = first
        for name in "bcd":
            y = jax.nn.standardize(y + y @ params[name])
        return y @ params["e"] + first

    params = {name: images(32, 32, seed=i) / np.float32(6) for i, name in enumerate("abcde")}
    x = images(4, 9, 32)
    qmodel = jaxq.quantize(fun, params, [x], config=jaxq.QuantConfig(method="amax"))

    def run():
        function = jax.jit(lambda params, x: qmodel.plan.evaluate(params, (x,), choose))
        (call,) = calls(function, qmodel.params, x)
        return dict(call.params["attributes"])["program"].val[1], function(qmodel.params, x)

    arena, found = run()
    for module in (program, epilogues):
        monkeypatch.setattr(module, "overwritten", lambda node: None)
    larger, expected = run()
    assert arena < larger
    np.testing.assert_array_equal(found, expected)
