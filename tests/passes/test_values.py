"""Ops on two values in int8: products of matrices, gates, sums that broadcast, maxima; and values that are bytes."""

import cheap
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import decibels, images, variables

import jaxq
from jaxq import passes
from jaxq.backends import xla
from jaxq.graph.evaluate import reference
from jaxq.graph.node import Aval, Node, constant, topological
from jaxq.graph.trace import trace

X = images(6, 10, 8)
PARAMS = {"a": images(8, 8, seed=1) / 3, "b": images(8, 8, seed=2) / 3, "c": images(8, 5, seed=3)}


def rows(qmodel, *ops):
    return [row for row in qmodel.summary().nodes if row.op in ops]


def check(fun, params, x, least=25.0, method="mse", jit=cheap.jit):
    """The quantized function, which equals its oracle in every bit and the float one in that many decibels."""
    qmodel = jaxq.quantize(fun, params, [x], config=jaxq.QuantConfig(method=method))
    results, oracles, few, exact = map(
        jax.tree.leaves,
        (qmodel(x), jit(qmodel.plan.evaluate)(qmodel.params, (x,)), qmodel(x[:3]), cheap.jit(fun)(params, x)),
    )
    for i, result in enumerate(results):
        np.testing.assert_array_equal(result, oracles[i])
        np.testing.assert_array_equal(result[:3], few[i])
        assert decibels(exact[i], result) > least
    return qmodel


PRODUCTS = (
    lambda q, k: jnp.einsum("bqd,bkd->bqk", q, k),
    lambda q, k: jnp.einsum("bqd,bqe->bde", q, k),
    lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q.reshape(-1, 10, 2, 4), k.reshape(-1, 10, 2, 4)),
    lambda q, k: jnp.einsum("bqhd,bkhd->bqk", q.reshape(-1, 10, 2, 4), k.reshape(-1, 10, 2, 4)),
    lambda q, k: q @ k.transpose(0, 2, 1),
    lambda q, k: jnp.einsum("bd,bkd->bk", q[:, 0], k),
)


def test_products_of_two_values_are_int8():
    """However they are spelled: of scores and of values, with heads, with two axes contracted, of rows of one."""

    def fun(params, x):
        q, k = x @ params["a"], jax.nn.relu(x @ params["b"])
        return [product(q, k) for product in PRODUCTS]

    products = rows(check(fun, PARAMS, X), "matmul")
    assert len(products) == len(PRODUCTS)
    assert {(row.precision, row.dtypes[0]) for row in products} == {("int8", ("int8", "uint8"))}


ATTENDED = (
    lambda w, v: jnp.einsum("bqk,bkd->bqd", w, v),
    lambda w, v: jnp.einsum("bhqk,bkhd->bqhd", w.reshape(-1, 2, 5, 10), v.reshape(-1, 10, 2, 4)),
    lambda w, v: jnp.einsum("bpqk,bkd->bpqd", w.reshape(-1, 5, 2, 10), v),
    lambda w, v: jnp.einsum("bqk,bkde->bqde", w, v.reshape(-1, 10, 2, 4)),
    lambda w, v: jnp.einsum("bkd,bqk->bqd", v, w),
    lambda w, v: jnp.einsum("bqk,bkde->bdqe", w, v.reshape(-1, 10, 2, 4)),
)


def test_attention_multiplies_bytes_with_signed_values():
    """In whatever order JAX traces them: the channels of the values end the result, and so they end the product."""

    def fun(params, x):
        weights = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", x @ params["a"], x))
        values = x @ params["b"]
        return [attended(weights, values) for attended in ATTENDED]

    _, *products = rows(check(fun, PARAMS, X, jit=jax.jit), "matmul")
    assert [row.dtypes[0] for row in products] == [("uint8", "int8")] * len(ATTENDED)


def test_a_precision_goes_with_its_operand():
    def fun(params, x):
        return jnp.einsum("bqk,bkd->bqd", x @ params["a"], x.swapaxes(1, 2), precision=("high", "default"))

    graph = passes.simplify(trace(fun, PARAMS, (X,)).graph)
    (product,) = (node for node in graph.nodes if node.op == "matmul")
    sharp = product.operand("x" if product.attrs["precision"] == ("HIGH", "DEFAULT") else "y")
    assert "dot" in {node.op for node in topological((sharp,))}


def test_a_product_over_the_batch_stays_in_float():
    qmodel = jaxq.quantize(lambda params, x: (x @ params["a"])[:, 0].T @ (x @ params["b"])[:, 0], PARAMS, [X])
    (row,) = rows(qmodel, "matmul")
    assert (row.precision, row.reason) == ("float", "it sums over the batch")


dtypes = st.sampled_from(["int8", "uint8"])


@settings(max_examples=10)
@given(dtypes, dtypes, *(st.integers(1, 9) for _ in range(4)), st.integers(0, 2**32 - 1))
def test_the_backend_multiplies_bytes_of_any_sign(dtype_x, dtype_y, batch, rows, columns, depth, seed):
    rng = np.random.default_rng(seed)

    def drawn(shape, dtype):
        return rng.choice([-127, 127, 3], shape).astype(np.int8) if dtype == "int8" else rng.choice([0, 255, 7], shape)

    x, y = drawn((batch, rows, depth), dtype_x).astype(dtype_x), drawn((batch, columns, depth), dtype_y).astype(dtype_y)
    values = {"x": x, "y": y, **dict.fromkeys(("multiplier", "bias", "lo", "hi"))}
    vectors = {"multiplier": 1.0, "bias": 0.0, "lo": -np.inf, "hi": np.inf}
    for role, value in vectors.items():
        values[role] = np.full(columns, value, np.float32)
    inputs = tuple(constant(value, role) for role, value in values.items())
    aval = Aval((batch, rows, columns), np.dtype(np.float32))
    node = Node("matmul", inputs, {"precision": None}, aval, "m", tuple(values))
    expected = np.einsum("bmk,bnk->bmn", x.astype(np.int64), y.astype(np.int64))
    both = cheap.jit(lambda *operands: [run(*operands) for run in (reference(node), xla.lower(node))])
    for found in both(*values.values()):
        np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_a_gate_is_int8():
    def fun(params, x):
        gate = jax.nn.sigmoid(x.mean(1, keepdims=True) @ params["a"])
        return ((x @ params["b"]) * gate) @ params["c"]

    qmodel = check(fun, PARAMS, X, method="auto")
    (row,) = rows(qmodel, "mul")
    assert (row.precision, row.dtypes) == ("int8", (("int8", "uint8"), "int8"))


def test_a_gated_linear_unit_is_int8():
    def fun(params, x):
        return (jax.nn.silu(x @ params["a"]) * (x @ params["b"])) @ params["c"]

    qmodel = check(fun, PARAMS, X)
    assert {row.precision for row in qmodel.summary().nodes} == {"int8"}
    assert next(row.fused for row in rows(qmodel, "dot")) == ("silu", "requantize")


def test_a_residual_that_is_broadcast_fuses():
    def fun(params, x):
        y = x @ params["a"]
        return jax.nn.relu(y + (x @ params["b"]).mean(1, keepdims=True)) @ params["c"]

    qmodel = check(fun, PARAMS, X)
    assert ("residual", "relu", "requantize") in [row.fused for row in rows(qmodel, "dot")]


def test_a_constant_per_position_is_a_residual():
    def fun(params, x):
        return jax.nn.relu(x @ params["a"] + params["position"]) @ params["c"]

    qmodel = check(fun, {**PARAMS, "position": images(1, 10, 8, seed=5)}, X)
    assert [row.fused for row in rows(qmodel, "dot")] == [("residual", "relu", "requantize"), ()]


def test_a_maximum_of_two_values_moves_integers():
    def fun(params, x):
        return jnp.maximum(x @ params["a"], x @ params["b"]) @ params["c"]

    qmodel = check(fun, PARAMS, X)
    (row,) = rows(qmodel, "max")
    assert row.precision == "int8"


class Camera(nn.Module):
    """Takes an image's bytes."""

    padding: str
    scale_only: bool = False

    @nn.compact
    def __call__(self, x):
        x = x.astype(jnp.float32) / 255
        if not self.scale_only:
            x = (x - jnp.array([0.4, 0.5, 0.6])) / jnp.array([0.2, 0.3, 0.2])
        x = nn.relu(nn.Conv(8, (3, 3), padding=self.padding)(x))
        return nn.Dense(5)(x.mean((1, 2)))


@pytest.mark.parametrize(
    ("padding", "scale_only", "is_direct"), [("VALID", False, True), ("SAME", True, True), ("SAME", False, False)]
)
def test_bytes_go_straight_into_the_first_convolution(padding, scale_only, is_direct):
    x = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    model = Camera(padding, scale_only)
    fun, params = model.apply, variables(model, x)
    qmodel = check(fun, params, x)
    first = qmodel.summary().nodes[0]
    assert (first.op, first.dtypes[0]) == ("conv" if is_direct else "affine", ("uint8",))
    assert {row.precision for row in qmodel.summary().nodes} == {"int8"}


def test_bytes_beside_other_values_have_a_scale():
    def fun(params, x, z):
        return jnp.concatenate([x.astype(jnp.float32), z @ params["a"]], -1) @ jnp.concatenate([params["c"]] * 2)

    x = np.random.default_rng(0).integers(0, 256, (6, 10, 8)).astype(np.uint8)
    qmodel = jaxq.quantize(fun, PARAMS, [(x, X)])
    np.testing.assert_array_equal(qmodel(x, X), cheap.oracle(qmodel, x, X))
    assert decibels(cheap.jit(fun)(PARAMS, x, X), qmodel(x, X)) > 25


@pytest.mark.parametrize(
    ("select", "reason"),
    [
        (lambda y, n: jax.image.resize(y, (y.shape[0], 20, 8), "nearest"), ""),
        (lambda y, n: jnp.take(y, np.array([3, 0, 9]), axis=1), ""),
        (lambda y, n: y[:, n % 10], ""),
        (lambda y, n: jnp.take(y, n, axis=1), "an index of it may lie outside, where it fills in NaN"),
    ],
)
def test_a_gather_moves_integers(select, reason):
    def fun(params, x, n):
        return select(jax.nn.relu(x @ params["a"]), n) @ params["b"]

    args = (X, np.array([2, 5, 5], np.int32))
    qmodel = jaxq.quantize(fun, PARAMS, [args])
    assert [(row.reason, row.dtypes[1]) for row in rows(qmodel, "gather")] == [
        (reason, "float32" if reason else "uint8")
    ]
    assert decibels(cheap.jit(fun)(PARAMS, *args), qmodel(*args)) > 25
    np.testing.assert_array_equal(qmodel(*args), cheap.oracle(qmodel, *args))


def test_padding_goes_into_the_convolution():
    class Padded(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = jnp.pad(x, ((0, 0), (1, 2), (3, 0), (0, 0)))
            return nn.Conv(4, (3, 3), strides=2, padding="VALID")(x)

    x = images(4, 8, 8, 3)
    model = Padded()
    qmodel = check(model.apply, variables(model, x), x)
    assert [row.op for row in qmodel.summary().nodes] == ["quantize", "conv"]
    (conv,) = [node for node in qmodel.plan.graph.nodes if node.op == "conv"]
    assert conv.attrs["padding"] == ((1, 2), (3, 0))


def test_attention_is_int8():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=2)(y, y)
            return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))

    model = Block()
    qmodel = check(model.apply, variables(model, X), X, method="auto", jit=jax.jit)
    scores, values = rows(qmodel, "matmul")
    assert (scores.dtypes, values.dtypes) == ((("int8", "int8"), "float32"), (("uint8", "int8"), "int8"))
    merged = [row for row in rows(qmodel, "dot") if "merged:3" in row.fused]
    assert len(merged) == 1
    assert [row.fused for row in rows(qmodel, "dot")[1:]] == [
        ("bias", "residual"),
        ("bias", "gelu", "requantize"),
        ("bias", "residual"),
    ]


def test_a_network_of_bytes_alone_needs_no_threshold():
    def fun(params, x):
        return jnp.concatenate([x, x[:, ::-1]], -1).astype(jnp.float32) @ params["a"]

    x = np.random.default_rng(0).integers(0, 256, (6, 10, 4)).astype(np.uint8)
    assert [row.precision for row in rows(check(fun, PARAMS, x), "dot")] == ["int8"]
    assert jaxq.calibrate(fun, PARAMS, [x, x]).thresholds() == {}


def test_a_norm_without_a_mean_subtracts_nothing():
    model = nn.Sequential([nn.RMSNorm(), nn.Dense(4)])
    qmodel = check(model.apply, variables(model, X), X, jit=jax.jit)
    assert "sub" not in {row.op for row in qmodel.summary().nodes}
