"""place, lower and merge: which nodes are int8, what shares a scale, and that merging changes no bit."""

import cheap
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from networks import images, variables

import jaxq
from jaxq import passes
from jaxq.config import LayerRule, QuantConfig
from jaxq.graph.evaluate import evaluate
from jaxq.graph.trace import trace
from jaxq.passes.lower import lower
from jaxq.passes.merge import merge
from jaxq.passes.place import place
from jaxq.passes.scales import choices_of


def simplified(model, x):
    return passes.simplify(trace(model.apply, variables(model, x), (x,)).graph)


def ones(placement):
    return choices_of(placement, {group.name: 1.0 for group in placement.scale_groups})


def test_merging_changes_no_bit():
    x = images(3, 8, 8, 3)
    graph = simplified(networks.SmallCNN(), x)
    placement = place(graph, QuantConfig())
    apart = lower(graph, placement, ones(placement), QuantConfig())
    merged = merge(apart)
    convs = [[node for node in g.nodes if node.op == "conv"] for g in (apart, merged)]
    assert [len(c) for c in convs] == [12, 10]
    (wide,) = [node for node in convs[1] if "merged:3" in node.fused]
    branches = ",".join(f"ConvNorm_{i}/Conv_0" for i in (0, 2, 4))
    assert wide.name == f"SmallCNN/Inception_0/{{{branches}}}"
    assert wide.aval.shape[-1] == 8 + 4 + 4
    results = [cheap.jit(lambda params, g=g: evaluate(g.bind(3), params, [x])[0])(g.params) for g in (apart, merged)]
    np.testing.assert_array_equal(*results)


def test_branches_of_other_output_dtypes_stay_apart():
    def fun(params, x):
        y = x @ params["a"]
        return jnp.maximum(y, 0) @ params["c"], (x @ params["b"]) @ params["c"]

    params = {"a": images(6, 5), "b": images(6, 5, seed=1), "c": images(5, 4, seed=2)}
    qmodel = jaxq.quantize(fun, params, [images(8, 6)])
    assert not any(word.startswith("merged") for row in qmodel.summary().nodes for word in row.fused)


def test_concatenated_values_share_one_scale(small_cnn):
    rows = {row.name: row for row in small_cnn.qmodel.summary().nodes}
    concat = next(row for row in rows.values() if row.op == "concatenate")
    slices = next(row for name, row in rows.items() if name.endswith("Inception_0/ConvNorm_0/Conv_0/slice"))
    assert slices.scale == concat.scale == rows["SmallCNN/Inception_0/ConvNorm_1/Conv_0"].scale


def test_dtypes_follow_the_sign(small_cnn):
    graph = small_cnn.qmodel.plan.graph
    for node in graph.nodes:
        if node.op == "conv" and node.qtype is not None:
            expected = "uint8" if {"relu", "relu6"} & set(node.fused) else "int8"
            assert node.aval.dtype.name == node.qtype.dtype == expected


def test_a_float_island_between_int8_layers():
    def fun(params, x):
        return jnp.cumsum(x @ params["a"], -1) @ params["b"]

    qmodel = jaxq.quantize(fun, {"a": images(6, 5), "b": images(5, 4)}, [images(8, 6)])
    assert [(row.op, row.precision) for row in qmodel.summary().nodes] == [
        ("quantize", "int8"),
        ("dot", "int8"),
        ("cumsum", "float"),
        ("quantize", "int8"),
        ("dot", "int8"),
    ]


def test_a_value_read_in_float_and_in_int8_is_dequantized():
    def fun(params, x):
        y = jax.nn.relu(x @ params["a"])
        return jnp.tanh(y), y @ params["b"]

    qmodel = jaxq.quantize(fun, {"a": images(6, 5), "b": images(5, 4)}, [images(8, 6)])
    assert [row.op for row in qmodel.summary().nodes].count("dequantize") == 1


def test_a_residual_between_float_values_stays_float():
    """The stream of a transformer: layer norms read it in float, so that it is never rounded to int8."""

    def fun(params, x):
        x = x + jax.nn.standardize(x) @ params["a"]
        return jax.nn.standardize(x + jax.nn.standardize(x) @ params["b"])

    qmodel = jaxq.quantize(fun, {"a": images(6, 6), "b": images(6, 6, seed=1)}, [images(8, 6)])
    dots = [row for row in qmodel.summary().nodes if row.op == "dot"]
    assert [row.fused for row in dots] == [("residual",)] * 2
    assert all(row.dtypes == (("int8", "float32"), "float32") for row in dots)


def test_too_many_products_stay_in_float():
    limit = jaxq.numerics.max_terms(255 * 127)

    def fun(params, x):
        return (x @ params["wide"]) @ params["b"]

    params = {"wide": np.ones((limit + 1, 2), np.float32) / limit, "b": images(2, 4)}
    qmodel = jaxq.quantize(fun, params, [np.ones((2, limit + 1), np.float32)])
    wide = next(row for row in qmodel.summary().nodes if row.name == "wide")
    assert wide.precision == "float"
    assert "overflow" in wide.reason


def test_rules_keep_layers_in_float(small_cnn):
    graph = passes.simplify(trace(small_cnn.model.apply, small_cnn.variables, (small_cnn.x,)).graph)
    placement = place(graph, QuantConfig(rules=(LayerRule("Residual_0"), LayerRule("Residual_", quantize=False))))
    kept = {node.name for node in graph.nodes if node.op == "conv" and node not in placement.int8}
    assert kept == {f"SmallCNN/Residual_1/ConvNorm_{i}/Conv_0" for i in range(3)}


def test_values_that_a_float_layout_op_makes_have_scales_of_their_own():
    params = {"a": images(6, 5), "b": images(5, 4), "b7": images(7, 4), "cls": images(1, 5), "pos": images(3, 5)}
    x, tokens = images(8, 6), images(8, 2, 6)

    def class_token(p, x):
        start = jnp.broadcast_to(p["cls"], (x.shape[0], 1, 5))
        x = jnp.concatenate([start, x @ p["a"]], 1)
        return jax.nn.relu(x + jnp.broadcast_to(p["pos"], x.shape)) @ p["b"]

    cases = [
        (lambda p, x: jnp.pad(jax.nn.relu(x @ p["a"]), ((0, 0), (1, 1)), constant_values=-5.0) @ p["b7"], x),
        (lambda p, x: (x[:, :5] * 100).astype(bool).astype(jnp.float32) @ p["b"], x),
        (lambda p, x: (x[:, :5] * 100).astype(jnp.uint8).astype(jnp.int8).astype(jnp.float32) @ p["b"], np.abs(x)),
        (lambda p, x: jnp.minimum(jax.nn.relu(x @ p["a"]), -1.0) @ p["b"], x),
        (class_token, tokens),
    ]
    for fun, x in cases:
        exact, calibration = cheap.jit(fun)(params, x), jaxq.calibrate(fun, params, [x])
        for method in ("auto", "amax"):
            qmodel = jaxq.quantize(fun, params, calibration=calibration, config=QuantConfig(method=method))
            assert networks.decibels(exact, qmodel(x)) > 25


def test_a_rule_on_any_branch_of_a_concat_names_the_method_of_its_scale():
    def fun(params, x):
        parts = [jax.nn.relu(x @ params["a"]), jax.nn.relu(x @ params["b"])]
        return jnp.concatenate(parts, 1) @ params["c"]

    params = {"a": images(6, 5), "b": images(6, 5, seed=1), "c": images(10, 4)}
    for pattern in ("^a$", "^b$"):
        config = QuantConfig(method="mse", rules=(LayerRule(pattern, method="amax"),))
        assert jaxq.quantize(fun, params, [images(8, 6)], config=config).summary().methods == {"mse": 1, "amax": 1}


def test_rules_choose_how_weights_are_quantized():
    params = {name: images(6, 6, seed=seed) for seed, name in enumerate("abc")}
    rules = (LayerRule("^a$", weight_scales="tensor"), LayerRule("^b$", weight_method="mse"))
    graph = passes.simplify(trace(lambda p, x: x @ p["a"] @ p["b"] @ p["c"], params, (images(8, 6),)).graph)
    config = QuantConfig(rules=rules)
    placement = place(graph, config)
    int8 = lower(graph, placement, ones(placement), config)
    scales = {node.name: node.operand("weight").qtype.scale for node in int8.nodes if node.op == "dot"}
    largest = {name: np.abs(params[name]) for name in "abc"}
    np.testing.assert_array_equal(scales["a"], np.full(6, np.float64(largest["a"].max()) / 127))
    assert np.any(scales["b"] < largest["b"].max(axis=0) / 127)
    np.testing.assert_array_equal(scales["c"], largest["c"].max(axis=0).astype(np.float64) / 127)


def test_weights_of_four_bits_have_fifteen_levels_and_are_told_in_the_summary():
    params = {name: images(32, 32, seed=seed) / 6 for seed, name in enumerate("abc")}
    config = QuantConfig(weight_bits=4, weight_method="mse", rules=(LayerRule("^b$", weight_bits=8),))

    def fun(params, x):
        return jax.nn.relu(x @ params["a"]) @ params["b"] @ params["c"]

    x = images(64, 32)
    qmodel = jaxq.quantize(fun, params, [x], config=config)
    largest = {name: int(np.max(np.abs(np.asarray(qmodel.params[f"{name}/weight"])))) for name in "abc"}
    assert largest == {"a": 7, "b": largest["b"], "c": 7}
    assert largest["b"] > 100
    fused = {row.name: row.fused for row in qmodel.summary().nodes if row.op == "dot"}
    assert fused == {"a": ("weight:int4", "relu", "requantize"), "b": ("requantize",), "c": ("weight:int4",)}
    simulated = qmodel.origin.simulated.levels(qmodel.origin.choices, config).weights
    assert all(len(np.unique(channel)) <= 2 * largest[name] + 1 for name in "abc" for channel in simulated[name])
    assert networks.decibels(fun(params, x), qmodel(x)) > 13


def test_only_layers_with_weights_of_as_many_bits_merge():
    params = {name: images(8, 8, seed=seed) for seed, name in enumerate("abc")}
    config = QuantConfig(weight_bits=4, rules=(LayerRule("^b$", weight_bits=8),))
    fun = lambda params, x: tuple(x @ params[name] for name in "abc")  # noqa: E731
    rows = jaxq.quantize(fun, params, [images(8, 8)], config=config).summary().nodes
    fused = {row.name: row.fused for row in rows if row.op == "dot"}
    assert fused == {"{a,c}": ("weight:int4", "merged:2"), "b": ()}


@pytest.mark.parametrize(
    "choice",
    [
        *({"weight_method": "entropy"}, {"weight_method": 3}, {"weight_scales": "row"}),
        *({"weight_bits": 2}, {"weight_bits": 4.0}, {"weight_bits": "4"}, {"weight_bits": True}),
    ],
)
def test_unknown_choices_for_weights_are_named(choice):
    ((name, value),) = choice.items()
    for make in (QuantConfig, lambda **c: LayerRule("x", **c)):
        with pytest.raises(jaxq.UnsupportedError, match=f"{name}={value!r} is not known; take one of"):
            make(**choice)
