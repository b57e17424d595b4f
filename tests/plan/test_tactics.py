"""Kernels that are tried beside the default: those that fail are known by why, the fastest is kept and obeyed."""

import jax
import made_up
import numpy as np
import pytest
from networks import images

import jaxq
from jaxq import backends
from jaxq.backends import cpu, pallas
from jaxq.backends.tactics import CPU, XLA, Tactic, mark, of
from jaxq.graph.node import ANCHORS
from jaxq.plan import tactics, tune
from jaxq.plan.artifact import PLAN_FILE
from jaxq.plan.timing import TimingCache

WEIGHTS = {"a": images(3, 3, 3, 8, seed=1), "b": images(8, 5, seed=2)}
X = images(4, 8, 8, 3)
OTHER = Tactic("pallas", "another")
CONFIG = jaxq.QuantConfig(method="mse")

needs_kernels = pytest.mark.skipif(cpu.available() is not None, reason="needs the CPU library")


def network(params, x):
    dimensions = ("NHWC", "HWIO", "NHWC")
    x = jax.nn.relu(jax.lax.conv_general_dilated(x, params["a"], (1, 1), "SAME", dimension_numbers=dimensions))
    return x.mean((1, 2)) @ params["b"]


def tuned():
    return jaxq.quantize(network, WEIGHTS, [X], config=CONFIG, tune="fast")


@pytest.fixture
def plain():
    return jaxq.quantize(network, WEIGHTS, [X], config=CONFIG)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXQ_CACHE_DIR", str(tmp_path))


@pytest.fixture
def another(monkeypatch):
    """Makes a further tactic of every product, computed by XLA and then by a function of the result; returns the names
    of the nodes that were."""
    right, candidates = backends.choose, backends.candidates

    def make(function):
        used = []

        def choose(node):
            run = right(node)
            if of(node) != OTHER:
                return run

            def other(*operands):
                used.append(node.name)
                return function(run(*operands))

            return other

        def more(node):
            return (CPU, OTHER, XLA) if candidates(node) else ()

        monkeypatch.setattr(backends, "choose", choose)
        monkeypatch.setattr(backends, "candidates", more)
        monkeypatch.setattr(backends, "gather", lambda graph: graph)
        monkeypatch.setattr(backends, "prepare", lambda graph, params: dict(params))
        return used

    return make


def fails(result):
    raise NotImplementedError("no such kernel\nand much more")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda y: y.at[..., 0].add(1), "its bits differ from XLA's, in "),
        (fails, "NotImplementedError: no such kernel"),
    ],
)
def test_a_tactic_that_fails_is_left_out_and_known_by_why(another, monkeypatch, function, reason):
    used = another(function)
    monkeypatch.setattr(tune, "fastest", lambda calls, seconds: dict.fromkeys(calls, 1.0))
    qmodel = tuned()
    failures = qmodel.summary().tuning.failures
    assert {what.partition(" ")[0] for what in failures} == {"conv", "dot"}
    assert all(what.endswith(f"by {OTHER}") and why.startswith(reason) for what, why in failures.items())
    assert not any("another" in row.tactic for row in qmodel.summary().nodes)
    assert f"by {OTHER}: {reason}" in str(qmodel.summary())
    used.clear()
    assert tuned().summary().tuning.failures == failures
    assert not used  # it was not tried again


def test_the_fastest_is_kept_and_obeyed(another, plain, monkeypatch, tmp_path):
    used = another(lambda y: y)
    made_up.set_times(monkeypatch, lambda what: 1e-4 if what.endswith("by pallas another") else 1e-3, {"int8": 1.0})
    qmodel = tuned()
    assert {row.name for row in qmodel.summary().nodes if row.tactic == "pallas another"} == {"a", "b"}
    assert "tactic" in str(qmodel.summary()).splitlines()[0]
    np.testing.assert_array_equal(qmodel(X), plain(X))
    assert set(used) == {"a", "b"}

    qmodel.save(tmp_path / "net.jaxq")
    used.clear()
    loaded = jaxq.load(tmp_path / "net.jaxq")
    assert loaded.summary() == qmodel.summary()
    np.testing.assert_array_equal(loaded(X), plain(X))
    assert set(used) == {"a", "b"}

    monkeypatch.setattr(tactics, "device_label", lambda: "another device")
    used.clear()
    np.testing.assert_array_equal(jaxq.load(tmp_path / "net.jaxq")(X), plain(X))
    assert not used


def test_the_default_where_the_network_is_not_faster(another, monkeypatch):
    used = another(lambda y: y)
    times = {"int8": 2.0, "int8, default tactics": 1.0}
    made_up.set_times(monkeypatch, lambda what: 1e-4 if what.endswith("by pallas another") else 1e-3, times)
    qmodel = tuned()
    assert qmodel.summary().tuning.chosen == "int8, default tactics"
    assert not any(row.tactic for row in qmodel.summary().nodes)
    qmodel(X)
    assert not used


def test_another_has_to_be_faster_by_more_than_chance(another, monkeypatch):
    another(lambda y: y)
    made_up.set_times(monkeypatch, lambda what: 0.97e-3 if what.endswith("by pallas another") else 1e-3, {"int8": 1.0})
    assert tuned().plan.tactics.by_name == {}


def test_another_where_the_default_fails(another, plain):
    """Of a node alone: its default tactic is known to fail, that of all others not."""
    another(lambda y: y)
    node = next(node for node in plain.plan.graph.nodes if node.op == "dot")
    cache = TimingCache()
    default, *others = tactics.rivals(node, 4, patient=False)
    cache.fail(default, "it does not compile")
    for what in others:
        cache.put(what, 1.0)
    assert tactics.fastest(node, 4, cache) == (OTHER, 1.0)


@needs_kernels
def test_a_node_that_xla_computes_stands_between_two_regions(monkeypatch, plain, tmp_path):
    layers = {str(i): images(8, 8, seed=i) for i in range(3)}

    def mlp(params, x):
        for weight in params.values():
            x = jax.nn.relu(x @ weight)
        return x

    x = images(4, 8)
    whole = jaxq.quantize(mlp, layers, [x], config=CONFIG)
    qmodel = whole.with_tactics(tactics.Tactics(tactics.device_label(), {"1": XLA}))
    assert [node.op for node in whole.plan.gathered.nodes].count("region") == 1
    assert [node.op for node in qmodel.plan.gathered.nodes].count("region") == 2
    qmodel.save(tmp_path / "net.jaxq")
    loaded = jaxq.load(tmp_path / "net.jaxq")
    for model in (qmodel, loaded):
        np.testing.assert_array_equal(model(x), whole(x))
        np.testing.assert_array_equal(model(x[0]), whole(x)[0])


@needs_kernels
@pytest.mark.parametrize(("border", "expected"), [(1e-4, {"a": XLA, "b": XLA}), (6e-4, {})])
def test_xla_where_it_gains_more_than_a_border_costs(monkeypatch, border, expected):
    def alone(what):
        return border if what.startswith("a call of") else 5e-4 if what.endswith("by xla") else 1e-3

    made_up.set_times(monkeypatch, alone, {"int8": 1.0})
    assert tuned().plan.tactics.by_name == expected


def test_a_kernel_config(monkeypatch, plain):
    """The kernel is lowered with the config that the text is of; with the default where these shapes have none such."""
    bound = plain.plan.graph.bind(4)
    (conv,) = (node for node in bound.nodes if node.op == "conv")
    candidates = pallas.candidates(conv)
    lowered = []
    right = pallas.lower
    monkeypatch.setattr(pallas, "lower", lambda node, tactic=None: lowered.append(tactic) or right(node, tactic))

    def lower(config):
        marked = mark(bound, {conv.name: Tactic("pallas", config)})
        (node,) = (node for node in marked.nodes if node.op == "conv")
        operands = [jax.ShapeDtypeStruct(source.aval.shape, source.aval.dtype) for source in node.inputs]
        jax.jit(backends.choose(node)).trace(*operands).lower(lowering_platforms=("cuda",))
        return lowered.pop()

    assert lower(str(candidates[-1])) == candidates[-1] != candidates[0]
    assert lower("Config(of=another_version)") is None


@pytest.mark.parametrize(
    "by_name",
    [{"a": ["rm -rf", ""]}, {"nothing": ["xla", ""]}, {"a": ["xla"]}, {"a": "xla"}, ["a"], {"a/quantize": ["xla", ""]}],
)
def test_a_file_with_tactics_that_are_none(plain, tmp_path, by_name):
    path = tmp_path / "net.jaxq"
    plain.with_tactics(tactics.Tactics("a device", {"a": XLA})).save(path)
    header, arrays = PLAN_FILE.read(path)
    assert header["tactics"] == {"device": "a device", "by_name": {"a": ["xla", ""]}}
    header["tactics"]["by_name"] = by_name
    PLAN_FILE.write(path, {key: value for key, value in header.items() if key not in ("schema", "sha256")}, arrays)
    with pytest.raises(jaxq.PlanError, match="the plan does not decode"):
        jaxq.load(path)


def test_products_have_candidates(plain):
    found = {node.name: backends.candidates(node) for node in plain.plan.graph.bind(4).nodes}
    products = {node.name for node in plain.plan.graph.nodes if node.op in ANCHORS}
    assert {name for name, tactics in found.items() if tactics} == products
    assert all(tactics[-1] == XLA for name, tactics in found.items() if name in products)
