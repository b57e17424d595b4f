"""Scales by channel of rows that have scales of their own."""

import dataclasses

import cheap
import numpy as np
import pytest
from networks import decibels, images

import jaxq
from jaxq import passes
from jaxq.graph.verify import verify
from jaxq.refine import channels
from jaxq.refine.state import Samples, State

TOKEN = jaxq.QuantConfig(method="amax", activation_scales="token")


SIZES = np.ones(24, np.float32)
SIZES[[3, 17]] = 60, 200


def fun(params, x):
    return (x @ params["a"]).clip(0) @ params["b"]


def drawn(count, seed):
    """Rows two channels of which are far larger than the others, and matter no more."""
    return images(count, 24, seed=seed) * SIZES


@pytest.fixture(scope="module")
def refined():
    params = {"a": images(24, 40) / SIZES[:, None], "b": images(40, 8, seed=1)}
    x = drawn(64, seed=2)
    qmodel = jaxq.quantize(fun, params, [x[:16]], config=TOKEN)  # too few to refine by, unless that is asked for
    origin = qmodel.origin
    state = State(origin.graph, origin.placement, origin.choices, origin.config)
    samples = Samples.split(origin.graph, [x])
    return params, qmodel, state, channels.refine(state, samples), samples


def test_they_make_the_results_more_exact(refined):
    _, _, before, after, samples = refined
    assert samples.error(after) < samples.error(before) / 10
    (found,) = [scale for name, scale in after.choices.rows.items() if scale.shape == (24,)]
    assert set(np.argsort(found)[-2:]) == {3, 17} and found.max() == 1


def test_the_int8_graph_has_them(refined):
    """And is what was simulated, but for roundings of float32."""
    params, qmodel, _, after, _ = refined
    graph = verify(passes.quantize(after.graph, after.placement, after.choices, after.config), "quantized")
    assert any(node.op == "row_scale" and node.get("factor") is not None for node in graph.nodes)
    plan, x = dataclasses.replace(qmodel.plan, graph=graph), drawn(16, seed=3)
    found, exact = plan(graph.params, x), cheap.jit(fun)(params, x)
    assert decibels(exact, found) > decibels(exact, qmodel(x)) + 10
    simulated = cheap.jit(after.simulated, static_argnums=3)(
        after.graph.params, after.simulated.levels(after.choices, after.config), [x], len(x)
    )
    assert decibels(simulated[0], found) > 50
