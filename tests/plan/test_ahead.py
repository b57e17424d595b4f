"""Compiled before the first call: the plan's bits at every batch size, and nothing compiled by a call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import images, mlp, mlp_params

import jaxq

PARAMS = mlp_params(6, 5, 4)
X = images(23, 6)


@pytest.fixture(scope="module")
def qmodel():
    return jaxq.quantize(mlp, PARAMS, [X], config=jaxq.QuantConfig(method="mse"))


@pytest.fixture
def compilations():
    """The durations of all that JAX compiles while the test runs."""
    found = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def test_any_batch_runs_without_compiling(qmodel, compilations):
    sizes = (0, 1, 2, 4, 5, 8, 9, 16, 23)
    expected = {size: np.asarray(qmodel(X[:size])) for size in sizes}
    one = np.asarray(qmodel(X[0]))
    serve = qmodel.compile((8, 4, 4))
    assert serve.batch_sizes == (4, 8)
    assert compilations
    compilations.clear()
    for size in sizes:
        result = serve(X[:size])
        assert isinstance(result, jax.Array)
        np.testing.assert_array_equal(result, expected[size])
    np.testing.assert_array_equal(serve(X[0]), one)
    assert not compilations


def test_arguments_are_checked(qmodel):
    serve = qmodel.compile(2)
    with pytest.raises(jaxq.PlanError, match=r"has shape \(2, 7\), the plan takes"):
        serve(images(2, 7))
    with pytest.raises(jaxq.PlanError, match="the arguments are"):
        serve(X[:2], X[:2])


@pytest.mark.parametrize("sizes", [(), 0, (1, -2), (1.5,), "8"])
def test_batch_sizes_that_are_none(qmodel, sizes):
    with pytest.raises(jaxq.UnsupportedError, match="batch_sizes: takes positive integers"):
        qmodel.compile(sizes)


def test_a_device_that_is_none(qmodel):
    with pytest.raises(jaxq.UnsupportedError, match=r"device: takes one of jax.devices\(\), not 'cpu'"):
        qmodel.compile(device="cpu")


def test_a_tree_of_arguments_some_without_a_batch():
    def fun(params, batch, shift):
        return {"y": (batch["x"] + shift) @ params["w"], "ids": batch["ids"]}

    batch = {"x": X, "ids": np.arange(23, dtype=np.int32)}
    shift = images(6, seed=3)
    qmodel = jaxq.quantize(fun, {"w": images(6, 4)}, [(batch, shift)])
    serve = qmodel.compile((4, 16))
    jax.tree.map(np.testing.assert_array_equal, serve(batch, shift), qmodel(batch, shift))


def test_a_network_that_mixes_its_examples_takes_the_sizes_alone():
    def fun(params, x):
        return (x - jnp.max(x, 0)) @ params["w"]

    qmodel = jaxq.quantize(fun, {"w": images(6, 4)}, [X])
    serve = qmodel.compile((4, 23))
    np.testing.assert_array_equal(serve(X), qmodel(X))
    with pytest.raises(jaxq.PlanError, match=r"takes batches of 4, 23, not of 3: layer 'reduce_max' .* may mix"):
        serve(X[:3])


def test_a_fixed_batch():
    def fun(params, x):
        return (x.reshape(8, 6) + jnp.arange(8.0)[:, None]) @ params["w"]

    qmodel = jaxq.quantize(fun, {"w": images(6, 4)}, [X[:8]])
    serve = qmodel.compile()
    assert serve.batch_sizes == ()
    np.testing.assert_array_equal(serve(X[:8]), qmodel(X[:8]))


@pytest.mark.parametrize("batch_size", [None, 5])
def test_an_export(qmodel, batch_size):
    exported = qmodel.export(batch_size)
    assert exported.platforms == ("cpu", "cuda")
    np.testing.assert_array_equal(exported.call(X[:5]), qmodel(X[:5]))
    if batch_size is None:
        np.testing.assert_array_equal(exported.call(X), qmodel(X))
    with pytest.raises(jaxq.UnsupportedError, match="batch_size: takes a positive integer"):
        qmodel.export(0)
