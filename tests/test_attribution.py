"""Each layer's part of the error: that of a plan in which this layer alone is in int8."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from networks import decibels, images

import jaxq

CONFIG = jaxq.QuantConfig(method="mse")


def alone(fun, params, x, layer, names):
    """The decibels of a plan in which one anchor is in int8."""
    rules = tuple(jaxq.LayerRule(f"^{name}$", quantize=False) for name in names if name != layer)
    qmodel = jaxq.quantize(fun, params, [x], config=jaxq.QuantConfig(method="mse", rules=rules))
    return decibels(fun(params, x), qmodel(x))


def network(params, x):
    y = jax.nn.relu(x @ params["a"])
    y = jax.nn.relu(y @ params["b"])
    return lax.reduce_window(y, -jnp.inf, lax.max, (1, 2), (1, 2), "VALID") @ params["c"]


PARAMS = {"a": images(6, 8), "b": images(8, 8, seed=1), "c": images(4, 5, seed=2)}
X = images(16, 6, seed=3)


@pytest.fixture(scope="module")
def qmodel():
    return jaxq.quantize(network, PARAMS, [X], config=CONFIG)


@pytest.fixture(scope="module")
def found(qmodel):
    return jaxq.sensitivity(qmodel, [X])


def test_a_layer_alone_errs_as_its_plan_does(qmodel, found):
    rows = {row.name: row for row in found.rows}
    assert rows.keys() == {"a", "b", "c"}
    for name, row in rows.items():
        assert row.decibels == pytest.approx(alone(network, PARAMS, X, name, rows), abs=0.1)
        assert row.op == "dot"
    assert found.num_examples == 16
    assert found.decibels == pytest.approx(decibels(network(PARAMS, X), qmodel(X)), abs=0.1)


def test_the_table(found):
    assert sum(row.share for row in found.rows) == pytest.approx(1)
    assert [row.error for row in found.rows] == sorted((row.error for row in found.rows), reverse=True)
    lines = str(found).splitlines()
    assert lines[0].split() == ["layer", "op", "alone", "share"]
    assert [line.split()[0] for line in lines[2:5]] == [row.name for row in found.rows]
    assert lines[-1] == f"all in int8: {found.decibels:.1f} dB, on 16 examples"


def test_the_order_and_the_sizes_of_batches_do_not_matter(qmodel, found):
    """And all layers are one program."""
    compiled = []

    def listen(event, duration, **_):
        compiled.extend([duration] * (event == "/jax/core/compile/backend_compile_duration"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    other = jaxq.sensitivity(qmodel, iter([X[10:], X[3:10], X[:3]]))
    jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) == 2  # the network under its mask, and the squares
    assert other == found


def test_many_examples_are_few_of_each_layer(qmodel):
    assert jaxq.sensitivity(qmodel, [images(200, 6)]).num_examples == 64


def test_loops_tables_products_and_several_results():
    def fun(params, x):
        y = jax.nn.gelu(x @ params["a"])
        y = lax.fori_loop(0, 2, lambda _, y: jnp.tanh(y @ params["b"]), y)
        return {"y": (y @ y.mT) @ params["head"], "index": jnp.argmax(y, -1), "top": jnp.exp(y)}

    params = {"a": images(6, 8), "b": images(8, 8, seed=1), "head": images(5, 3)}
    x = images(8, 5, 6)
    qmodel = jaxq.quantize(fun, params, [x], config=CONFIG)
    found = jaxq.sensitivity(qmodel, [x])
    assert {row.op for row in found.rows} >= {"dot", "matmul"}
    assert all(0 < row.error < 1 for row in found.rows)
    exact, result = fun(params, x), qmodel(x)
    noise = [10 ** (-decibels(exact[name], result[name]) / 10) for name in ("y", "top")]
    assert found.error == pytest.approx(np.mean(noise), rel=0.3)


def test_a_fixed_batch():
    def fun(params, x):
        return (x.reshape(8, 6) + jnp.arange(8.0)[:, None]) @ params["w"]

    x = images(8, 6)
    qmodel = jaxq.quantize(fun, {"w": images(6, 4)}, [x], config=CONFIG)
    (row,) = jaxq.sensitivity(qmodel, [x]).rows
    assert row.decibels == pytest.approx(decibels(fun({"w": images(6, 4)}, x), qmodel(x)), abs=0.1)


def test_what_it_does_not_take(qmodel, tmp_path):
    qmodel.save(tmp_path / "net.jaxq")
    for other in (jaxq.load(tmp_path / "net.jaxq"), jax.tree.map(lambda x: x, qmodel)):
        with pytest.raises(jaxq.UnsupportedError, match="holds no float weights: take what quantize returned"):
            jaxq.sensitivity(other, [X])
    with pytest.raises(jaxq.UnsupportedError, match="takes what jaxq.quantize returned, not a function"):
        jaxq.sensitivity(network, [X])
    with pytest.raises(jaxq.PlanError, match=r"has shape \(16, 5\)"):
        jaxq.sensitivity(qmodel, [X[:, :5]])
    with pytest.raises(jaxq.UnsupportedError, match="single examples"):
        jaxq.sensitivity(qmodel, [X[0]])
    with pytest.raises(jaxq.CalibrationError, match="the iterator is empty"):
        jaxq.sensitivity(qmodel, [])
    indices = jaxq.quantize(lambda p, x: jnp.argmax(x @ p["a"], -1), PARAMS, [X], config=CONFIG)
    with pytest.raises(jaxq.UnsupportedError, match="returns no floats"):
        jaxq.sensitivity(indices, [X])
