"""A convolution and the depthwise one that reads it as one operation of the CPU's kernels: the reference's bits."""

import cheap
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from nodes import sum_of

from jaxq.backends import choose, cpu, gather
from jaxq.backends.cpu import fused
from jaxq.graph.evaluate import evaluate
from jaxq.graph.node import Aval, Graph, Node, QType, constant

pytestmark = pytest.mark.skipif(cpu.available() is not None, reason=str(cpu.available()))


def conv(x, name, features, kernel, rng, *, depthwise=False, out="uint8", table=False, residual=None, **geometry):
    """A convolution of a node's value, its constants random as a network's would be."""
    channels = x.aval.shape[-1]
    weight = rng.integers(-127, 128, (*kernel, 1 if depthwise else channels, features)).astype(np.int8)
    attrs = {"strides": (1, 1), "padding": ((0, 0), (0, 0)), "lhs_dilation": (1, 1), "rhs_dilation": (1, 1)}
    attrs |= {"lo": -np.inf, "hi": np.inf, "groups": channels if depthwise else 1, **geometry}
    lo, hi = (-127, 127) if out == "int8" or table else (0, 255)
    values = {
        "weight": weight,
        "multiplier": (rng.uniform(20, 90, features) / (5000 * np.sqrt(weight.size / features))).astype(np.float32),
        "bias": rng.normal(40, 20, features).astype(np.float32),
        "lo": np.full(features, lo, np.float32),
        "hi": np.full(features, hi, np.float32),
    }
    if table:
        values["table"] = rng.integers(0, 255, 256).astype(out)
    constants = {role: constant(value, f"{name}/{role}") for role, value in values.items()}
    if residual is not None:
        constants |= {"residual": residual, "residual_multiplier": constant(np.float32(0.3))}
    bare = Node("conv", (), attrs, Aval((0,) * 3 + (features,), np.dtype(out)), name, qtype=QType(out, 1.0))
    shape = jax.eval_shape(
        lambda: sum_of(bare.with_operands({"x": x, **constants}), jnp.zeros(x.aval.shape), weight)
    ).shape
    return bare.replace(aval=Aval(shape, np.dtype(out))).with_operands({"x": x, **constants})


def image(rng, shape, dtype="int8"):
    array = rng.integers(*((-127, 128) if dtype == "int8" else (0, 256)), shape).astype(dtype)
    return Node("input", (), {}, Aval(array.shape, array.dtype), "x", qtype=QType(dtype, 1.0)), array


def check(x, array, *outputs, expansions=1):
    """The region gives the reference's bits, and so many of its operations are expansions."""
    graph = Graph((x,), outputs)
    gathered = gather(graph)
    (region,) = (node for node in gathered.nodes if node.op == "region")
    body = region.attrs["body"]
    assert sum(fused.is_part_of_next(body, node) for node in body.nodes) == expansions
    params = {name: jnp.asarray(value) for name, value in graph.params.items()}
    found = jax.jit(lambda params, x: evaluate(gathered, params, [x], choose))(params, array)
    expected = cheap.jit(lambda params, x: evaluate(graph, params, [x]))(params, array)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


sides = st.tuples(st.integers(0, 3), st.integers(0, 3))
steps = st.integers(1, 3)


@settings(max_examples=12, deadline=None, phases=[Phase.generate])
@given(st.data())
def test_expansions(data):
    """Any geometry of both; more images than one, of which a part may end within one."""
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    dtypes, pairs = st.sampled_from(["int8", "uint8"]), lambda strategy: st.tuples(strategy, strategy)
    shape = (draw(st.sampled_from([1, 3])), *draw(pairs(st.integers(9, 20))), draw(st.sampled_from([3, 16, 40])))
    x, array = image(rng, shape, draw(dtypes))
    features, kernel = draw(st.sampled_from([5, 16, 64, 70, 200])), draw(pairs(st.sampled_from([1, 1, 3])))
    between, out, tables = draw(dtypes), draw(st.sampled_from(["int8", "uint8", "float32"])), draw(pairs(st.booleans()))
    geometry = {"strides": draw(pairs(steps)), "padding": draw(pairs(sides)), "rhs_dilation": draw(pairs(steps))}
    y = conv(x, "a", features, kernel, rng, out=between, table=tables[0], padding=draw(pairs(sides)))
    kernel = tuple(draw(st.integers(1, 5)) for _ in range(2))
    table = tables[1] and out != "float32"
    padding = [
        (low, high + max(0, (k - 1) * d + 1 - low - high - size))
        for (low, high), k, d, size in zip(
            geometry["padding"], kernel, geometry["rhs_dilation"], y.aval.shape[1:3], strict=True
        )
    ]
    geometry["padding"] = tuple(padding)
    check(x, array, conv(y, "b", features, kernel, rng, depthwise=True, out=out, table=table, **geometry))


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2), (7, 3), (1, 2)])
def test_bands_of_a_large_image(monkeypatch, kernel, stride):
    """Lines that two bands read are computed once; the bits are those of one convolution after the other."""
    rng = np.random.default_rng(kernel)
    x, array = image(rng, (2, 90, 60, 3))
    y = conv(x, "a", 130, (3, 3), rng, padding=((1, 1), (1, 1)))
    padding = ((kernel // 2, kernel // 2),) * 2
    z = conv(y, "b", 130, (kernel, kernel), rng, depthwise=True, padding=padding, strides=(stride, stride))
    gathered = gather(Graph((x,), (z,)))

    def run(x):
        return evaluate(gathered, gathered.params, [x], choose)[0]

    found = jax.jit(run)(array)
    monkeypatch.setattr(fused, "expansion_of", lambda node: None)
    np.testing.assert_array_equal(found, jax.jit(lambda x: run(x))(array))


def test_what_others_read_is_computed_alone():
    rng = np.random.default_rng(0)
    x, array = image(rng, (2, 9, 9, 8))
    y = conv(x, "a", 24, (1, 1), rng)
    padding = ((1, 1), (1, 1))
    z = conv(y, "b", 24, (3, 3), rng, depthwise=True, padding=padding)
    check(x, array, z, y, expansions=0)
    check(x, array, z, conv(y, "c", 16, (1, 1), rng), expansions=0)
    with_residual = conv(y, "d", 24, (3, 3), rng, depthwise=True, padding=padding, residual=z)
    check(x, array, with_residual, expansions=0)
    check(
        x, array, conv(conv(x, "e", 8, (3, 3), rng, depthwise=True), "f", 8, (3, 3), rng, depthwise=True), expansions=0
    )
