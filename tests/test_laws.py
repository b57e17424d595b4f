"""What every transform keeps, on networks that hypothesis generates."""

from functools import partial
from types import SimpleNamespace

import cheap
import jax
import numpy as np
import pytest
from generated import Network, networks
from hypothesis import HealthCheck, given, seed, settings

from jaxq import backends, load, passes
from jaxq.config import QuantConfig
from jaxq.graph.evaluate import evaluate
from jaxq.graph.node import WEIGHTED, Graph, Node
from jaxq.graph.trace import trace
from jaxq.graph.verify import verify
from jaxq.passes.lower import lower
from jaxq.passes.merge import merge
from jaxq.passes.parameters import name_parameters
from jaxq.passes.place import place
from jaxq.passes.scales import choices_of
from jaxq.plan.plan import Plan
from jaxq.qmodel import QuantizedModel
from jaxq.report import Summary, rows

CONFIG = QuantConfig()
# The same networks at every run: what a run finds, the next one finds too.
draws = partial(settings, derandomize=True, suppress_health_check=list(HealthCheck))


def rewritten(network: Network) -> SimpleNamespace:
    """The network at every stage: traced, simplified, lowered, merged."""
    traced = trace(network.fun, network.params, (network.x,))
    simple = verify(passes.simplify(traced.graph), "float")
    placement = place(simple, CONFIG)
    thresholds = {group.name: 4.0 for group in placement.scale_groups}
    lowered = verify(name_parameters(lower(simple, placement, choices_of(placement, thresholds), CONFIG)), "quantized")
    merged = verify(passes.quantize(simple, placement, choices_of(placement, thresholds), CONFIG), "quantized")
    return SimpleNamespace(traced=traced, simple=simple, lowered=lowered, merged=merged)


def structure(graph: Graph) -> list[tuple]:
    """All that tells one graph from another: the nodes in order, their edges, and the bytes of their constants."""
    index = {node: i for i, node in enumerate((*graph.inputs, *graph.nodes))}

    def plain(node: Node) -> tuple:
        attrs = {key: _bytes(value) if key == "value" else str(value) for key, value in node.attrs.items()}
        edges = tuple(index[source] for source in node.inputs)
        return node.op, node.name, str(node.aval), node.roles, edges, node.fused, tuple(sorted(attrs.items()))

    return [plain(node) for node in graph.nodes] + [tuple(index[node] for node in graph.outputs)]


def _bytes(value: object) -> str:
    return np.asarray(value).tobytes().hex()


def check_rewrites(network: Network) -> None:
    """Needs no int8 arithmetic: exact rewrites, names, idempotence."""
    stages = rewritten(network)
    bound = stages.simple.bind(len(network.x))

    @cheap.jit
    def both(params, simple, x):
        return network.fun(params, x), evaluate(bound, simple, [x])[0]

    expected, actual = map(np.asarray, both(network.params, bound.params, network.x))
    # The error relative to the largest magnitude of the output, or of inputs and weights (about one): a smaller
    # output is what a sum that cancelled left over (of which a relu may let through the least element alone).
    unit = max(np.max(np.abs(expected), initial=0), 1.0)
    assert np.max(np.abs(actual - expected), initial=0) <= 1e-5 * unit

    again = verify(passes.simplify(stages.simple), "float")
    assert structure(again) == structure(stages.simple)
    assert structure(merge(stages.merged)) == structure(stages.merged)

    known = {node.name for node in stages.traced.graph.nodes}
    for node in stages.simple.nodes:
        head = node.name.rsplit("/", 1)[0]
        assert node.is_constant or node.name in known or head in known, f"{node.name} is the name of no layer"
    larger = trace(network.fun, network.params, (np.concatenate([network.x] * 2),)).graph
    assert [node.name for node in larger.nodes] == [node.name for node in stages.traced.graph.nodes]


def check_int8(network: Network, tmp_path=None) -> bool:
    """Runs the int8 graph; True where it has no float dot or conv."""
    stages = rewritten(network)
    graph = stages.merged
    summary = Summary(rows(graph), 0, 0, stages.traced.fixed_because, {}, ())
    plan = Plan(graph, stages.traced.in_tree, stages.traced.out_tree, summary)
    qmodel = QuantizedModel(graph.params, plan)
    x = network.x
    result = np.asarray(qmodel(x))
    # What is in float is rounded as XLA compiles it.
    oracle = jax.jit(lambda params, x: plan.evaluate(params, (x,)))(qmodel.params, x)
    np.testing.assert_array_equal(result, oracle)
    apart = stages.lowered.bind(len(x))
    unmerged = jax.jit(lambda params, x: evaluate(apart, params, [x], backends.choose))(apart.params, x)
    np.testing.assert_array_equal(result, unmerged[0])
    if tmp_path is not None:
        qmodel.save(tmp_path / "net.jaxq")
        np.testing.assert_array_equal(result, load(tmp_path / "net.jaxq")(x))
    in_float = {"dot_general", "conv_general_dilated"}
    exact = not any(n.op in in_float or (n.op in WEIGHTED and "multiplier" not in n.roles) for n in graph.nodes)
    if exact and stages.traced.fixed_because is None:
        np.testing.assert_array_equal(result, jax.vmap(qmodel)(x))
        np.testing.assert_array_equal(result[:2], qmodel(x[:2]))
    return exact


@draws(max_examples=8)
@given(networks())
def test_rewrites_are_exact_named_and_idempotent(network):
    check_rewrites(network)


@draws(max_examples=3)
@given(networks(max_layers=4))
def test_int8_is_the_oracle_at_every_batch_size(network):
    check_int8(network)


@draws(max_examples=2)
@given(networks(max_layers=4))
def test_a_saved_network_gives_the_same_bits(tmp_path_factory, network):
    check_int8(network, tmp_path_factory.mktemp("saved"))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_500_networks(part, tmp_path_factory):
    @seed(part)
    @settings(max_examples=25, database=None, suppress_health_check=list(HealthCheck))
    @given(networks())
    def check(network):
        check_rewrites(network)
        check_int8(network, tmp_path_factory.mktemp("saved"))

    check()
