"""The CPU's kernels give the reference's bits: drawn nodes, whole networks, every transform of JAX."""

import threading

import cheap
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from networks import equations, images
from nodes import row_scales

import jaxq
from jaxq import numerics, passes
from jaxq.backends import choose, cpu, gather, prepare
from jaxq.backends.cpu import blocks, epilogues, program, regions, values
from jaxq.backends.cpu.takes import why_not
from jaxq.graph.evaluate import accumulate, evaluate
from jaxq.graph.node import Aval, Dim, Graph, Node, QType, constant, topological
from jaxq.graph.primitives import BY_NAME
from jaxq.graph.trace import trace

pytestmark = pytest.mark.skipif(cpu.available() is not None, reason=str(cpu.available()))

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


@pytest.fixture
def every_node_is_a_region(monkeypatch):
    monkeypatch.setattr(regions, "is_worth_a_call", lambda nodes: True)


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


PADDINGS = {
    "around": ((0, 0, 0), (1, 2, 0), (0, 1, 0), (0, 0, 0)),
    "between": ((0, 0, 0), (1, 0, 1), (2, 1, 2), (0, 0, 0)),
    "channels": ((0, 0, 0), (0, 1, 0), (0, 0, 0), (3, 1, 1)),
    "none": ((0, 0, 0),) * 4,
}


def padded(x, config, value):
    """The operand, and the node that pads it."""
    shape = tuple(lo + hi + n + (n - 1) * gap for n, (lo, hi, gap) in zip(x.shape, config, strict=True))
    inputs = (source(x), constant(np.array(value, x.dtype)))
    qtype = QType(x.dtype.name, 1.0, value if x.dtype == np.uint8 else 0)
    return Node("pad", inputs, {"padding_config": config}, Aval(shape, x.dtype), "pad", qtype=qtype)


@pytest.mark.parametrize("config", PADDINGS.values(), ids=PADDINGS)
def test_padding_with_a_number(every_node_is_a_region, config):
    """By itself, moved before and behind, and into channels of a concatenation."""
    rng = np.random.default_rng(0)
    for dtype, value in (("uint8", 23), ("int8", 0), ("int8", -127)):
        x = integers(rng, (2, 5, 4, 6), dtype)
        pad = padded(x, config, value)
        check(pad, {"x": x})
        n, h, w, c = pad.aval.shape
        beside = source(integers(rng, (n, h, w, 3), dtype), "beside")
        aval = Aval((n, h, w, c + 3), pad.aval.dtype)
        joined = Node("concatenate", (pad, beside), {"dimension": 3}, aval, "joined", qtype=pad.qtype)
        check(joined, {"x": x, "beside": integers(rng, beside.aval.shape, dtype)})
        qtype, order = pad.qtype, (0, 2, 1, 3)
        turned = Node(
            "transpose", (source(x),), {"permutation": order}, Aval((2, 4, 5, 6), x.dtype), "turned", (), qtype
        )
        behind = pad.replace(inputs=(turned, pad.inputs[1]), aval=Aval((n, w, h, c), x.dtype))
        check(behind.with_attrs(padding_config=tuple(config[i] for i in order)), {"x": x})


def test_what_pads_otherwise_is_xlas():
    x = np.zeros((2, 5, 4, 6), np.int8)
    around = PADDINGS["around"]
    assert why_not(padded(x, around, 0)) is None
    assert why_not(padded(x.astype(np.float32), around, 0)) == "it pads floats"
    assert "crops" in why_not(padded(x, ((0, 0, 0), (-1, 2, 0), *around[2:]), 0))
    assert "batch" in why_not(padded(x, ((1, 0, 0), *around[1:]), 0))
    assert "not constant" in why_not(padded(x, around, 0).replace(inputs=(source(x), source(np.int8(0), "value"))))


def test_a_region_holds_its_padding():
    """A convolution behind a skewed function, whose zeros are another integer."""
    params = {name: images(3, 3, 8, 8, seed=i) / np.float32(8) for i, name in enumerate("abc")}

    def conv(x, weight):
        return jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def fun(params, x):
        return conv(jax.nn.silu(conv(jax.nn.silu(conv(x, params["a"])), params["b"])), params["c"])

    x = images(4, 9, 7, 8)
    qmodel = jaxq.quantize(fun, params, [x], config=jaxq.QuantConfig(method="mse"))
    assert [node.op for node in qmodel.plan.graph.nodes].count("pad") == 2
    gathered = [node.op for node in qmodel.plan.gathered.nodes if node.op not in ("param", "const", "input")]
    assert gathered == ["region", "item"]
    np.testing.assert_array_equal(qmodel(x), cheap.oracle(qmodel, x))


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


def operations(body):
    """The kinds of operations that a region's program consists of."""
    return [values._KINDS[operation[0]] for operation in program._Encoder(body).operations]


def calls(function, *args):
    return [e for e in equations(jax.make_jaxpr(function)(*args)) if e.primitive.name == "ffi_call"]


def test_vmap_makes_one_larger_batch(small_cnn):
    qmodel, x = small_cnn.qmodel, np.stack([small_cnn.x, small_cnn.x[::-1]])
    batched = jax.vmap(qmodel)
    assert len(calls(batched, x)) == len(calls(qmodel, x[0]))
    np.testing.assert_array_equal(jax.jit(batched)(x), [qmodel(x[0]), qmodel(x[1])])


@pytest.mark.parametrize("batch", [2, 6, 7])
def test_blocks_of_a_batch(small_cnn, monkeypatch, batch):
    """Every way to cut the batch gives the same bits."""
    qmodel = small_cnn.qmodel
    x = np.concatenate([small_cnn.x, small_cnn.x[::-1]])[:batch]
    found = []
    for size in (n for n in range(1, batch + 1) if batch % n == 0):
        monkeypatch.setattr(program, "block_size", lambda *_, size=size: size)
        run = jax.jit(lambda params, x: qmodel.plan.evaluate(params, (x,), choose))
        programs = [dict(call.params["attributes"])["program"].val for call in calls(run, qmodel.params, x)]
        assert {int(numbers[3]) for numbers in programs} == {batch // size}
        found.append(run(qmodel.params, x))
    for y in found:
        np.testing.assert_array_equal(y, qmodel(x))


def test_what_is_cut_into_blocks():
    assert blocks.block_size(32, 1 << 20, threads=2) == 4
    assert blocks.block_size(8, 1, threads=2) == 4  # a block for each thread
    assert blocks.block_size(7, 1 << 30, threads=2) == 7  # unevenly, not at all
    assert blocks.block_size(15, 1 << 20, threads=2) == 1  # 15 blocks are nearly even
    assert blocks.block_size(8, 1, threads=16) == 8

    def batch_of(function, *shapes):
        def graph(batch):
            avals = [Aval(tuple(batch if d == "b" else d for d in shape), np.dtype(np.int8)) for shape in shapes]
            inputs = [Node("input", (), {}, aval, f"x{i}") for i, aval in enumerate(avals)]
            return Graph(tuple(inputs), (function(batch, *inputs),))

        return blocks.batch_of(graph(Dim(1, 0)), graph(6))

    def moved(op, shape, **attrs):
        return lambda batch, *inputs: Node(
            op, inputs, attrs, Aval(tuple(batch if d == "b" else d for d in shape), np.dtype(np.int8)), op
        )

    assert batch_of(moved("concatenate", ("b", 8), dimension=1), ("b", 3), ("b", 5)) == 6
    assert batch_of(moved("transpose", ("b", 5, 3), permutation=(0, 2, 1)), ("b", 3, 5)) == 6
    assert batch_of(moved("transpose", (3, "b"), permutation=(1, 0)), ("b", 3)) == 1
    assert batch_of(moved("slice", (1, 3), start_indices=(0, 0), limit_indices=(1, 3)), ("b", 3)) == 1

    def twice(batch, x):
        size = Dim(2, 0) if isinstance(batch, Dim) else 2 * batch
        return Node("concatenate", (x, x), {"dimension": 0}, Aval((size, 3), np.dtype(np.int8)), "twice")

    assert batch_of(twice, ("b", 3)) == 1  # each of its halves holds all examples


def test_weights_of_their_own_for_every_example(small_cnn):
    qmodel, x = small_cnn.qmodel, small_cnn.x
    two = jax.tree.map(lambda a: np.stack([a, a]), qmodel.params)
    found = cheap.jit(jax.vmap(qmodel.apply, (0, None)))(two, x)
    np.testing.assert_array_equal(found, [qmodel(x)] * 2)


def test_weights_that_are_not_packed(small_cnn):
    plain = {name: jnp.asarray(np.asarray(value)) for name, value in small_cnn.qmodel.params.items()}
    np.testing.assert_array_equal(small_cnn.qmodel.apply(plain, small_cnn.x), small_cnn.qmodel(small_cnn.x))


def test_many_threads(small_cnn):
    qmodel, x = small_cnn.qmodel, small_cnn.x
    expected, wrong = np.asarray(qmodel(x)), []

    def work():
        for _ in range(20):
            if not np.array_equal(qmodel(x), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Version, arena, helpers, blocks, number of steps, the step of the only result, operations.
PROGRAMS = (
    [],
    [program.VERSION + 1, 0, 0, 1, 1, 0, 0],
    [program.VERSION, 0, 0, 1, 1, 0, 1],
    [program.VERSION, 0, 0, 1, 1, 0, 1, 99],
    [program.VERSION, 64, 0, 1, 1, 0, 1, 7, 5, 5, 9, 0],
    [program.VERSION, 0, 0, 0, 1, 0, 0],
    [program.VERSION, 0, 0, 1, 2, 0, 0, 0],
    [program.VERSION, 0, 0, 1, 2**40, 0],
    [program.VERSION, 0, 0, 2, 1, 3, 0],
    [program.VERSION, 0, 0, 2, 1, -1, 0],
)


@pytest.mark.parametrize("numbers", PROGRAMS)
def test_a_foreign_program_is_an_error(numbers):
    call = jax.ffi.ffi_call(cpu.library.TARGET, [jax.ShapeDtypeStruct((4,), np.int8)])
    with pytest.raises(jax.errors.JaxRuntimeError, match="jaxq: the program"):
        jax.block_until_ready(jax.jit(lambda x: call(x, program=np.asarray(numbers, np.int64)))(jnp.zeros(4, jnp.int8)))
