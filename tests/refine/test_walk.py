"""A walk over the layers makes what the int8 graph of the state in the end makes."""

import jax
import jax.numpy as jnp
import numpy as np
from networks import images

import jaxq
from jaxq.calibration.step import leading_size
from jaxq.refine.state import Samples


def convolution(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def walked(monkeypatch, function, params, *args):
    """What the last layer visited was given, and the values of the final state's simulation, by name."""
    found = {}

    def walk(samples, state, names, visit):
        def seen(state, node, fit, held):
            found["given"] = dict(fit)
            return visit(state, node, fit, held)

        state = original(samples, state, names, seen)
        levels = jax.device_put(state.simulated.levels(state.choices, state.config))
        values = found["values"] = {}
        leaves, params = map(jnp.asarray, samples.fit), state.graph.params
        size = leading_size(state.graph, samples.fit)
        state.simulated(params, levels, list(leaves), size, tap=lambda node, y: values.update({node.name: y}))
        return state

    original = Samples.walk
    monkeypatch.setattr(Samples, "walk", walk)
    jaxq.quantize(function, params, [args], config=jaxq.QuantConfig(method="mse", recipe=("polish",)))
    return found["given"], found["values"]


def assert_same(given, values):
    both = given.keys() & values.keys()
    assert len(both) > 2
    for name in both:
        np.testing.assert_array_equal(given[name], values[name], err_msg=name)


def test_a_scale_learned_behind_a_pool(monkeypatch):
    """The pool's values are of the scale before; who reads them rounds them once."""
    shapes = (3, 3, 3, 16), (3, 3, 16, 16), (3, 3, 16, 8)
    params = [images(*shape, seed=i) / 4 for i, shape in enumerate(shapes)]

    def function(params, x):
        x = jax.nn.relu(convolution(x, params[0]))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return convolution(jax.nn.relu(convolution(x, params[1])), params[2])

    assert_same(*walked(monkeypatch, function, params, images(32, 16, 16, 3)))


def test_a_parameter_of_a_layers_name(monkeypatch):
    """Both are "add"."""
    shapes = {"add": (24, 16), "first": (16, 16), "second": (16, 16), "third": (16, 16), "fourth": (16, 16)}
    params = {name: images(*shape, seed=i) / 4 for i, (name, shape) in enumerate(shapes.items())}

    def function(params, x, rows):
        s = jnp.tanh(x) + x
        y = jax.nn.relu(s @ params["first"]) @ params["second"]
        z = jax.nn.relu(y + jnp.take(params["add"], rows, axis=0))
        return jnp.concatenate([z @ params["third"], s @ params["fourth"]], -1)

    rows = np.random.default_rng(0).integers(0, 24, (32, 4)).astype(np.int32)
    assert_same(*walked(monkeypatch, function, params, images(32, 4, 16), rows))
