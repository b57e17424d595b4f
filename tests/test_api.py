import functools
from types import SimpleNamespace

import cheap
import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from networks import decibels, images, mlp, mlp_params, variables

import jaxq
from jaxq.backends import xla

X = images(8, 12, 12, 3)
BATCHES = [X, images(5, 12, 12, 3, seed=1)]


@pytest.fixture(scope="module")
def block():
    """A residual block, quantized: as small as a network with several scales is."""
    model = networks.Residual(4)
    v = variables(model, X)
    return SimpleNamespace(model=model, variables=v, qmodel=jaxq.quantize(model, v, iter(BATCHES)))


def check(qmodel, exact, x, *, at_least=25.0):
    """Right, equal to the oracle, and the same at another batch size."""
    y = qmodel(x)
    assert decibels(exact, y) > at_least
    np.testing.assert_array_equal(y, cheap.oracle(qmodel, x))
    np.testing.assert_array_equal(y[:3], qmodel(x[:3]))


def check_transforms(qmodel, x):
    """The same under every transformation."""
    y = qmodel(x)
    np.testing.assert_array_equal(y, jax.jit(qmodel)(x))
    np.testing.assert_array_equal(y, qmodel.apply(qmodel.params, x))
    np.testing.assert_array_equal(y, jax.vmap(qmodel)(x))
    np.testing.assert_array_equal(y, jax.vmap(qmodel)(x[:, None])[:, 0])


def test_linen_module(small_cnn):
    check(small_cnn.qmodel, cheap.jit(small_cnn.model.apply)(small_cnn.variables, X), X)
    check_transforms(small_cnn.qmodel, X)


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: functools.partial(f, train=False), jax.jit])
def test_functions_of_parameters(block, wrap):
    fun = wrap(block.model.apply)
    np.testing.assert_array_equal(jaxq.quantize(fun, block.variables, iter(BATCHES))(X), block.qmodel(X))


def test_static_kwargs(block):
    again = jaxq.quantize(block.model, block.variables, BATCHES, static_kwargs={"train": False})
    np.testing.assert_array_equal(again(X), block.qmodel(X))


def test_nnx_module():
    model = networks.nnx_module(networks.NnxCNN)
    qmodel = jaxq.quantize(model, iter(BATCHES))
    check(qmodel, cheap.jit(model.__call__)(X), X)
    names = [row.name for row in qmodel.summary().nodes if row.op in ("conv", "dot")]
    assert names == ["stem", "blocks/0", "blocks/1", "head"]


def test_plain_function():
    params = mlp_params(20, 32, 7)
    x = images(16, 20)
    qmodel = jaxq.quantize(mlp, params, [x, images(3, 20, seed=1)])
    check(qmodel, cheap.jit(mlp)(params, x), x)
    check_transforms(qmodel, x)
    assert [row.name for row in qmodel.summary().nodes if row.op == "dot"] == ["0", "1"]


def test_depthwise_network():
    model = networks.MobileCNN()
    v = variables(model, X)
    qmodel = jaxq.quantize(model, v, BATCHES)
    check(qmodel, cheap.jit(model.apply)(v, X), X)
    np.testing.assert_array_equal(qmodel(X), jax.vmap(qmodel)(X))


def test_order_of_the_batches_does_not_matter(block):
    again = jaxq.quantize(block.model, block.variables, BATCHES[::-1])
    scales = [{row.name: row.scale for row in q.summary().nodes} for q in (again, block.qmodel)]
    assert scales[0] == scales[1]


def test_int8_flows_from_conv_to_conv(small_cnn):
    qmodel = small_cnn.qmodel
    by_xla = jax.make_jaxpr(lambda x: qmodel.plan.evaluate(qmodel.params, (x,), xla.lower))(X)
    eqns = list(networks.equations(by_xla.jaxpr))
    convs = [eqn for eqn in eqns if eqn.primitive.name == "conv_general_dilated"]
    assert len(convs) >= 8
    for eqn in convs:
        assert {var.aval.dtype.name for var in eqn.invars} == {"int8"}
        assert eqn.outvars[0].aval.dtype == jnp.int32
    ops = [row.op for row in qmodel.summary().nodes]
    assert (ops.count("quantize"), ops.count("dequantize")) == (1, 0)
    assert not any(eqn.primitive.name == "dot_general" and eqn.invars[0].aval.dtype == jnp.float32 for eqn in eqns)


def test_tuple_and_dict_items():
    def two(params, image, scale):
        return nn.Dense(4).apply({"params": params}, image) * scale

    params = variables(nn.Dense(4), images(1, 6))["params"]
    x, scale = images(8, 6), images(8, 1, seed=1)
    qmodel = jaxq.quantize(two, params, [(x, scale)])
    exact = cheap.jit(two)(params, x, scale)
    assert decibels(exact, qmodel(x, scale)) > 25
    assert qmodel(x[:3], scale[:3]).shape == (3, 4)

    def keyed(params, batch):
        return {"y": two(params, batch["image"], batch["scale"]), "raw": batch["image"]}

    qmodel = jaxq.quantize(keyed, params, [{"image": x, "scale": scale}])
    result = qmodel({"image": x, "scale": scale})
    assert decibels(exact, result["y"]) > 25
    np.testing.assert_array_equal(result["raw"], x)


def test_is_a_pytree_hashed_by_identity(small_cnn):
    qmodel = small_cnn.qmodel
    leaves, tree = jax.tree.flatten(qmodel)
    assert isinstance(hash(tree), int)
    assert {leaf.dtype.name for leaf in leaves} == {"int8", "float32"}
    np.testing.assert_array_equal(jax.tree.unflatten(tree, leaves)(X), qmodel(X))
    assert qmodel != jax.tree.map(lambda leaf: leaf, qmodel)
    passed = jax.jit(lambda q, x: q(x))(qmodel, X)
    np.testing.assert_array_equal(passed, qmodel(X))


def test_weights_are_an_argument(small_cnn):
    qmodel = small_cnn.qmodel
    silent = jax.tree.map(np.zeros_like, qmodel.params)
    assert not np.any(qmodel.apply(silent, X))


def test_derivatives_raise(small_cnn):
    qmodel = small_cnn.qmodel
    with pytest.raises(jaxq.JaxqError, match="no derivative"):
        jax.grad(lambda x: qmodel(x).sum())(X)


def test_a_function_with_a_fixed_batch_says_so():
    def fixed(params, x):
        return (x @ params["w"]).reshape(4, 2, 3)

    x = images(8, 5)
    qmodel = jaxq.quantize(fixed, {"w": images(5, 3, seed=1)}, [x])
    assert qmodel(x).shape == (4, 2, 3)
    assert "fixed" in str(qmodel.summary())
    with pytest.raises(jaxq.PlanError, match="fixed"):
        qmodel(x[:4])


def test_rules(small_cnn):
    model, v = small_cnn.model, small_cnn.variables
    rules = (
        jaxq.LayerRule("head", quantize=False),
        jaxq.LayerRule("Residual_0/.*_0/Conv", method="amax"),
        jaxq.LayerRule("nowhere"),
    )
    with pytest.warns(UserWarning, match="nowhere"):
        qmodel = jaxq.quantize(model, v, BATCHES, config=jaxq.QuantConfig(method="mse", rules=rules))
    (head,) = [row for row in qmodel.summary().nodes if row.name.endswith("head")]
    assert (head.precision, head.reason) == ("float", "rule 'head'")
    assert decibels(cheap.jit(model.apply)(v, X), qmodel(X)) > 25
    assert qmodel.summary().methods == {"mse": 8, "amax": 1}


@pytest.mark.parametrize("method", ["auto", "entropy", "mse", "percentile", "amax"])
def test_methods(method):
    params = mlp_params(20, 32, 7)
    x = images(64, 20)
    qmodel = jaxq.quantize(mlp, params, [x], config=jaxq.QuantConfig(method=method))
    assert decibels(cheap.jit(mlp)(params, x), qmodel(x)) > 20


@pytest.mark.usefixtures("standard_promotion")  # flax's BatchNorm mixes dtypes
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_models(dtype):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3, 3), dtype=dtype)(x))
            x = nn.BatchNorm(use_running_average=True, dtype=dtype)(nn.Conv(8, (3, 3), dtype=dtype)(x))
            return nn.Dense(5, dtype=dtype)(x.mean((1, 2)))

    v = variables(Net(), X)
    qmodel = jaxq.quantize(Net(), v, BATCHES)
    exact = np.asarray(cheap.jit(Net().apply)(v, X))
    assert qmodel(X).dtype == exact.dtype == dtype
    assert decibels(exact, qmodel(X)) > 20
    assert all(row.precision == "int8" for row in qmodel.summary().nodes if row.macs)


def test_empty_batch(small_cnn):
    qmodel = small_cnn.qmodel
    assert qmodel(X[:0]).shape == (0, 10)


def test_values_of_multi_result_primitives_are_observed():
    def fun(params, x):
        top, _ = jax.lax.top_k(x, 4)
        carry, _ = jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, params["layers"])
        return (100 * jnp.split(x, 2, 1)[0]) @ params["w"] + top @ params["w"] + carry[:, :4] @ params["w"]

    x = images(16, 8)
    params = {"w": images(4, 4, seed=1), "layers": images(2, 8, 8, seed=2)}
    exact, calibration = cheap.jit(fun)(params, x), jaxq.calibrate(fun, params, [x])
    for method in ("auto", "amax"):
        qmodel = jaxq.quantize(fun, params, calibration=calibration, config=jaxq.QuantConfig(method=method))
        assert decibels(exact, qmodel(x)) > 30


def test_tied_weights_keep_their_names_apart():
    def fun(params, tokens):
        x = jnp.take(params["embed"]["weight"], tokens, axis=0, mode="clip")
        return x @ params["embed"]["weight"].T

    params = {"embed": {"weight": images(20, 8)}}
    tokens = np.arange(12, dtype=np.int32)
    qmodel = jaxq.quantize(fun, params, [tokens])
    assert decibels(cheap.jit(fun)(params, tokens), qmodel(tokens)) > 30


def test_one_example_is_taken_only_where_the_batch_can_be_taken_off_again():
    params = {"w": images(6, 4)}
    x = images(8, 3, 6)
    flat = jaxq.quantize(lambda p, x: (x @ p["w"]).reshape(-1, 4), params, [x])
    with pytest.raises(jaxq.PlanError, match="shape"):
        flat(x[0])
    turned = jaxq.quantize(lambda p, x: (x @ p["w"]).T, params, [x])
    with pytest.raises(jaxq.PlanError, match="shape"):
        turned(x[0])


def test_export_with_a_symbolic_batch(block):
    (batch,) = jax.export.symbolic_shape("b")
    spec = jax.ShapeDtypeStruct((batch, *X.shape[1:]), X.dtype)
    exported = jax.export.export(jax.jit(block.qmodel), platforms=("cpu",))(spec)
    np.testing.assert_array_equal(exported.call(X), block.qmodel(X))


def test_attention_projections_are_int8_with_their_biases():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.MultiHeadDotProductAttention(num_heads=2)(x)

    x = images(4, 5, 8)
    v = variables(Net(), x)
    qmodel = jaxq.quantize(Net(), v, [x])
    dots = [row for row in qmodel.summary().nodes if row.op == "dot" and row.precision == "int8"]
    assert [row.fused for row in dots] == [("bias", "requantize", "merged:3"), ("bias",)]
    assert decibels(cheap.jit(Net().apply)(v, x), qmodel(x)) > 25


def test_a_branch_on_the_batch_size_is_not_lost():
    def fun(params, x):
        return x @ params["w"] if x.shape[0] < 6 else (x @ params["w"]) * 2

    params, x = {"w": images(6, 4)}, images(8, 6)
    qmodel = jaxq.quantize(fun, params, [x])
    assert "fixed" in str(qmodel.summary())
    assert decibels(cheap.jit(fun)(params, x), qmodel(x)) > 30


def test_a_shared_first_argument():
    def fun(params, temperature, x):
        return (x @ params["w"]) / temperature

    params, x = {"w": images(6, 4)}, images(8, 6)
    qmodel = jaxq.quantize(fun, params, [(np.float32(2), x)])
    assert decibels(cheap.jit(fun)(params, 2, x), qmodel(np.float32(2), x)) > 30


def test_the_weights_keep_their_dtypes(small_cnn):
    halves = jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.bfloat16), small_cnn.qmodel.params)
    with pytest.raises(jaxq.PlanError, match="is bfloat16"):
        small_cnn.qmodel.apply(halves, X)
