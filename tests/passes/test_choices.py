"""Scales by channel and zero points: they change what integers stand for, and nothing of what is computed with them."""

from dataclasses import replace

import everywhere
import flax.linen as nn
import jax
import jax.numpy as jnp
import meaning
import numpy as np
import pytest
from chosen import by_channel, model_from, state_of
from generated import networks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax
from networks import decibels, images, variables

import jaxq
from jaxq import passes
from jaxq.config import QuantConfig
from jaxq.graph.node import WEIGHTED
from jaxq.graph.trace import trace
from jaxq.numerics import BOUNDS, fake_quantize
from jaxq.passes import place as place_module
from jaxq.passes.accumulating import scaled
from jaxq.passes.lower import lower
from jaxq.passes.place import place
from jaxq.passes.scales import choices_of
from jaxq.refine.channels import groups
from jaxq.refine.state import State

CONFIG = QuantConfig()


def placed(fun, params, x, threshold=4.0):
    """The state of a function whose thresholds are all the same."""
    graph = passes.simplify(trace(fun, params, (x,)).graph)
    placement = place(graph, CONFIG)
    thresholds = {group.name: threshold for group in placement.scale_groups}
    return State(graph, placement, choices_of(placement, thresholds), CONFIG)


# ------------------------------------------------------------------------------------- what each node's integers mean


def check_meaning(network, seed, with_channels):
    state = placed(network.fun, network.params, network.x, threshold=3.0)
    choices = by_channel(state, np.random.default_rng(seed)) if with_channels else state.choices
    meaning.check(state.graph, state.placement, choices, CONFIG, network.x)


@settings(max_examples=3, derandomize=True, suppress_health_check=list(HealthCheck))
@given(networks(max_layers=4), st.integers(0, 2**16), st.booleans())
def test_every_node_is_the_float_node_on_what_its_integers_stand_for(network, seed, with_channels):
    """Of drawn networks: with zero points behind skewed functions, and with scales by channel where these may be."""
    check_meaning(network, seed, with_channels)


@pytest.mark.slow
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(networks(), st.integers(0, 2**16), st.booleans())
def test_every_node_of_100_networks(network, seed, with_channels):
    check_meaning(network, seed, with_channels)


class Chain(nn.Module):
    """Convolutions of all kinds, strided, dilated and padded with zeros, relu and relu6, a max pool, dense layers."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu6(nn.Conv(16, (3, 3), strides=2, name="stem")(x))
        x = nn.relu6(nn.Conv(16, (3, 3), feature_group_count=16, kernel_dilation=2, name="depthwise")(x))
        x = nn.Conv(24, (1, 1), name="pointwise")(x)
        x = nn.relu(nn.Conv(16, (3, 3), feature_group_count=4, name="groups")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        x = nn.relu(nn.Conv(20, (2, 2), name="behind_pool")(x))
        x = nn.Dense(12, name="dense")(x.mean((1, 2)))
        return nn.Dense(5, name="head")(x)


@pytest.fixture(scope="module")
def chain():
    x = images(4, 13, 12, 3)
    return jaxq.quantize(Chain(), variables(Chain(), x), [x], config=QuantConfig(method="mse"))


def test_which_values_may_have_scales_by_channel(chain):
    """All that convolutions and dots read; not what only a mean reads, to no use."""
    found = {group.name.removeprefix("Chain/") for group, _ in groups(state_of(chain))}
    assert found == {"input", "stem", "depthwise", "pointwise", "groups", "reduce_sum", "dense"}


def test_scales_by_channel_through_every_op_of_a_chain(chain):
    state = state_of(chain)
    choices = by_channel(state, np.random.default_rng(0))
    x = images(3, 13, 12, 3, seed=1)
    assert meaning.check(state.graph, state.placement, choices, state.config, x) == 8


def test_relu6_bounds_follow_the_channels_scales(chain):
    state = state_of(chain)
    choices = by_channel(state, np.random.default_rng(0))
    lowered = {node.name: node for node in lower(state.graph, state.placement, choices, state.config).nodes}
    for name in ("Chain/stem", "Chain/depthwise"):
        expected = np.minimum(6 / choices.qtypes[name].scale, 255).astype(np.float32)
        np.testing.assert_array_equal(lowered[name].operand("hi").value, expected)
        assert len(np.unique(expected)) > 5


def test_scales_by_channel_are_the_same_bits_everywhere(chain, tmp_path):
    state = state_of(chain)
    chosen = replace(state, choices=by_channel(state, np.random.default_rng(0)))
    everywhere.check(model_from(chosen, chain), images(3, 13, 12, 3, seed=1), tmp_path)


# ------------------------------------------------------------- scales by channel are those of a rescaled float network

CHANNELS = 8


@st.composite
def chains(draw):
    """A function of convolutions and dense layers with relu or nothing between them, its parameters and an x."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    params, steps, width = {}, [], 3
    for i in range(draw(st.integers(2, 4))):
        groups = draw(st.sampled_from([1, width, 4] if width == CHANNELS else [1]))
        features = draw(st.sampled_from([CHANNELS, 2 * CHANNELS])) if groups != width or width == 1 else width
        kernel = draw(st.sampled_from([(1, 1), (3, 3), (2, 3)]))
        geometry = {
            "window_strides": draw(st.sampled_from([(1, 1), (2, 1)])),
            "padding": draw(st.sampled_from(["SAME", "VALID", ((2, 0), (1, 3))])),
            "rhs_dilation": draw(st.sampled_from([(1, 1), (1, 2)])),
            "feature_group_count": groups,
        }
        params[f"conv{i}"] = rng.normal(size=(*kernel, width // groups, features)).astype(np.float32)
        params[f"bias{i}"] = rng.normal(size=features).astype(np.float32)
        steps.append((geometry, draw(st.sampled_from(["none", "relu", "max pool"]))))
        width = CHANNELS if features == CHANNELS else features
    for name, shape in (("dense", (width, 12)), ("head", (12, 4))):
        params[name] = rng.normal(size=shape).astype(np.float32)

    def fun(params, x):
        for i, (geometry, then) in enumerate(steps):
            x = lax.conv_general_dilated(x, params[f"conv{i}"], **geometry, dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = x + params[f"bias{i}"]
            if then != "none":
                x = jax.nn.relu(x)
            if then == "max pool":
                x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "SAME")
        return jax.nn.relu(x @ params["dense"]) @ params["head"]

    return fun, params, rng.normal(size=(2, 9, 11, 3)).astype(np.float32), rng


def rescaled(state, ratios):
    """The float graph with each value's channels divided by their ratios, and the weights that read them multiplied."""
    readers = {reader.name: group.name for group, of in groups(state) for reader in of}

    def change(node):
        if node.name in ratios:
            node = scaled(node, 1 / ratios[node.name])
        if readers.get(node.name) in ratios:
            weight = node.operand("weight")
            value = weight.value * meaning.by_input(node, ratios[readers[node.name]])
            operands = dict(zip(node.roles, node.inputs, strict=True))
            return node.with_operands(operands | {"weight": weight.with_attrs(value=value.astype(np.float32))})
        return node

    return state.graph.map(change)


def both_ways(case, draw_ratio):
    """Every conv and dot with scales by channel, beside the same of the rescaled network with one scale a value."""
    fun, params, x, rng = case
    state = placed(fun, params, x)
    inner = [group for group, _ in groups(state) if group.sources[0].op in WEIGHTED]
    assert inner
    ratios = {group.name: draw_ratio(rng, group.sources[0].aval.shape[-1]) for group in inner}
    before, config = state.choices.qtypes, state.config

    def lowered(graph, placement, **qtypes):
        return lower(graph, placement, replace(state.choices, qtypes=before | qtypes), config)

    def qtype(name, factor):
        return replace(before[name], scale=before[name].scale * factor)

    one = lowered(state.graph, state.placement, **{name: qtype(name, ratio) for name, ratio in ratios.items()})
    graph = rescaled(state, {name: ratio / ratio.max() for name, ratio in ratios.items()})
    largest = {name: qtype(name, ratio.max()) for name, ratio in ratios.items()}
    other = lowered(graph, place(graph, config), **largest)
    named = {node.name: node for node in other.nodes}
    pairs = [(node, named[node.name]) for node in one.nodes if node.op in WEIGHTED]
    assert len(pairs) >= 4
    return pairs


@settings(max_examples=8)
@given(chains())
def test_by_powers_of_two_the_plans_are_the_same_bits(case):
    pairs = both_ways(case, lambda rng, n: np.exp2(rng.integers(-4, 5, n)))
    for a, b in pairs:
        for role in ("weight", "multiplier", "bias", "lo", "hi"):
            np.testing.assert_array_equal(a.operand(role).value, b.operand(role).value, err_msg=f"{a.name} {role}")


@settings(max_examples=8)
@given(chains())
def test_by_any_ratios_the_plans_are_the_same_but_for_float_rounding(case):
    """A weight that lies between two levels may be rounded to either: the float network's are rounded to float32."""
    pairs = both_ways(case, lambda rng, n: np.exp(rng.uniform(-2, 2, n)))
    for a, b in pairs:
        ours, theirs = (node.operand("weight").value.astype(int) for node in (a, b))
        assert np.sum(ours != theirs) <= 1 and np.max(np.abs(ours - theirs)) <= 1
        for role in ("multiplier", "bias", "lo", "hi"):
            np.testing.assert_allclose(a.operand(role).value, b.operand(role).value, rtol=2**-21, err_msg=role)


# --------------------------------------------------------------------------------------------------------- zero points


class Skewed(nn.Module):
    """A skewed function between convolutions with "SAME" padding, strided, dilated and depthwise, a max pool, branches
    side by side, a residual, a mean, and dense layers."""

    activation: str

    @nn.compact
    def __call__(self, x):
        act = {"gelu": nn.gelu, "silu": nn.silu, "hard_swish": nn.hard_swish}[self.activation]
        x = act(nn.Conv(16, (3, 3), strides=2, name="stem")(x))
        x = act(nn.Conv(16, (3, 3), kernel_dilation=2, name="dilated")(x))
        y = act(nn.Conv(16, (3, 3), feature_group_count=16, name="depthwise")(x))
        x = nn.Conv(16, (1, 1), name="pointwise")(y) + x
        x = act(nn.Conv(16, (2, 2), strides=2, name="even")(act(nn.Conv(16, (1, 1), name="wide")(x))))
        x = nn.max_pool(x, (2, 2), (1, 1), "SAME")
        x = jnp.concatenate([act(nn.Conv(8, (3, 3), name=name)(x)) for name in ("left", "right")], -1)
        x = act(nn.Conv(24, (1, 1), name="last")(x)).mean((1, 2))
        return nn.Dense(5, name="head")(act(nn.Dense(24, name="dense")(x)))


ACTIVATIONS = ("gelu", "silu", "hard_swish")


@pytest.fixture(
    scope="module", params=["silu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gelu", "hard_swish"))]
)
def skewed(request):
    model, x = Skewed(request.param), images(4, 15, 14, 3)
    params = variables(model, x)
    return model, params, jaxq.quantize(model, params, [x], config=QuantConfig(method="mse"))


def test_values_behind_skewed_functions_have_zero_points(skewed):
    _, _, qmodel = skewed
    found = {name for name, qtype in qmodel.origin.choices.qtypes.items() if qtype.zero_point}
    assert len(found) == 8
    assert all(0 < qtype.zero_point < 128 for qtype in qmodel.origin.choices.qtypes.values() if qtype.zero_point)


def test_zero_points_change_no_meaning(skewed):
    """Padding, strides, dilation, residuals, pools and means with them."""
    _, _, qmodel = skewed
    state = state_of(qmodel)
    x = images(3, 15, 14, 3, seed=1)
    assert meaning.check(state.graph, state.placement, state.choices, state.config, x) >= 20


def test_zero_points_are_the_same_bits_everywhere(skewed, tmp_path):
    everywhere.check(skewed[-1], images(3, 15, 14, 3, seed=1), tmp_path)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_zero_points_are_nearer_than_one_bit_for_the_sign(activation, monkeypatch):
    """By nearly that bit, 6 dB, for the values; the results have the errors of what is read and of the table, too."""
    function, x = getattr(nn, activation), images(512, 32)
    params = {"a": images(32, 64) / 6, "b": images(64, 8)}

    def fun(params, x):
        return function(x @ params["a"]) @ params["b"]

    def model():
        return jaxq.quantize(fun, params, [x], config=QuantConfig(method="mse"))

    def rounded(qmodel):
        qtype = qmodel.origin.choices.qtypes[name]
        lowest, highest = BOUNDS[qtype.dtype]
        return fake_quantize(values, qtype.scale, np.float32(qtype.zero_point), lowest=lowest, highest=highest)

    values, exact = function(x @ params["a"]), fun(params, x)
    monkeypatch.setattr(place_module, "_takes_floor", lambda *_: False)  # what the function reads is as it was
    with_zero_point = model()
    monkeypatch.setattr(place_module, "_takes_zero_point", lambda user, node: False)
    symmetric = model()
    name = next(node.name for node in symmetric.origin.graph.nodes if node.op == "elementwise")
    assert not any(qtype.zero_point for qtype in symmetric.origin.choices.qtypes.values())
    assert decibels(values, rounded(with_zero_point)) > decibels(values, rounded(symmetric)) + 4
    assert decibels(exact, with_zero_point(x)) > decibels(exact, symmetric(x)) + 0.5
