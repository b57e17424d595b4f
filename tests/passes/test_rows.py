"""Softmax and layer norm: one node in every spelling, and nothing that only looks like them."""

import cheap
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from networks import images, nnx_module, variables

import jaxq
from jaxq import passes
from jaxq.graph.evaluate import evaluate
from jaxq.graph.trace import trace
from jaxq.graph.verify import verify

WIDTH = 24
X = images(4, 5, WIDTH) * 3 + 1
PARAMS = {"gamma": images(WIDTH, seed=1) + 2, "beta": images(WIDTH, seed=2), "w": images(WIDTH, 6, seed=3) / 5}


def simplified(fun, params=PARAMS, x=X, tolerance=2e-6):
    """The simplified graph, which computes the same."""
    graph = verify(passes.simplify(trace(fun, params, (x,)).graph), "float")

    @cheap.jit
    def both(simple, params, x):
        return evaluate(graph.bind(len(x)), simple, [x]), jax.tree.leaves(fun(params, x))

    for a, b in zip(*both(graph.params, params, x), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())
    return graph


def ops(graph):
    return [node.op for node in graph.nodes if not node.is_constant and node.op != "input"]


def exp_sum(x):
    e = jnp.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


SOFTMAX = {
    "jax": jax.nn.softmax,
    "flax": nn.softmax,
    "nnx": nnx.softmax,
    "plain": exp_sum,
    "gradient stopped": lambda x: exp_sum(x - jax.lax.stop_gradient(x.max(-1, keepdims=True))),
    "product": lambda x: (lambda e: e * (1 / e.sum(-1, keepdims=True)))(jnp.exp(x - x.max(-1, keepdims=True))),
    "powers of two": lambda x: (lambda e: e / e.sum(-1, keepdims=True))(
        jnp.exp2((x - x.max(-1, keepdims=True)) * np.float32(np.log2(np.e)))
    ),
    "log softmax": lambda x: jnp.exp(jax.nn.log_softmax(x)),
    "no axis kept": lambda x: (lambda e: e / jnp.sum(e, -1)[..., None])(jnp.exp(x - jnp.max(x, -1)[..., None])),
}


@pytest.mark.parametrize("spelling", SOFTMAX.values(), ids=SOFTMAX)
def test_softmax(spelling):
    graph = simplified(lambda params, x: spelling(x), tolerance=1e-5)
    assert ops(graph) == ["softmax"]


def plain(center=True, epsilon=1e-5, root="rsqrt"):
    """A norm of the textbook."""

    def norm(x):
        x = x - x.mean(-1, keepdims=True) if center else x
        variance = jnp.square(x).mean(-1, keepdims=True) + epsilon
        return {
            "rsqrt": lambda: x * jax.lax.rsqrt(variance),
            "sqrt": lambda: x / jnp.sqrt(variance),
            "power": lambda: x * variance**-0.5,
        }[root]()

    return norm


def two_terms(x):
    """x * a - mean * a, of E[x^2] - E[x]^2."""
    mean = x.mean(-1, keepdims=True)
    a = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) - mean * mean + 1e-5)
    return x * a - mean * a


# Each with its epsilon, and whether it centers.
NORMS = {
    "rsqrt": (plain(), 1e-5, True),
    "sqrt": (plain(epsilon=1e-12, root="sqrt"), 1e-12, True),
    "power": (plain(epsilon=1e-3, root="power"), 1e-3, True),
    "no epsilon": (plain(epsilon=0.0), 0.0, True),
    "jnp.var": (lambda x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6), 1e-6, True),
    "two terms": (two_terms, 1e-5, True),
    "standardize": (jax.nn.standardize, 1e-5, True),
    "rms": (plain(center=False), 1e-5, False),
    "rms by power": (plain(center=False, epsilon=1e-6, root="power"), 1e-6, False),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name):
    norm, epsilon, center = NORMS[name]
    graph = simplified(lambda params, x: norm(x), tolerance=1e-5)
    assert ops(graph) == ["layer_norm"]
    (node,) = graph.outputs
    assert node.attrs == {"epsilon": pytest.approx(epsilon, rel=1e-6), "center": center}
    assert node.roles == ("x",)


def haiku(params, x):
    inverse = params["gamma"] * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
    return inverse * (x - x.mean(-1, keepdims=True)) + params["beta"]


def scale_first(params, x):
    x, variance = x - x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return params["gamma"] * x / jnp.sqrt(variance + 1e-5) + params["beta"]


SCALED = {
    "behind": (lambda params, x: plain()(x) * params["gamma"] + params["beta"], ("x", "scale", "bias")),
    "scale": (lambda params, x: plain()(x) * (1 + params["gamma"]), ("x", "scale")),
    "bias": (lambda params, x: plain()(x) - params["beta"], ("x", "bias")),
    "haiku": (haiku, ("x", "scale", "bias")),
    "scale first": (scale_first, ("x", "scale", "bias")),
}


@pytest.mark.parametrize("name", SCALED)
def test_scale_and_bias_are_operands_of_the_norm(name):
    fun, roles = SCALED[name]
    graph = simplified(fun, tolerance=1e-5)
    assert ops(graph) == ["layer_norm"]
    assert graph.outputs[0].roles == roles


@pytest.mark.parametrize("name", SCALED)
def test_scale_and_bias_go_into_the_layer_behind(name):
    graph = simplified(lambda params, x: SCALED[name][0](params, x) @ params["w"], tolerance=1e-5)
    assert ops(graph) == ["layer_norm", "dot"]
    assert next(node.roles for node in graph.nodes if node.op == "layer_norm") == ("x",)


LINEN = {
    "layer norm": (nn.LayerNorm(), ("x", "scale", "bias")),
    "two passes": (nn.LayerNorm(use_fast_variance=False), ("x", "scale", "bias")),
    "no scale": (nn.LayerNorm(use_scale=False), ("x", "bias")),
    "no bias": (nn.LayerNorm(use_bias=False), ("x", "scale")),
    "neither": (nn.LayerNorm(use_scale=False, use_bias=False), ("x",)),
    "rms": (nn.RMSNorm(), ("x", "scale")),
}


@pytest.mark.parametrize("name", LINEN)
def test_linen(name):
    model, roles = LINEN[name]
    graph = simplified(model.apply, variables(model, X), tolerance=1e-5)
    assert ops(graph) == ["layer_norm"]
    (node,) = graph.outputs
    assert node.roles == roles
    assert node.attrs == {"epsilon": pytest.approx(1e-6), "center": name != "rms"}


@pytest.mark.parametrize("make", [nnx.LayerNorm, nnx.RMSNorm])
def test_nnx(make):
    model = nnx_module(lambda rngs: nnx.Sequential(make(WIDTH, rngs=rngs), nnx.Linear(WIDTH, 3, rngs=rngs)))
    rows = jaxq.quantize(model, [X], config=jaxq.QuantConfig(method="mse")).summary().nodes
    assert [row.op for row in rows] == ["layer_norm", "quantize", "dot"]


@given(st.floats(1e-12, 1e-2), st.booleans(), st.integers(2, 40))
def test_epsilon_is_found(epsilon, center, channels):
    x = images(3, channels)
    graph = passes.simplify(trace(lambda params, x: plain(center, np.float32(epsilon))(x), {}, (x,)).graph)
    assert graph.outputs[0].attrs == {"epsilon": float(np.float32(epsilon)), "center": center}


def by_std(x):
    """Epsilon on the wrong side of the root."""
    return (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-3)


def masked(x):
    e = jnp.exp(x - x.max(-1, keepdims=True)) * (np.arange(WIDTH) < 7).astype(np.float32)
    return e / e.sum(-1, keepdims=True)


NO_MATCH = {
    "softmax of another axis": lambda x: jax.nn.softmax(x, 1),
    "softmax of two axes": lambda x: jax.nn.softmax(x, (1, 2)),
    "no maximum": lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True),
    "one more": lambda x: (lambda e: e / (1 + e.sum(-1, keepdims=True)))(jnp.exp(x - x.max(-1, keepdims=True))),
    "another denominator": lambda x: (lambda e: e / (e * e).sum(-1, keepdims=True))(
        jnp.exp(x - x.max(-1, keepdims=True))
    ),
    # A row that is masked as a whole has ones here, in softmax 1 / WIDTH.
    "log of the sum": lambda x: jnp.exp(x - jax.scipy.special.logsumexp(x, -1, keepdims=True)),
    "the sum of another axis": lambda x: (lambda e: e / e.sum(1, keepdims=True))(jnp.exp(x - x.max(-1, keepdims=True))),
    "a mask": masked,
    "softmax that is clipped": lambda x: (lambda e: e / e.sum(-1, keepdims=True))(
        jnp.exp(jnp.maximum(x - x.max(-1, keepdims=True), -4.0))
    ),
    "a norm of two axes": lambda x: jax.nn.standardize(x, (1, 2)),
    "a norm of another axis": lambda x: jax.nn.standardize(x, 1),
    "a norm of groups": lambda x: jax.nn.standardize(x.reshape(-1, 5, 4, WIDTH // 4), (1, 3)),
    "the length": lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True),
    "epsilon outside the root": by_std,
    "an unbiased variance": lambda x: (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True, ddof=1),
    "a norm of one value by another's": lambda x: (x - jnp.sort(x).mean(-1, keepdims=True)) * x.std(-1, keepdims=True),
}


@pytest.mark.parametrize("fun", NO_MATCH.values(), ids=NO_MATCH)
def test_what_only_looks_like_them(fun):
    graph = simplified(lambda params, x: fun(x), tolerance=1e-4)
    assert not {"softmax", "layer_norm"} & set(ops(graph))


@pytest.mark.parametrize("shape", [(4, WIDTH), (4, 5, 5), (5, 5, 5, 5)])
def test_rows_of_any_rank(shape):
    graph = simplified(lambda params, x: jax.nn.softmax(plain()(x)), {}, images(*shape))
    assert ops(graph) == ["layer_norm", "softmax"]


@pytest.mark.parametrize(("function", "op"), [(jax.nn.softmax, "softmax"), (jax.nn.standardize, "layer_norm")])
def test_a_transpose_before_them_moves_behind(function, op):
    """As `vmap` makes it of attention, whose maximum it takes before its transpose."""
    for fun in (lambda params, x: function(x.transpose(1, 0, 2)), lambda params, x: jax.vmap(function, 1)(x)):
        assert ops(simplified(fun, tolerance=1e-5)) == [op, "transpose"]


def test_group_norm_stays():
    model = nn.GroupNorm(4)
    assert "layer_norm" not in ops(simplified(model.apply, variables(model, X), tolerance=1e-4))


def test_what_others_read_too_stays():
    def fun(params, x):
        mean = x.mean(-1, keepdims=True)
        e = jnp.exp(x - x.max(-1, keepdims=True))
        return (x - mean) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5), mean, e / e.sum(-1, keepdims=True), e

    graph = simplified(fun, tolerance=1e-5)
    assert [node.op for node in graph.outputs[::2]] == ["layer_norm", "softmax"]
    assert {"layer_norm", "softmax"}.isdisjoint(node.op for node in graph.outputs[1::2])


def test_scale_and_bias_stay_where_two_layers_read_them():
    def fun(params, x):
        y = haiku(params, x)
        return y @ params["w"], y @ params["w"][:, ::-1]

    graph = simplified(fun, tolerance=1e-5)
    (node,) = (node for node in graph.nodes if node.op == "layer_norm")
    assert node.roles == ("x", "scale", "bias")


def test_an_activation_stands_behind_the_norm():
    graph = simplified(lambda params, x: nn.relu(haiku(params, x)), tolerance=1e-5)
    assert ops(graph) == ["layer_norm", "affine"]
    assert [node.roles for node in graph.nodes if node.op == "affine"] == [("x",)]


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(("dtype", "lsb"), [(jnp.bfloat16, 2**-8), (jnp.float16, 2**-11)])
@pytest.mark.parametrize("layer", ["softmax", "layer_norm"])
def test_half_precision(dtype, lsb, layer):
    """The node computes in float32, and so it reads and gives the half-precision values themselves."""
    model = nn.LayerNorm(dtype=dtype)
    fun = (lambda params, x: nn.softmax(x)) if layer == "softmax" else model.apply
    params = {} if layer == "softmax" else variables(model, X.astype(dtype))
    graph = simplified(fun, params, X.astype(dtype), tolerance=8 * lsb)
    assert ops(graph) == [layer]
    assert {graph.inputs[0].aval.dtype, graph.outputs[0].aval.dtype} == {np.dtype(dtype)}


def test_what_is_rounded_to_a_coarser_dtype_inside_is_no_part_of_it():
    graph = simplified(lambda params, x: exp_sum(x.astype(jnp.bfloat16)).astype(jnp.float32), {}, X, 0.05)
    (node,) = (node for node in graph.nodes if node.op == "softmax")
    assert (node.inputs[0].aval.dtype, node.aval.dtype) == (jnp.bfloat16, jnp.bfloat16)


def test_in_the_body_of_a_loop():
    def fun(params, x):
        return jax.lax.fori_loop(0, 3, lambda i, x: jax.nn.softmax(plain()(x)) * 2, x)

    graph = simplified(fun, {}, X, 1e-5)
    inside = [node.op for node in graph.all_nodes]
    assert (inside.count("layer_norm"), inside.count("softmax")) == (1, 1)


def attention(params, x):
    y = haiku(params, x)
    weights = jax.nn.softmax(y @ y.swapaxes(1, 2))
    return jnp.einsum("bqk,bkd->bqd", weights, x @ params["square"]) @ params["w"] + y @ params["w"]


def test_a_plan_with_them_is_saved(tmp_path):
    qmodel = jaxq.quantize(attention, PARAMS | {"square": images(WIDTH, WIDTH, seed=4) / 5}, [X])
    rows = {row.op: row for row in qmodel.summary().nodes}
    assert {(rows[op].precision, rows[op].reason) for op in ("softmax", "layer_norm")} == {
        ("float", "its rows are summed in float")
    }
    (softmax,) = (node for node in qmodel.plan.graph.nodes if node.op == "quantize" and node.inputs[0].op == "softmax")
    assert softmax.aval.dtype == np.uint8
    qmodel.save(tmp_path / "net.jaxq")
    np.testing.assert_array_equal(jaxq.load(tmp_path / "net.jaxq")(X), qmodel(X))


def test_a_norm_with_a_scale_of_another_size_is_no_graph():
    graph = simplified(SCALED["scale"][0])
    (node,) = graph.outputs
    wrong = node.with_operands({"x": node.operand("x"), "scale": graph.inputs[0]})
    with pytest.raises(ValueError, match="no float32 vector of its channels"):
        verify(type(graph)(graph.inputs, (wrong,)), "float")
