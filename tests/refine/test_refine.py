"""The steps of refinement, alone and in order: each on a network that has what it mends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import decibels, images

import jaxq
from jaxq.errors import CalibrationError, UnsupportedError
from jaxq.graph.evaluate import evaluate
from jaxq.refine import outliers, polish, recipe
from jaxq.refine.state import Samples, State

WIDTH, HIDDEN, EXAMPLES = 32, 64, 64


def dense(*shape, seed=0):
    return images(*shape, seed=seed) / np.sqrt(np.float32(shape[0]))


X = images(EXAMPLES, WIDTH)
NEW = images(EXAMPLES, WIDTH, seed=9)


def mlp(params, x):
    return jax.nn.gelu(x @ params["up"] + params["bias"]) @ params["down"]


MLP = {"up": dense(WIDTH, HIDDEN), "bias": dense(HIDDEN), "down": dense(HIDDEN, WIDTH, seed=1)}
# One hidden channel far above the others.
PEAKED = MLP | {"up": MLP["up"] * np.where(np.arange(HIDDEN) == 5, 30, 1).astype(np.float32)}


def spread(x):
    """The channels of x at very different sizes."""
    return x * np.logspace(-2, 1, WIDTH).astype(np.float32)


def quantized(params, x, **config):
    config = {"method": "mse"} | config
    return jaxq.quantize(mlp, params, [x], config=jaxq.QuantConfig(**config))


def sqnr(params, qmodel, x=X):
    return decibels(mlp(params, x), qmodel(x))


def gains(qmodel):
    return {gain.step: gain for gain in qmodel.summary().recipe}


def test_scales_by_channel(tmp_path, capsys):
    params = MLP | {"up": MLP["up"] / spread(np.ones(WIDTH, np.float32))[:, None]}
    plain, refined = (quantized(params, spread(X), recipe=steps) for steps in (None, "channels"))
    assert sqnr(params, refined, spread(NEW)) > sqnr(params, plain, spread(NEW)) + 10
    (gain,) = refined.summary().recipe
    assert gain.step == "channels" and gain.kept and gain.after < gain.before / 10
    assert f"recipe: {gain}" in capsys.readouterr().err
    assert f"recipe: {gain}" in str(refined.summary())
    (scale,) = (node.qtype.scale for node in refined.plan.graph.nodes if node.op == "quantize")
    assert scale.shape == (WIDTH,) and scale.max() > 100 * scale.min()

    refined.save(tmp_path / "net.jaxq")
    loaded = jaxq.load(tmp_path / "net.jaxq")
    np.testing.assert_array_equal(loaded(spread(NEW)), refined(spread(NEW)))
    assert loaded.summary().recipe == refined.summary().recipe


def test_scales_by_channel_by_rule():
    rules = (jaxq.LayerRule("^up$", activation_scales="channel"),)
    scales = {
        name: [np.ndim(node.qtype.scale) for node in qmodel.plan.graph.nodes if node.op == "quantize"]
        for name, qmodel in (
            ("rule", quantized(MLP, X, rules=rules)),
            ("all", quantized(MLP, X, activation_scales="channel")),
            ("none", quantized(MLP, spread(X), activation_scales="tensor", recipe="channels")),
        )
    }
    assert scales == {"rule": [1], "all": [1], "none": [0]}


def test_outliers_apart():
    plain, refined = (quantized(PEAKED, X, recipe=steps) for steps in (None, "outliers"))
    assert gains(refined)["outliers"].kept
    assert sqnr(PEAKED, refined) > sqnr(PEAKED, plain) + 3
    names = {row.name: row.precision for row in refined.summary().nodes if "outliers" in row.name}
    assert len(names) >= 2 and set(names.values()) == {"int8"}
    assert jaxq.sensitivity(refined, [X]).num_examples > 0


def test_outliers_apart_are_the_same_function():
    origin = quantized(PEAKED, X).origin
    state = State(origin.graph, origin.placement, origin.choices, origin.config)
    split = outliers.refine(state, Samples.split(origin.graph, [X]))
    assert split.graph is not origin.graph
    before, after = (
        np.asarray(evaluate(graph.bind(EXAMPLES), jax.tree.map(jnp.asarray, graph.params), [NEW])[0])
        for graph in (origin.graph, split.graph)
    )
    np.testing.assert_allclose(after, before, rtol=0, atol=4e-7 * np.abs(before).max())


def test_no_outliers_apart_where_there_are_none():
    assert not gains(quantized(MLP, X, recipe="outliers"))["outliers"].kept


def test_biases_take_the_mean_error_away():
    def fun(params, x):
        return jax.nn.relu(x) @ params["down"]

    params = {"down": dense(WIDTH, WIDTH)}
    plain, refined = (
        jaxq.quantize(fun, params, [X], config=jaxq.QuantConfig(method="amax", weight_bits=4, recipe=steps))
        for steps in (None, "biases")
    )
    assert gains(refined)["biases"].kept
    before, after = (np.abs(np.mean(qmodel(X) - fun(params, X), axis=0)).max() for qmodel in (plain, refined))
    assert after < before / 2
    assert decibels(fun(params, NEW), refined(NEW)) > decibels(fun(params, NEW), plain(NEW))


def test_weights_are_clipped_where_that_is_better():
    params = MLP | {"down": np.where(np.arange(HIDDEN)[:, None] == 3, 3 * MLP["down"], MLP["down"])}
    plain, refined = (quantized(params, X, weight_bits=4, recipe=steps) for steps in (None, "weights"))
    assert gains(refined)["weights"].kept
    assert sqnr(params, refined) > sqnr(params, plain)


def test_polish(tmp_path):
    """The report and the file tell what it brought each layer."""
    pytest.importorskip("optax")
    x = images(EXAMPLES, 4) @ dense(4, WIDTH)  # the roundings of what moves together can make up for one another
    nearest, polished = (quantized(MLP, x, weight_bits=4, recipe=steps) for steps in (None, ("polish",)))
    gain = gains(polished)["polish"]
    assert gain.kept and gain.layers.keys() == {"up", "down"}
    assert all(after <= before for before, after in gain.layers.values())
    assert any(after < before for before, after in gain.layers.values())
    assert sqnr(MLP, polished, x) > sqnr(MLP, nearest, x) + 1
    assert all(line in str(polished.summary()) for line in gain.lines())
    polished.save(tmp_path / "polished.jaxq")
    assert jaxq.load(tmp_path / "polished.jaxq").summary().recipe == polished.summary().recipe


def test_the_recipe_takes_what_helps_and_leaves_what_does_not(monkeypatch, capsys):
    def worse(state, samples):
        dots = [node for node in state.simulated.nodes if node.op == "dot"]
        return state.choose(biases={node.name: np.full(node.aval.shape[-1], 5.0) for node in dots})

    monkeypatch.setitem(recipe._STEPS, "biases", worse)
    qmodel = quantized(PEAKED, X, recipe="auto")
    found = gains(qmodel)
    assert list(found) == list(jaxq.QuantConfig(recipe="auto").steps)
    assert found["outliers"].kept and not found["biases"].kept
    assert "not kept" in capsys.readouterr().err
    assert sqnr(PEAKED, qmodel) > 25


@pytest.mark.parametrize(("step", "again"), [("weights", 1), ("polish", 0)])
def test_biases_are_corrected_again_but_where_a_step_fits_the_means(monkeypatch, step, again):
    calls = []
    monkeypatch.setattr(recipe.biases, "refine", lambda state, samples: calls.append(step) or state)
    monkeypatch.setattr(recipe, "_WORTH", np.inf)
    monkeypatch.setattr(polish, "_STEPS", 1)
    quantized(MLP, X, recipe=("biases", step))
    assert len(calls) == again


def test_with_layers_in_float():
    def metric(predict):
        return decibels(mlp(PEAKED, NEW), np.asarray(predict(NEW)) + np.float32(1e-3))

    config = jaxq.QuantConfig(method="mse", recipe="auto")
    qmodel = jaxq.quantize(mlp, PEAKED, [X], config=config, max_drop=15.0, metric=metric)
    assert qmodel.summary().accuracy.layers
    assert sqnr(PEAKED, qmodel) > sqnr(PEAKED, quantized(PEAKED, X, recipe="auto"))


def test_a_calibration_without_examples(tmp_path):
    config = jaxq.QuantConfig(method="mse", recipe="auto")
    calibration = jaxq.calibrate(mlp, MLP, [X], config=config)
    assert gains(jaxq.quantize(mlp, MLP, calibration=calibration, config=config))
    calibration.save(tmp_path / "net.calibration")
    loaded = jaxq.Calibration.load(tmp_path / "net.calibration")
    with pytest.raises(CalibrationError, match=r"recipe: this calibration keeps no examples.*hand in batches"):
        jaxq.quantize(mlp, MLP, calibration=loaded, config=config)


def test_a_function_without_floats():
    def classes(params, x):
        return mlp(params, x).argmax(-1)

    config = jaxq.QuantConfig(method="mse", recipe="auto")
    with pytest.raises(UnsupportedError, match="recipe: the function returns no floats"):
        jaxq.quantize(classes, MLP, [X], config=config)
    by_token = jaxq.quantize(classes, MLP, [X], config=jaxq.QuantConfig(method="mse", activation_scales="token"))
    assert np.mean(by_token(NEW) == classes(MLP, NEW)) > 0.9


@pytest.mark.parametrize("wrong", ["best", ("auto",), ("channels", "x"), 3])
def test_recipes_that_are_none(wrong):
    with pytest.raises(UnsupportedError, match="QuantConfig: recipe="):
        jaxq.QuantConfig(recipe=wrong)
