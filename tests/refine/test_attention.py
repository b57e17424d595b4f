"""Attention's channels equalised: an exact rewrite of the float graph, however heads are made, and of nothing else."""

from dataclasses import replace

import cheap
import flax.linen as nn
import jax
import jax.numpy as jnp
import meaning
import numpy as np
import pytest
from chosen import model_from, state_of
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import decibels, images, mlp, mlp_params, variables
from zoo.bert import Bert

import jaxq
from jaxq import passes
from jaxq.cli.probe import differences, probe
from jaxq.graph.evaluate import evaluate
from jaxq.graph.trace import trace
from jaxq.graph.verify import verify
from jaxq.passes.scales import tensor_of
from jaxq.refine import attention
from jaxq.refine.state import Samples

WIDTH, HEADS, DEPTH = 32, 4, 8
MSE = jaxq.QuantConfig(method="mse")


def weights(**shapes):
    """Whose output channels differ widely, and whose input channels do."""
    rng = np.random.default_rng(0)

    def drawn(rows, columns):
        spread = np.exp(rng.normal(size=(rows, 1))) * np.exp(rng.normal(size=columns))
        return (rng.normal(size=(rows, columns)) * spread / rows).astype(np.float32)

    return {name: drawn(*shape) for name, shape in shapes.items()}


FOUR = weights(q=(WIDTH, WIDTH), k=(WIDTH, WIDTH), v=(WIDTH, WIDTH), out=(WIDTH, WIDTH))
GROUPED = weights(q=(WIDTH, WIDTH), k=(WIDTH, 16), v=(WIDTH, 16), out=(WIDTH, WIDTH))
X = images(6, 5, WIDTH)


def heads(x, count=HEADS):
    return x.reshape(*x.shape[:2], count, -1)


def attend(q, k, v, scores="bqhd,bkhd->bhqk", context="bhqk,bkhd->bqhd"):
    y = jnp.einsum(context, nn.softmax(jnp.einsum(scores, q, k) / np.float32(3)), v)
    return y.reshape(*y.shape[:2], -1)


def plain(p, x):
    return attend(*(heads(x @ p[name]) for name in "qkv")) @ p["out"]


def packed(p, x):
    return attend(*map(heads, jnp.split(x @ p["qkv"], 3, -1))) @ p["out"]


def interleaved(p, x):
    """Query, key and value of each channel side by side."""
    return attend(*(heads(part) for part in jnp.moveaxis((x @ p["qkv"]).reshape(*x.shape, 3), -1, 0))) @ p["out"]


def grouped(p, x):
    return (
        jax.nn.dot_product_attention(heads(x @ p["q"]), heads(x @ p["k"], 2), heads(x @ p["v"], 2)).reshape(x.shape)
        @ p["out"]
    )


def repeated(p, x):
    k, v = (jnp.repeat(heads(x @ p[name], 2), 2, axis=2) for name in "kv")
    return attend(heads(x @ p["q"]), k, v) @ p["out"]


def two_readers(p, x):
    y = attend(*(heads(x @ p[name]) for name in "qkv"))
    return y @ p["out"], nn.relu(y @ p["q"])


PACKED = {"qkv": np.concatenate([FOUR[name] for name in "qkv"], 1), "out": FOUR["out"]}
CASES = {
    "plain": (plain, FOUR, {"q", "k", "v"}, {"out"}),
    "packed": (packed, PACKED, {"qkv"}, {"out"}),
    "interleaved": (interleaved, PACKED, {"qkv"}, {"out"}),
    "grouped": (grouped, GROUPED, {"q", "k", "v"}, {"out"}),
    "repeated": (repeated, GROUPED, {"q", "k", "v"}, {"out"}),
    "two readers": (two_readers, FOUR, {"q", "k", "v"}, {"out", "q#2"}),
}


def simplified(fun, params, *args):
    return verify(passes.simplify(trace(fun, params, args).graph), "float")


def factors_of(graph, *args):
    return attention._factors(graph, Samples(args, args).values(graph))


def results(graph, *args):
    bound = graph.bind(len(args[0]))
    return cheap.jit(lambda params, args: evaluate(bound, params, args))(graph.params, list(args))


def powers_of_two(factors):
    def rounded(by_name):
        return {name: np.exp2(np.round(np.log2(factor))) for name, factor in by_name.items()}

    return replace(factors, outputs=rounded(factors.outputs), inputs=rounded(factors.inputs))


def check_exact(graph, factors, *args):
    """Rounded otherwise by a few units in the last place of the largest result; by powers of two not at all."""
    before, after = results(graph, *args), results(graph.map(factors.rewritten), *args)
    for a, b in zip(before, after, strict=True):
        assert np.max(np.abs(a - b)) <= 16 * np.finfo(np.float32).eps * np.max(np.abs(a))
    shifted = results(graph.map(powers_of_two(factors).rewritten), *args)
    for a, b in zip(before, shifted, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", CASES)
def test_the_function_stays_the_same(case):
    fun, params, makers, readers = CASES[case]
    graph = simplified(fun, params, X)
    factors = factors_of(graph, X)
    assert (set(factors.outputs), set(factors.inputs)) == (makers, readers)
    check_exact(graph, factors, X)


@pytest.mark.parametrize("case", ["plain", "repeated"])
def test_channels_of_a_pair_are_alike_in_size(case):
    fun, params, *_ = CASES[case]
    graph = simplified(fun, params, X)
    values = Samples([X], [X]).values(graph.map(factors_of(graph, X).rewritten))
    query, key = (np.abs(values[name]).max((0, 1)) for name in "qk")
    if case == "repeated":  # a key's channel stands beside those of two heads
        query = query.reshape(2, 2, DEPTH).max(1).reshape(-1)
    np.testing.assert_allclose(query, key, rtol=1e-5)
    before = Samples([X], [X]).values(graph)
    spread = [np.std(np.log(np.abs(found["v"]).max((0, 1)))) for found in (before, values)]
    assert spread[1] < 0.8 * spread[0]


@pytest.mark.slow
def test_bert():
    model = Bert(width=32, layers=1, heads=4, hidden=48, vocabulary=50, positions=12)
    rng = np.random.default_rng(0)
    args = rng.integers(0, 50, (4, 12)).astype(np.int32), (np.arange(12) < rng.integers(3, 13, (4, 1))).astype(np.int32)
    graph = simplified(model.apply, variables(model, *args), *args)
    factors = factors_of(graph, *args)
    made = {f"Bert/layer0/attention/{name}" for name in ("query", "key", "value")}
    assert set(factors.outputs) == made
    assert set(factors.inputs) == {"Bert/layer0/attention/output"}
    check_exact(graph, factors, *args)


@st.composite
def attentions(draw):
    """Heads, queries and keys in any order of axes, in groups or packed, with biases and masks."""
    of_query, of_key = (draw(st.permutations("bthd")) for _ in range(2))
    groups = draw(st.sampled_from([1, 2, 4]))
    with_bias, masked = draw(st.booleans()), draw(st.booleans())
    width = HEADS // groups * DEPTH
    params = weights(q=(WIDTH, WIDTH), k=(WIDTH, width), v=(WIDTH, width), out=(WIDTH, 6))
    bias = images(WIDTH, seed=1)

    def fun(p, x):
        def moved(name, order, count):
            y = x @ p[name] + (p["bias"][: p[name].shape[1]] if with_bias else 0)
            y = jnp.einsum(f"bthd->{''.join(order)}", heads(y, count))
            return jnp.repeat(y, HEADS // count, order.index("h"))

        q, k, v = moved("q", of_query, HEADS), *(moved(name, of_key, HEADS // groups) for name in "kv")
        q_axes, k_axes = "".join(of_query), "".join(of_key).replace("t", "s")
        scores = jnp.einsum(f"{q_axes},{k_axes}->bhts", q, k)
        scores = jnp.where(np.tri(5, dtype=bool), scores, np.float32(-1e9)) if masked else scores
        y = jnp.einsum(f"bhts,{k_axes}->bthd", nn.softmax(scores), v)
        return y.reshape(x.shape) @ p["out"]

    return fun, {**params, "bias": bias}


def check_attention(fun, params):
    graph = simplified(fun, params, X)
    factors = factors_of(graph, X)
    assert (set(factors.outputs), set(factors.inputs)) == ({"q", "k", "v"}, {"out"})
    check_exact(graph, factors, X)


@settings(max_examples=2, derandomize=True)
@given(attentions())
def test_any_attention(case):
    check_attention(*case)


@pytest.mark.slow
@settings(max_examples=30)
@given(attentions())
def test_30_attentions(case):
    check_attention(*case)


# ------------------------------------------------------------------------------------------- what has to be left alone


def rotary(p, x):
    angle = np.arange(5, dtype=np.float32)[:, None, None] / np.float32(7)

    def turned(y):
        a, b = jnp.split(heads(y), 2, -1)
        return jnp.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], -1)

    return attend(turned(x @ p["q"]), turned(x @ p["k"]), heads(x @ p["v"])) @ p["out"]


def key_is_a_result(p, x):
    k = x @ p["k"]
    return attend(heads(x @ p["q"]), heads(k), heads(x @ p["v"])) @ p["out"], k


def keys_are_queries(p, x):
    q = heads(x @ p["q"])
    return attend(q, q, heads(x @ p["v"])) @ p["out"]


def values_are_keys(p, x):
    k = heads(x @ p["k"])
    return attend(heads(x @ p["q"]), k, k) @ p["out"]


def context_is_normed(p, x):
    return jax.nn.standardize(attend(*(heads(x @ p[name]) for name in "qkv"))) @ p["out"]


def context_is_added(p, x):
    return (x + attend(*(heads(x @ p[name]) for name in "qkv"))) @ p["out"]


def values_are_positive(p, x):
    return attend(heads(x @ p["q"]), heads(x @ p["k"]), heads(nn.relu(x @ p["v"]))) @ p["out"]


def query_has_a_residual(p, x):
    return attend(heads(x @ p["q"] + x), heads(x @ p["k"]), heads(x @ p["v"])) @ p["out"]


def mixed_by_head(p, x):
    """Heads are mixed behind the product: a column that the last layer reads holds other channels in other rows."""
    y = attend(*(heads(x @ p[name]) for name in "qkv"))
    return jnp.swapaxes(y.reshape(len(y), 5, HEADS, DEPTH), 1, 2).reshape(len(y), 5, WIDTH) @ p["out"]


@pytest.mark.parametrize(
    ("fun", "left"),
    [
        (rotary, {"v"}),
        (key_is_a_result, {"v"}),
        (keys_are_queries, {"v"}),
        (values_are_keys, set()),
        (context_is_normed, {"q", "k"}),
        (context_is_added, {"q", "k"}),
        (values_are_positive, {"q", "k"}),
        (query_has_a_residual, {"v"}),
        (mixed_by_head, {"q", "k"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_else_reads_or_changes_a_channel_keeps_it(fun, left):
    graph = simplified(fun, FOUR, X)
    factors = factors_of(graph, X)
    assert set(factors.outputs) == left
    assert set(factors.inputs) == ({"out"} if "v" in left else set())
    check_exact(graph, factors, X)


# ----------------------------------------------------------------------------------------------------- the whole state


@pytest.fixture(scope="module")
def refined():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 5, WIDTH)).astype(np.float32)
    qmodel = jaxq.quantize(plain, FOUR, [x], config=MSE)
    state = state_of(qmodel)
    samples = Samples.split(state.graph, [x])
    return qmodel, state, attention.refine(state, samples), samples


def test_it_lowers_the_error_where_channels_differ(refined):
    qmodel, state, found, samples = refined
    assert samples.error(found) < 0.7 * samples.error(state)
    x = images(16, 5, WIDTH, seed=3)
    exact = plain(FOUR, x)
    assert decibels(exact, model_from(found, qmodel)(x)) > decibels(exact, qmodel(x)) + 1.5


def test_thresholds_are_those_of_the_values_that_changed(refined):
    _, state, found, _ = refined
    changed = {name for name, qtype in found.choices.qtypes.items() if qtype.scale != state.choices.qtypes[name].scale}
    assert changed == {"q", "k", "v", "dot_general#2"}
    assert [tensor_of(group) for group in found.placement.scale_groups] == [
        tensor_of(group) for group in state.placement.scale_groups
    ]


def test_its_plan_means_the_rewritten_graph(refined):
    qmodel, _, found, _ = refined
    x = images(3, 5, WIDTH, seed=4)
    assert meaning.check(found.graph, found.placement, found.choices, found.config, x) == 6
    model = model_from(found, qmodel)
    assert list(differences(*probe(model.plan, len(x), (x,)))) == []


def test_what_was_chosen_for_a_layer_goes_with_it(refined):
    _, state, _, samples = refined
    factors = attention._factors(state.graph, samples.values(state.graph))
    bias, weight = np.linspace(-1, 1, WIDTH), (np.ones((WIDTH, WIDTH), np.int8), np.ones(WIDTH))
    given = state.choose(biases=dict.fromkeys(["q", "out"], bias), weights=dict.fromkeys(["k", "out"], weight))
    found = attention.refine(given, samples).choices
    np.testing.assert_array_equal(found.biases["q"], bias * factors.outputs["q"])
    np.testing.assert_array_equal(found.biases["out"], bias)
    assert found.weights == {}


def test_a_network_without_attention_stays_the_same():
    params = mlp_params(WIDTH, 8, 4)
    x = images(8, WIDTH)
    state = state_of(jaxq.quantize(mlp, params, [x], config=MSE))
    assert attention.refine(state, Samples.split(state.graph, [x])) is state
