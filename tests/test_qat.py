"""Quantization-aware training: the function that is trained, and the plan of what was trained."""

from dataclasses import replace

import cheap
import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from jax import lax
from networks import images

import jaxq

MSE = jaxq.QuantConfig(method="mse")
INT4 = jaxq.QuantConfig(method="mse", weight_bits=4, weight_method="mse")


def moved(variables, size=0.05, seed=0):
    """As if trained: every array off by some 5 %, every scale by 3.5 %."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: (a + size * rng.normal(size=a.shape)).astype(np.float32), variables)


def differences(fake, variables, *args):
    """Those of the plan's results, in LSB: of an output that is a 127th of its largest value."""
    function = jax.tree.leaves(cheap.jit(fake)(variables, *args))
    plan = jax.tree.leaves(cheap.oracle(jaxq.quantize(fake, variables), *args))
    pairs = zip(function, plan, strict=True)
    return np.concatenate([np.ravel(np.abs(y - z)) / (np.max(np.abs(y)) / 127) for y, z in pairs])


class Block(nn.Module):
    """Attention and a gelu."""

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(y, y)
        return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))


class Branches(nn.Module):
    """A residual around a depthwise convolution, a concatenation, pools."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu6(networks.ConvNorm(8)(x))
        x = nn.relu(x + nn.Conv(8, (3, 3), feature_group_count=8)(x))
        x = jnp.concatenate([nn.relu(nn.Conv(4, (1, 1))(x)), nn.max_pool(x, (2, 2), (1, 1), "SAME")], -1)
        return nn.Dense(5)(x.mean((1, 2)))


class Camera(nn.Module):
    """Takes an image's bytes."""

    @nn.compact
    def __call__(self, x):
        x = (x.astype(jnp.float32) / 255 - 0.5) / 0.2
        x = nn.silu(nn.Conv(8, (3, 3), padding="VALID")(x))
        return nn.Dense(5)(nn.silu(nn.Conv(8, (3, 3))(x)).mean((1, 2)))


BYTES = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3)).astype(np.uint8)


def test_a_recipe_comes_before_training():
    def fun(params, x):
        return jax.nn.relu(x @ params["a"]) @ params["b"]

    params = {"a": images(16, 32), "b": images(32, 8, seed=1)}
    x = images(64, 16, seed=2) * np.logspace(-2, 1, 16).astype(np.float32)
    params["a"] /= np.logspace(-2, 1, 16).astype(np.float32)[:, None]
    config = jaxq.QuantConfig(method="mse", recipe="channels")
    fake = jaxq.fake_quantize(fun, params, [x], config=config)
    plan = jaxq.quantize(fun, params, [x], config=config)
    assert networks.decibels(plan(x), jaxq.quantize(fake, fake.variables)(x)) > 100


@pytest.mark.parametrize(
    ("model", "x", "config"),
    [
        pytest.param(networks.SmallCNN(), images(32, 12, 12, 3), INT4, marks=pytest.mark.slow),
        pytest.param(networks.MobileCNN(), images(32, 12, 12, 3), MSE, marks=pytest.mark.slow),
        (Branches(), images(32, 8, 8, 3), INT4),
        (Block(), images(16, 10, 8), MSE),
        (Camera(), BYTES, INT4),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_plan_gives_what_the_function_gives(model, x, config):
    """Sums are exact in the plan, and of float32 in the function: now and then a value is rounded the other way, which
    all results of that example show."""
    fake = jaxq.fake_quantize(model, networks.variables(model, x), [x], config=config)
    found = differences(fake, moved(fake.variables), x)
    assert np.max(found) <= 1
    assert np.mean(found < 0.001) > 0.8


PARAMS = {"a": images(6, 8), "b": images(8, 8, seed=1), "c": images(8, 5, seed=2), "bias": images(8, seed=3)}
X = images(64, 6, seed=4)


def network(params, x):
    y = jax.nn.relu(x @ params["a"] + params["bias"])
    return jax.nn.gelu(y @ params["b"]) @ params["c"]


@pytest.fixture(scope="module")
def calibration():
    return jaxq.calibrate(network, PARAMS, [X], config=MSE)


@pytest.fixture(scope="module")
def fake(calibration):
    return jaxq.fake_quantize(network, PARAMS, calibration, config=INT4)


def test_untrained_it_is_the_plan_of_quantize(calibration, fake):
    plan = jaxq.quantize(network, PARAMS, calibration=calibration, config=INT4)
    same = jaxq.quantize(fake, fake.variables)
    assert same.params.keys() == plan.params.keys()
    for name, array in plan.params.items():
        np.testing.assert_allclose(same.params[name], array, rtol=1e-6)
    assert [(row.name, row.fused) for row in same.summary().nodes] == [
        (row.name, row.fused) for row in plan.summary().nodes
    ]
    assert same.summary().methods == {"training": 4}
    np.testing.assert_allclose(fake(fake.variables, X), plan(X), atol=1e-5)


def test_training_makes_up_for_few_levels(standard_promotion):
    """In a user's loop; the rate falls to 0, as weights half-way between two levels swing between them."""
    params = {"a": images(8, 32) / 3, "b": images(32, 32, seed=1) / 6, "c": images(32, 5, seed=2), "bias": images(32)}
    x = images(256, 8)
    fake, exact = jaxq.fake_quantize(network, params, [x], config=INT4), network(params, x)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 200))

    def loss_of(variables):
        return jnp.mean((fake(variables, x) - exact) ** 2)

    @cheap.jit
    def step(variables, state):
        updates, state = optimizer.update(jax.grad(loss_of)(variables), state)
        return optax.apply_updates(variables, updates), state

    variables, state = fake.variables, optimizer.init(fake.variables)
    for _ in range(200):
        variables, state = step(variables, state)
    plan = jaxq.quantize(fake, variables)
    assert networks.decibels(exact, plan(x)) > networks.decibels(exact, fake(fake.variables, x)) + 3
    assert differences(fake, variables, x).max() <= 1
    for name, value in variables["params"].items():
        np.testing.assert_array_equal(plan.origin.graph.params[name], value)


@pytest.mark.parametrize(
    "config",
    [
        replace(INT4, weight_scales="tensor"),
        replace(INT4, activation_scales="token"),
        replace(INT4, weight_only=True, group_size=16),
        replace(MSE, rules=(jaxq.LayerRule("b", quantize=False), jaxq.LayerRule("c", weight_bits=4))),
    ],
)
def test_every_kind_of_scale(calibration, config):
    fake = jaxq.fake_quantize(network, PARAMS, calibration, config=config)
    variables = moved(fake.variables)
    assert differences(fake, variables, X).max() <= 1
    gradient = cheap.jit(jax.grad(lambda variables: jnp.sum(fake(variables, X) ** 2)))(variables)
    assert all(bool(jnp.all(jnp.isfinite(g)) and jnp.any(g != 0)) for g in jax.tree.leaves(gradient))


def test_a_scale_for_each_channel(fake):
    (name,) = (name for name, of in fake.choices.qtypes.items() if name == "a")
    qtypes = dict(fake.choices.qtypes)
    qtypes[name] = replace(qtypes[name], scale=qtypes[name].scale * np.linspace(0.3, 1, 8))
    by_channel = replace(fake, choices=replace(fake.choices, qtypes=qtypes))
    assert by_channel.variables["activation_scales"][name].shape == (8,)
    assert differences(by_channel, moved(by_channel.variables), X).max() <= 1


def test_bfloat16_between_the_layers():
    """Where XLA leaves roundings to bfloat16 out, as it may, float results differ by those."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3, 3), dtype=jnp.bfloat16)(x.astype(jnp.bfloat16)))
            y = nn.max_pool(jnp.pad(x, ((0, 0), (1, 0), (0, 1), (0, 0))), (2, 2), (1, 1))
            x = nn.relu(nn.Conv(8, (3, 3), dtype=jnp.bfloat16)(jnp.concatenate([x, y], -1)) + x)
            return nn.Conv(4, (1, 1), dtype=jnp.bfloat16)(x)

    model, x = Net(), images(8, 6, 6, 3)
    fake = jaxq.fake_quantize(model, networks.variables(model, x), [x], config=MSE)
    variables = moved(fake.variables)
    assert {a.dtype for a in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    assert fake(variables, x).dtype == jnp.bfloat16
    found = differences(fake, variables, x)
    assert np.max(found) <= 1
    assert np.mean(found == 0) > 0.8


def test_loops_have_derivatives_where_jax_has_them():
    def fun(params, x):
        def turn(y, _):
            hidden = jax.nn.relu(y @ params["b"])
            return jnp.tanh(hidden @ params["b"]), hidden

        _, hidden = lax.scan(turn, x @ params["a"], None, length=3)
        return hidden[-1] @ params["c"], hidden

    fake = jaxq.fake_quantize(fun, PARAMS, [X], config=MSE)
    variables = moved(fake.variables)
    assert differences(fake, variables, X).max() <= 1
    gradient = cheap.jit(jax.grad(lambda variables: jnp.sum(fake(variables, X)[0])))(variables)
    assert all(bool(jnp.any(g != 0)) for g in jax.tree.leaves(gradient))


def test_only_parameters_are_trained():
    """Not a mask, not the number that a mean divides by; an embedding, though."""

    def fun(params, x, indices):
        y = (x + params["table"][indices]) @ params["b"] + np.linspace(-1, 0, 8, dtype=np.float32)
        return (jnp.sort(y) * np.linspace(1, 2, 8, dtype=np.float32)).mean(0, keepdims=True) @ params["c"]

    params = {**PARAMS, "table": images(4, 8, seed=5)}
    fake = jaxq.fake_quantize(fun, params, [(images(6, 8), np.arange(6, dtype=np.int32) % 4)], config=MSE)
    assert fake.variables["params"].keys() == {"table", "b/weight", "b/bias", "c/weight"}


def test_gradients_are_those_of_the_formula():
    """Straight through where nothing is clipped; those of LSQ by the scales, in log2."""
    w, x, g = images(6, 5), images(7, 6, seed=1), images(7, 5, seed=2)
    fake = jaxq.fake_quantize(lambda params, x: x @ params["w"], {"w": w}, [x], config=MSE)
    variables = moved(fake.variables)
    variables = {**variables, **jax.tree.map(lambda a: a - 1, {k: variables[k] for k in variables if k != "params"})}
    gradient, by_x = jax.grad(lambda variables, x: jnp.sum(fake(variables, x) * g), (0, 1))(variables, x)

    def rounded(value, scale):
        v = value / scale
        q = np.clip(np.rint(v), -127, 127)
        inside = np.abs(v) <= 127
        return q * scale, inside.astype(np.float32), np.log(2) * scale * np.where(inside, q - v, q)

    ((name, of),) = fake.choices.qtypes.items()
    x_hat, x_inside, by_scale_x = rounded(x, of.scale * 2 ** float(variables["activation_scales"][name]))
    weight = np.asarray(variables["params"]["w/weight"])  # (N, K)
    first = np.abs(w).max(0) / 127
    w_hat, w_inside, by_scale_w = rounded(weight, (first * 2 ** variables["weight_scales"]["w"])[:, None])
    assert 0 < x_inside.mean() < 1 and 0 < w_inside.mean() < 1
    np.testing.assert_allclose(by_x, (g @ w_hat) * x_inside, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradient["params"]["w/weight"], (g.T @ x_hat) * w_inside, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradient["activation_scales"][name], np.sum((g @ w_hat) * by_scale_x), rtol=1e-3)
    expected = np.sum((g.T @ x_hat) * by_scale_w, 1)
    np.testing.assert_allclose(gradient["weight_scales"]["w"], expected, rtol=1e-3, atol=1e-3)


def test_every_transform(fake):
    variables = moved(fake.variables)
    expected = fake(variables, X)
    one_by_one = jax.vmap(fake, (None, 0))(variables, X)
    np.testing.assert_allclose(one_by_one, expected, atol=2e-5)
    static = jax.jit(lambda function, *args: function(*args), static_argnums=0)
    np.testing.assert_allclose(static(fake, variables, X), expected, atol=2e-5)
    np.testing.assert_allclose(fake(variables, X[0]), expected[0], atol=2e-5)
    traced = []

    @jax.jit
    def loss_of(variables, x):
        traced.append(x)
        return jnp.sum(jax.checkpoint(fake)(variables, x))

    for _ in range(2):
        jax.block_until_ready(jax.value_and_grad(loss_of)(variables, X))
    assert len(traced) == 1


def test_its_first_call_may_be_inside_a_transform(fake):
    """As of variables that were saved."""
    fresh = replace(fake)
    variables = moved(fake.variables)
    expected = fake(variables, X)
    np.testing.assert_allclose(jax.jit(fresh)(variables, X), expected, atol=2e-5)
    np.testing.assert_allclose(fresh(variables, X), expected, atol=2e-5)
    assert jax.tree.all(jax.tree.map(np.array_equal, fresh.variables, fake.variables))


def test_an_nnx_module():
    module = networks.nnx_module(networks.NnxCNN)
    x = images(4, 6, 6, 3)
    fake = jaxq.fake_quantize(module, [x], config=MSE)
    assert differences(fake, moved(fake.variables), x).max() <= 1


def test_what_it_does_not_take(fake, calibration):
    def without(part, name):
        return {**fake.variables, part: {key: a for key, a in fake.variables[part].items() if key != name}}

    def changed(part, name, value):
        return {**fake.variables, part: {**fake.variables[part], name: value}}

    for take in (lambda variables: fake(variables, X), lambda variables: jaxq.quantize(fake, variables)):
        with pytest.raises(jaxq.PlanError, match="'params/a/weight' is missing"):
            take(without("params", "a/weight"))
        with pytest.raises(jaxq.PlanError, match=r"'weight_scales/a' has shape \(6,\), in fake.variables \(8,\)"):
            take(changed("weight_scales", "a", jnp.zeros(6)))
        with pytest.raises(jaxq.PlanError, match="'params/kernel' is none of fake.variables"):
            take(changed("params", "kernel", jnp.zeros(6)))
        with pytest.raises(jaxq.PlanError, match="'activation_scales/a' is missing"):
            take({})
    with pytest.raises(jaxq.PlanError, match=r"has shape \(64, 5\), the plan takes \('batch', 6\)"):
        fake(fake.variables, X[:, :5])
    with pytest.raises(jaxq.PlanError, match="holds <U1 values"):
        fake(fake.variables, "x")
    with pytest.raises(jaxq.CalibrationError, match="'params/a/bias' holds NaN or Inf: the training diverged"):
        jaxq.quantize(fake, changed("params", "a/bias", jnp.full(8, jnp.nan)))
    with pytest.raises(jaxq.CalibrationError, match="the scale of 'b' left the range of float32"):
        jaxq.quantize(fake, changed("weight_scales", "b", jnp.full(8, 200.0)))
    with pytest.raises(jaxq.UnsupportedError, match=r"quantize\(fake, trained\) takes nothing else"):
        jaxq.quantize(fake, fake.variables, calibration=calibration)
    with pytest.raises(jaxq.CalibrationError, match="is of another network or of other variables"):
        jaxq.fake_quantize(network, {**PARAMS, "c": PARAMS["c"] * 2}, calibration, config=MSE)
    model = networks.SmallCNN()
    x = images(2, 12, 12, 3)
    with pytest.raises(jaxq.TraceError, match="the model is in training mode"):
        jaxq.fake_quantize(model, networks.variables(model, x), [x], static_kwargs={"train": True})
