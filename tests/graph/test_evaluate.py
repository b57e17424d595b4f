"""The oracle, and the float form of every int8 node beside it."""

import cheap
import jax
import numpy as np
import pytest

from jaxq import numerics, passes
from jaxq.config import QuantConfig
from jaxq.graph.evaluate import evaluate, fake_quantized, reference
from jaxq.graph.primitives import BY_NAME, TABLE
from jaxq.graph.trace import trace
from jaxq.passes.lower import lower
from jaxq.passes.place import place
from jaxq.passes.scales import choices_of


def values_of(graph, x):
    """Every value of a bound graph, by its node."""
    nodes = []

    @cheap.jit
    def run(params, x):
        seen = {}
        evaluate(graph, params, [x], tap=seen.__setitem__)
        nodes.extend(seen)
        return list(seen.values())

    values = run(graph.params, x)
    return dict(zip(nodes, map(np.asarray, values), strict=True)) | {graph.inputs[0]: x}


def int8_values(small_cnn):
    """The unmerged int8 graph, the float graph it was made of, and every value of the former."""
    graph = passes.simplify(trace(small_cnn.model.apply, small_cnn.variables, (small_cnn.x,)).graph)
    placement = place(graph, QuantConfig())
    largest = dict.fromkeys((group.name for group in placement.scale_groups), 0.0)
    by_name = {node.name: group.name for node, group in placement.groups.items()}
    bound = graph.bind(len(small_cnn.x))
    for node, value in values_of(bound, small_cnn.x).items():
        if (group := by_name.get(node.name)) is not None:
            largest[group] = max(largest[group], float(np.max(np.abs(value))))
    int8 = lower(graph, placement, choices_of(placement, largest), QuantConfig()).bind(len(small_cnn.x))
    values = {n: n.value for n in int8.nodes if n.is_constant} | values_of(int8, small_cnn.x)
    return int8, {node.name: node for node in bound.nodes if "lo" in node.attrs}, values


def test_fake_quantized_agrees_to_one_lsb_node_by_node(small_cnn):
    """Each node is fed the int8 graph's own inputs: end to end the two drift apart. Beside the node's own float form
    stands the float graph's node, whose scale, bias and bounds the int8 graph's must come from."""
    int8, float_nodes, values = int8_values(small_cnn)

    def real(node):
        scale = 1.0 if node.qtype is None else np.asarray(node.qtype.scale, np.float32)
        return np.asarray(values[node], np.float32) * scale

    checked = 0
    for node in int8.nodes:
        if "multiplier" not in node.roles or node.op == "quantize":
            continue
        scale_out = 1.0 if node.qtype is None else node.qtype.scale
        result = np.asarray(values[node], np.float32)
        fake = cheap.jit(fake_quantized(node))(*(values[s] for s in node.inputs))
        exact = float_nodes[node.name]
        operands = [
            real(node.operand(role)) if role in ("x", "residual") else exact.operand(role).value for role in exact.roles
        ]
        if "weight" in exact.roles:
            weight = node.operand("weight")
            scales = weight.qtype.scale if node.op == "conv" else weight.qtype.scale[:, None]
            operands[exact.roles.index("weight")] = np.asarray(weight.value * scales, np.float32)
        beside = np.asarray(cheap.jit(reference(exact))(*operands)) / scale_out
        if node.qtype is None:
            np.testing.assert_allclose(result, fake, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(result, beside, rtol=1e-5, atol=1e-5)
        else:
            low, high = numerics.BOUNDS[node.qtype.dtype]
            assert np.max(np.abs(fake - result)) <= 1.0, node
            assert np.max(np.abs(np.clip(beside, low, high) - result)) <= 1.0, node
        checked += 1
    assert checked == 14


def test_primitive_names_are_unique():
    assert all(BY_NAME[row.name] is row for row in TABLE.values())


PRIMITIVES = {
    "gather": lambda x: x[:, np.array([2, 0])],
    "dynamic_slice": lambda x: jax.lax.dynamic_slice(x, (0, 1), (2, 2)),
    "dynamic_slice far below": lambda x: jax.lax.dynamic_slice(x, (0, (x > 1e9).sum() - 8), (2, 2)),
    "dynamic_update_slice far below": lambda x: jax.lax.dynamic_update_slice(x, x[:, :1], (0, (x > 1e9).sum() - 8)),
    "sort": lambda x: jax.numpy.sort(x, axis=1),
    "top_k": lambda x: jax.lax.top_k(x, 2),
    "argmax": lambda x: x.argmax(1),
    "cumsum": lambda x: x.cumsum(1),
    "scatter": lambda x: jax.numpy.asarray(x).at[:, 1].set(0.0),
    "scatter_add": lambda x: jax.numpy.asarray(x).at[:, 1].add(1.0),
    "split": lambda x: jax.numpy.split(x, 2, axis=1),
    "softmax": lambda x: jax.nn.softmax(x),
    "gelu": lambda x: jax.nn.gelu(x),
    "layer_norm": lambda x: jax.nn.standardize(x),
    "iota": lambda x: x + jax.numpy.arange(6, dtype=x.dtype),
    "round": lambda x: jax.numpy.round(x),
    "where": lambda x: jax.numpy.where(x > 0, x, 0.1 * x),
    "logsumexp": lambda x: jax.nn.logsumexp(x, axis=1),
    "clip": lambda x: jax.numpy.clip(x, -0.5, 0.5),
    "power": lambda x: (x**2, x**3, jax.numpy.abs(x) ** 0.5),
    "reduce_window": lambda x: jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 2), (1, 2), "VALID"),
    "tile": lambda x: jax.numpy.tile(x, (1, 2)),
    "stack": lambda x: jax.numpy.stack([x, x], 1),
    "unstack": lambda x: jax.numpy.unstack(x, axis=1),
    "log2": lambda x: jax.numpy.log2(jax.numpy.abs(x)),
    "rev": lambda x: x[:, ::-1],
    "fft": lambda x: (jax.numpy.fft.rfft(x).imag, jax.numpy.fft.ifft2(x.reshape(-1, 2, 3)).real),
    "complex": lambda x: jax.numpy.abs(jax.numpy.conj(jax.lax.complex(x, 2 * x)) * x.astype(np.complex64)),
    "special": lambda x: (jax.lax.igamma(x**2, x**2), jax.lax.bessel_i0e(x), jax.lax.betainc(x**2, x**2, x**2)),
    "isnan": lambda x: jax.numpy.isnan(x),
    "one_hot": lambda x: jax.nn.one_hot(x.argmax(1), 6, dtype=x.dtype),
}


@pytest.mark.parametrize("name", PRIMITIVES)
def test_primitives_are_rebound_by_name(name):
    fun = PRIMITIVES[name]
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    traced = trace(lambda p, x: fun(x), {}, (x,))
    assert not any(node.op == "opaque" for node in traced.graph.nodes)

    @cheap.jit
    def both(params, x):
        sizes = (4, 2) if traced.fixed_because is None else (4,)
        bound = [(traced.graph.bind(size), x[:size]) for size in sizes]
        return [(evaluate(graph, params, [x]), jax.tree.leaves(fun(x))) for graph, x in bound]

    for ours, theirs in both(traced.graph.params, x):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
