"""A calibration in place of batches: the same plan bit for bit, no other network's, and resumed where it stopped."""

import cheap
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from networks import images, mlp, mlp_params

import jaxq
from jaxq.calibration import cache, observe
from jaxq.calibration.result import Calibration
from jaxq.config import METHODS

PARAMS = mlp_params(6, 5, 4)
BATCHES = [images(8, 6), images(8, 6, seed=1), images(3, 6, seed=2)]


@pytest.fixture(scope="module")
def small(small_cnn):
    """The small CNN's calibration, with its samples and loaded from a file."""
    return jaxq.calibrate(small_cnn.model, small_cnn.variables, iter(small_cnn.batches))


@pytest.fixture(scope="module")
def loaded(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("calibration") / "c"
    small.save(path)
    return Calibration.load(path)


@pytest.fixture(scope="module")
def plain():
    return jaxq.calibrate(mlp, PARAMS, BATCHES)


def assert_same_plan(ours, theirs, *args):
    assert ours.params.keys() == theirs.params.keys()
    for name, value in ours.params.items():
        assert value.dtype == theirs.params[name].dtype
        np.testing.assert_array_equal(value, theirs.params[name], err_msg=name)
    assert str(ours.summary()) == str(theirs.summary())
    if args:
        np.testing.assert_array_equal(ours(*args), theirs(*args))


def test_thresholds_of_every_method(plain):
    for method in METHODS:
        thresholds = plain.thresholds(method)
        assert list(thresholds) == ["input", "0"]
        assert all(0 < t <= float(plain.histograms[name].amax) for name, t in thresholds.items())
    assert plain.thresholds("amax")["input"] == np.abs(np.concatenate(BATCHES)).max()
    assert plain.thresholds("percentile", percentile=50)["input"] < plain.thresholds("percentile")["input"]
    assert plain.num_examples == 19


def test_errors_are_measured_of_all_that_reads_a_value():
    """A layer, the table of an activation, and what reads it in float; the value itself where it is a result, or where
    a loop reads it, whose error is not measured."""

    def fun(params, x):
        y = jax.nn.silu(x @ params["a"])
        z = y @ params["b"]
        total = jax.lax.fori_loop(0, 3, lambda i, total: total + jnp.sin(z), jnp.zeros_like(z))
        return jnp.exp(y.T), y, z @ params["c"], total

    params = {name: images(6, 6, seed=seed) for seed, name in enumerate("abc")}
    c = jaxq.calibrate(fun, params, BATCHES)
    readers = {name: {reader for by in thresholds.values() for reader in by} for name, thresholds in c.errors.items()}
    assert readers == {"input": {"a"}, "a": {"mul"}, "mul": {"b", "exp", "mul"}, "b": {"c", "b"}}
    assert all(0 <= error < 1 for by in c.errors.values() for errors in by.values() for error in errors.values())


def test_values_of_one_scale_have_one_threshold(small):
    amax = small.thresholds("amax")
    (concat,) = [tensor for tensor in small.tensors if len(tensor.sources) > 1]
    assert len(concat.sources) == 4
    assert {amax[name] for name in concat.sources} == {max(float(small.histograms[n].amax) for n in concat.sources)}


def test_bad_methods(plain):
    with pytest.raises(jaxq.UnsupportedError, match="method='median' is not known"):
        plain.thresholds("median")
    with pytest.raises(jaxq.UnsupportedError, match="percentile=0"):
        plain.thresholds("percentile", percentile=0)


def test_auto_needs_measured_errors():
    c = jaxq.calibrate(mlp, PARAMS, BATCHES, config=jaxq.QuantConfig(method="mse"))
    assert c.thresholds("mse")
    with pytest.raises(jaxq.CalibrationError, match="measured no errors.*calibrate with method='auto'"):
        c.thresholds("auto")
    with pytest.raises(jaxq.CalibrationError, match="measured no errors"):
        jaxq.quantize(mlp, PARAMS, calibration=c)


def test_linen(small_cnn, small, loaded):
    model, variables = small_cnn.model, small_cnn.variables
    assert_same_plan(jaxq.quantize(model, variables, calibration=small), small_cnn.qmodel)
    assert_same_plan(jaxq.quantize(model, variables, calibration=loaded), small_cnn.qmodel, small_cnn.x)


def test_nnx():
    model, x = networks.nnx_module(networks.NnxCNN), images(4, 6, 6, 3)
    config = jaxq.QuantConfig(method="mse")
    c = jaxq.calibrate(model, [x], config=config)
    expected = jaxq.quantize(model, [x], config=config)
    assert_same_plan(jaxq.quantize(model, calibration=c, config=config), expected, x)
    with pytest.raises(jaxq.CalibrationError, match="takes no batches beside a calibration"):
        jaxq.quantize(model, [x], calibration=c)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_without_data(plain, method):
    config = jaxq.QuantConfig(method=method)
    qmodel = jaxq.quantize(mlp, PARAMS, calibration=plain, config=config)
    assert_same_plan(qmodel, jaxq.quantize(mlp, PARAMS, BATCHES, config=config), BATCHES[0])


RULES = (
    jaxq.LayerRule("Inception_0/ConvNorm_[25]", quantize=False),
    jaxq.LayerRule("Inception_0/concatenate", quantize=False),
    jaxq.LayerRule("Residual_0/.*_0/Conv", method="amax"),
    jaxq.LayerRule("head", quantize=False),
)


def test_rules_after_the_calibration(small_cnn, loaded):
    model, variables = small_cnn.model, small_cnn.variables
    config = jaxq.QuantConfig(method="mse", rules=RULES)
    expected = jaxq.quantize(model, variables, small_cnn.batches, config=config)
    assert_same_plan(jaxq.quantize(model, variables, calibration=loaded, config=config), expected)


def two_readers(params, x):
    """The parts of a concatenation are of one scale, and two layers read it."""
    a, b = jnp.maximum(x @ params["a"], 0), x @ params["b"]
    joined = jnp.concatenate([a, b], -1).reshape(-1, 2, 4)
    return joined.reshape(-1, 8) @ params["c"] + joined.reshape(-1, 8) @ params["d"]


BRANCHES = {"a": images(6, 4), "b": images(6, 4, seed=1), "c": images(8, 3, seed=2), "d": 9 * images(8, 3, seed=3)}


@pytest.fixture(scope="module")
def branched():
    return jaxq.calibrate(two_readers, BRANCHES, BATCHES)


@pytest.mark.parametrize("layer", ["a", "d", "concatenate"])
def test_auto_with_rules_after_the_calibration(branched, tmp_path, layer):
    """The errors are kept by reader: without a sample, those that are left choose as if measured alone. Where a rule
    made another tensor, "auto" measures it on the samples, and without them says that it cannot."""
    config = jaxq.QuantConfig(rules=(jaxq.LayerRule(f"^{layer}", quantize=False),))
    expected = jaxq.quantize(two_readers, BRANCHES, BATCHES, config=config)
    assert_same_plan(jaxq.quantize(two_readers, BRANCHES, calibration=branched, config=config), expected, BATCHES[0])
    branched.save(tmp_path / "c")
    loaded = Calibration.load(tmp_path / "c")
    if layer == "d":
        assert_same_plan(jaxq.quantize(two_readers, BRANCHES, calibration=loaded, config=config), expected, BATCHES[0])
    else:
        with pytest.warns(UserWarning, match="no measured errors of 'reshape#2', 'reshape#3': 'mse' chose"):
            jaxq.quantize(two_readers, BRANCHES, calibration=loaded, config=config)


def test_another_percentile_is_measured_where_the_samples_are(plain):
    config = jaxq.QuantConfig(percentile=99)
    expected = jaxq.quantize(mlp, PARAMS, BATCHES, config=config)
    assert_same_plan(jaxq.quantize(mlp, PARAMS, calibration=plain, config=config), expected, BATCHES[0])


# ------------------------------------------------------------------------------------------------- another network


def wider(params, x):
    return mlp(params, x) * 2


def stale(message, model, params, calibration):
    with pytest.raises(jaxq.CalibrationError, match=message):
        jaxq.quantize(model, params, calibration=calibration)


def test_other_weights(plain):
    other = [(w.copy(), b) for w, b in PARAMS]
    other[1][0][2, 3] += 1e-6
    stale("of other variables: variable '1/0' differs; calibrate this one", mlp, other, plain)
    qmodel = jaxq.quantize(mlp, other, calibration=plain, allow_stale=True)
    assert networks.decibels(cheap.jit(mlp)(other, BATCHES[0]), qmodel(BATCHES[0])) > 30


def test_more_and_fewer_weights(plain):
    other = mlp_params(6, 5, 5, 4)
    stale("variable '1/0' differs.*variable '2/0' is new and 9 more", mlp, other, plain)


def test_another_layer(plain):
    stale(
        "network.*: layer '.outputs.' differs, layer 'max#2' is new",
        lambda p, x: jnp.maximum(mlp(p, x), 0),
        PARAMS,
        plain,
    )


def test_another_model(small):
    model, x = networks.MobileCNN(), images(8, 12, 12, 3)
    message = "variable 'params/ConvNorm_0/Conv_0/kernel' differs, .* and 339 more"
    stale(message, model, networks.variables(model, x), small)


def test_arguments_that_do_not_fit(plain):
    with pytest.raises(jaxq.CalibrationError, match="its batches do not fit this network.*float32"):
        jaxq.quantize(mlp, mlp_params(7, 4), calibration=plain)


def test_an_argument_of_another_shape():
    def fun(params, x):
        return x.reshape(x.shape[0], -1) @ params

    c = jaxq.calibrate(fun, images(12, 2), [images(8, 3, 4)])
    (node,) = [node for node, line in c.fingerprint.layers.items() if line.startswith("input")]
    assert c.fingerprint.layers[node].startswith("input float32[batch, 3, 4]")
    assert jaxq.calibrate(fun, images(12, 2), [images(8, 4, 3)]).fingerprint.differences(c.fingerprint) == [
        "layer 'input' differs"
    ]


def test_stale_thresholds_that_are_missing(plain):
    """What the other network has more cannot be forced."""
    other = mlp_params(6, 5, 5, 4)
    with pytest.raises(jaxq.CalibrationError, match="no histogram of '1'; calibrate this network"):
        jaxq.quantize(mlp, other, calibration=plain, allow_stale=True, config=jaxq.QuantConfig(method="mse"))


def test_batches_and_a_calibration(plain):
    with pytest.raises(jaxq.CalibrationError, match="takes no batches beside a calibration"):
        jaxq.quantize(mlp, PARAMS, BATCHES, calibration=plain)


def test_something_else_than_a_calibration(plain):
    for other in ("path/to/file", plain.thresholds(), Calibration):
        with pytest.raises(jaxq.CalibrationError, match="takes what jaxq.calibrate returned, not a"):
            jaxq.quantize(mlp, PARAMS, calibration=other)


# ------------------------------------------------------------------------------------------------------- checkpoints


def interrupted(batches, after, error=KeyboardInterrupt):
    yield from batches[:after]
    raise error


def assert_same_calibration(ours, theirs, tmp_path):
    ours.save(tmp_path / "ours")
    theirs.save(tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    for mine, other in zip(ours.statistics.samples, theirs.statistics.samples, strict=True):
        np.testing.assert_array_equal(mine, other)


MANY = [images(4, 6, seed=seed) * (seed + 1) for seed in range(9)]


@pytest.fixture(scope="module")
def uninterrupted():
    return jaxq.calibrate(mlp, PARAMS, MANY)


def test_an_interrupted_calibration_goes_on(uninterrupted, tmp_path):
    path = tmp_path / "checkpoint"
    for after in (1, 4, 7):
        with pytest.raises(KeyboardInterrupt):
            jaxq.calibrate(mlp, PARAMS, interrupted(MANY, after), checkpoint=path)
        assert cache.load_checkpoint(path)[0].num_examples == 4 * after
    c = jaxq.calibrate(mlp, PARAMS, MANY, checkpoint=path)
    assert c.num_examples == 36
    assert_same_calibration(c, uninterrupted, tmp_path)


def test_the_batches_that_are_left_are_enough(uninterrupted, tmp_path):
    path = tmp_path / "checkpoint"
    with pytest.raises(ValueError, match="disk"):
        jaxq.calibrate(mlp, PARAMS, interrupted(MANY, 6, ValueError("disk")), checkpoint=path)
    assert_same_calibration(jaxq.calibrate(mlp, PARAMS, MANY[6:], checkpoint=path), uninterrupted, tmp_path)


def test_a_finished_checkpoint_counts_nothing_twice(uninterrupted, tmp_path):
    path = tmp_path / "checkpoint"
    jaxq.calibrate(mlp, PARAMS, MANY, checkpoint=path)
    data = path.read_bytes()
    assert_same_calibration(jaxq.calibrate(mlp, PARAMS, MANY, checkpoint=path), uninterrupted, tmp_path)
    assert path.read_bytes() == data


def test_a_batch_that_comes_twice_is_counted_twice(tmp_path):
    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        jaxq.calibrate(mlp, PARAMS, interrupted([MANY[0]] * 3, 2), checkpoint=path)
    assert jaxq.calibrate(mlp, PARAMS, [MANY[0]] * 3, checkpoint=path).num_examples == 12


def test_the_checkpoint_is_valid_while_the_pass_goes_on(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setattr(observe, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    path = tmp_path / "checkpoint"
    seen = []

    def watched():
        for batch in MANY:
            if path.exists():
                seen.append(cache.load_checkpoint(path)[0].num_examples)
            yield batch

    c = jaxq.calibrate(mlp, PARAMS, watched(), checkpoint=path)
    assert seen == [4, 8, 12, 16, 20, 24, 28, 32]
    assert_same_calibration(c, uninterrupted, tmp_path)


def test_a_checkpoint_of_another_network(tmp_path):
    path = tmp_path / "checkpoint"
    jaxq.calibrate(mlp, PARAMS, MANY[:1], checkpoint=path)
    data = path.read_bytes()
    with pytest.raises(jaxq.CalibrationError, match="checkpoint is of another network.*variable '0/0' differs"):
        jaxq.calibrate(mlp, mlp_params(6, 5, 4, seed=1), MANY, checkpoint=path)
    assert path.read_bytes() == data


def test_a_checkpoint_that_is_none(tmp_path):
    path = tmp_path / "checkpoint"
    path.write_text("precious")
    with pytest.raises(jaxq.CalibrationError, match="no jaxq checkpoint"):
        jaxq.calibrate(mlp, PARAMS, MANY, checkpoint=path)
    assert path.read_text() == "precious"


def test_a_checkpoint_in_a_missing_folder(tmp_path):
    """Said before anything is counted."""
    read = []
    with pytest.raises(jaxq.CalibrationError, match="nowhere is no folder"):
        jaxq.calibrate(mlp, PARAMS, (read.append(b) or b for b in MANY), checkpoint=tmp_path / "nowhere" / "c")
    assert len(read) == 1


def test_errors_of_very_large_and_small_activations_are_numbers(tmp_path):
    """Their squares are none in float32."""
    for scale in (2.0**83, 2.0**-83):
        (first, bias), (second, bias2) = PARAMS
        c = jaxq.calibrate(mlp, [(scale * first, scale * bias), (second, scale * bias2)], MANY)
        c.save(tmp_path / "c")
        errors = [error for by in c.errors["0"].values() for error in by.values()]
        assert all(0 < error < 0.1 for error in errors)


def test_it_is_data_of_the_host(plain):
    assert not any(isinstance(leaf, jax.Array) for h in plain.histograms.values() for leaf in (h.counts, h.amax))
