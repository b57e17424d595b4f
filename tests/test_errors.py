"""What a user can do wrong: each mistake is a JaxqError that names the layer or the argument and says the mend."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from flax import nnx
from networks import images, mlp, mlp_params, variables

import jaxq

X = images(4, 8, 8, 3)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


MODEL = Net()
VARIABLES = variables(MODEL, X)
PARAMS = mlp_params(6, 5, 2)


def nan_at(batch):
    bad = images(4, 8, 8, 3, seed=batch)
    bad[1, 2, 3, 0] = np.nan
    return bad


def infinite_layer(params, x):
    return (1.0 / (x - x)) @ params["w"]


@pytest.mark.parametrize("run", [jaxq.calibrate, jaxq.quantize])
def test_inside_of_jit(run):
    with pytest.raises(jaxq.UnsupportedError, match="inside jax.jit.*outside"):
        jax.jit(lambda y: run(mlp, PARAMS, [images(4, 6)]) and y)(1.0)


BAD_BATCHES = [
    (iter([]), jaxq.CalibrationError, "empty"),
    (X, jaxq.CalibrationError, r"not a ndarray.*\[batch\]"),
    ({"x": X}, jaxq.CalibrationError, "not a dict"),
    (None, jaxq.CalibrationError, "batches: missing"),
    (3, jaxq.CalibrationError, "not a int"),
    ("images", jaxq.CalibrationError, "not a str"),
    ([["a", "b"]], jaxq.CalibrationError, "batch 0.*not an array"),
    ([(X, X, X)], jaxq.TraceError, r"makes it fun\(params, float32\[4, 8, 8, 3\], float32"),
    ([{"a": X}], jaxq.TraceError, "tracing the function failed"),
    ([X, (X, X)], jaxq.CalibrationError, r"batch 1: is \(\*, \*\), batch 0 was \(\*,\)"),
    ([X, X[:, :4]], jaxq.CalibrationError, r"batch 1, argument 0: has shape \(4, 4, 8, 3\)"),
    ([X, X.astype(np.float16)], jaxq.CalibrationError, "batch 1.*dtype float16"),
    ([X, nan_at(1)], jaxq.CalibrationError, "batch 1, argument 0: 1 of its 768 values are NaN"),
    ([np.full_like(X, np.inf)], jaxq.CalibrationError, "batch 0, argument 0: 768"),
    ([X, np.full(X.shape, 1e39)], jaxq.CalibrationError, "batch 1, argument 0: 768.*NaN or Inf in float32"),
    ([X[:0]], jaxq.CalibrationError, "no batch held an example"),
]


@pytest.mark.parametrize(("batches", "error", "message"), BAD_BATCHES)
def test_batches(batches, error, message):
    with pytest.raises(error, match=message):
        jaxq.quantize(MODEL, VARIABLES, batches)


def without(tree, *path):
    *outer, last = path
    copy = jax.tree.map(lambda leaf: leaf, tree)
    inner = functools.reduce(lambda part, key: part[key], outer, copy)
    del inner[last]
    return copy


def with_kernel(shape):
    copy = jax.tree.map(lambda leaf: leaf, VARIABLES)
    copy["params"]["head"]["kernel"] = np.zeros(shape, np.float32)
    return copy


BAD_MODELS = [
    (MODEL, VARIABLES["params"], {}, jaxq.TraceError, "a collection is missing"),
    (MODEL, without(VARIABLES, "batch_stats"), {}, jaxq.TraceError, "a collection is missing"),
    (MODEL, without(VARIABLES, "params", "head", "kernel"), {}, jaxq.TraceError, "parameter is missing.*head"),
    (MODEL, with_kernel((9, 3)), {}, jaxq.TraceError, "another shape.*head"),
    (MODEL, with_kernel((4, 3)) | {"bad": np.float32("nan")}, {}, jaxq.CalibrationError, "variables: 'bad' holds NaN"),
    (MODEL, VARIABLES | {"bad": "text"}, {}, jaxq.UnsupportedError, "variables: 'bad' is a str"),
    (MODEL, None, {}, jaxq.UnsupportedError, "collections that model.init returned"),
    (MODEL, [X], {}, jaxq.UnsupportedError, "collections that model.init returned, .*not a list"),
    (Net, VARIABLES, {}, jaxq.UnsupportedError, r"Net is a class; hand in an instance"),
    ("model", VARIABLES, {}, jaxq.UnsupportedError, "not a str"),
    (mlp, None, {}, jaxq.UnsupportedError, "variables: missing"),
    (MODEL, VARIABLES, {"train": True}, jaxq.TraceError, "training mode.*train"),
    (MODEL, VARIABLES, {"nonsense": True}, jaxq.TraceError, "nonsense"),
]


@pytest.mark.parametrize(("model", "v", "kwargs", "error", "message"), BAD_MODELS)
def test_models(model, v, kwargs, error, message):
    with pytest.raises(error, match=message):
        jaxq.quantize(model, v, [X], static_kwargs=kwargs)


def test_batch_statistics_in_the_trace():
    fun = functools.partial(MODEL.apply, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
    with pytest.raises(jaxq.TraceError, match="Dropout_0.*draws random numbers"):
        jaxq.quantize(fun, VARIABLES, [X])

    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=False)(nn.Conv(4, (3, 3))(x))

    fun = functools.partial(Norm().apply, mutable=["batch_stats"])
    with pytest.raises(jaxq.TraceError, match="Norm/BatchNorm_0.*statistics over the batch.*use_running_average"):
        jaxq.quantize(fun, variables(Norm(), X), [X])


def test_nnx_in_training_mode():
    model = networks.nnx_module(networks.NnxCNN)
    model.train()
    with pytest.raises(jaxq.TraceError, match=r"(norm|dropout).*model\.eval\(\)"):
        jaxq.quantize(model, [X])


def test_nnx_takes_its_batches_second():
    model = networks.nnx_module(networks.NnxCNN)
    state = nnx.state(model)
    with pytest.raises(jaxq.CalibrationError, match="not a State"):
        jaxq.quantize(model, state)
    with pytest.raises(jaxq.CalibrationError, match="its second argument is the batches"):
        jaxq.quantize(model, state, [X])


def test_nothing_to_quantize():
    with pytest.raises(jaxq.UnsupportedError, match="nothing to quantize"):
        jaxq.quantize(lambda params, x: jnp.tanh(x), {}, [X])
    config = jaxq.QuantConfig(rules=(jaxq.LayerRule(".*", quantize=False),))
    with pytest.raises(jaxq.UnsupportedError, match=r"nothing to quantize.*rule '\.\*'"):
        jaxq.quantize(mlp, PARAMS, [images(4, 6)], config=config)


def test_an_output_that_is_nan():
    with pytest.raises(jaxq.CalibrationError, match="batch 1: layer 'log' makes NaN; the batch itself holds neither"):
        params = {"w": np.eye(3, dtype=np.float32)}
        jaxq.quantize(lambda p, x: jnp.log(x @ p["w"]), params, [np.abs(images(4, 3)), -np.abs(images(4, 3))])


def test_saving_where_nothing_can_be_written(tmp_path):
    qmodel = jaxq.quantize(mlp, PARAMS, [images(4, 6)])
    with pytest.raises(jaxq.PlanError, match="cannot be written"):
        qmodel.save(tmp_path / "missing" / "net.jaxq")
    with pytest.raises(jaxq.PlanError, match="cannot be written"):
        qmodel.save(tmp_path)


def test_a_layer_that_makes_nan():
    with pytest.raises(jaxq.CalibrationError, match="batch 0: layer 'div' makes Inf; the batch itself holds neither"):
        jaxq.quantize(infinite_layer, {"w": images(3, 2)}, [images(4, 3)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jaxq.QuantConfig(method="kl"), "method='kl'"),
        (lambda: jaxq.LayerRule("a", method="kl"), "method='kl'"),
        (lambda: jaxq.LayerRule("("), "not a regular expression"),
        (lambda: jaxq.LayerRule("a", quantize="no"), "quantize='no' is neither True nor False"),
        (lambda: jaxq.LayerRule(None), "not a regular expression"),
        (lambda: jaxq.quantize(mlp, PARAMS, [images(4, 6)], config="entropy"), r"QuantConfig\(method='entropy'\)"),
        (lambda: jaxq.QuantConfig(rules=jaxq.LayerRule("a")), "takes a tuple of LayerRule objects"),
        (lambda: jaxq.QuantConfig(rules=("head",)), "takes a tuple of LayerRule objects"),
        (lambda: jaxq.QuantConfig(percentile=0), "percentile=0"),
    ],
)
def test_config(make, message):
    with pytest.raises(jaxq.UnsupportedError, match=message):
        make()


def test_calls():
    qmodel = jaxq.quantize(mlp, PARAMS, [images(4, 6)])
    with pytest.raises(jaxq.PlanError, match=r"are \(\*, \*\), the plan takes \(\*,\)"):
        qmodel(images(4, 6), images(4, 6))
    with pytest.raises(jaxq.PlanError, match="params: '0/weight' is missing"):
        qmodel.apply({}, images(4, 6))
    with pytest.raises(jaxq.PlanError, match=r"params: '0/weight' is float32\[1\], the plan takes int8\[5, 6\]"):
        qmodel.apply(qmodel.params | {"0/weight": np.zeros(1)}, images(4, 6))
    with pytest.raises(jaxq.PlanError, match="holds .* values, not numbers"):
        qmodel(np.array(["a"]))
    with pytest.raises(jaxq.PlanError, match="dtype complex64"):
        qmodel(images(4, 6).astype(np.complex64))
    with pytest.raises(jaxq.PlanError, match=r"'input' has shape \(4, 7\), the plan takes \('batch', 6\)"):
        qmodel(images(4, 7))
