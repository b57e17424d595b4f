"""One pass over the batches: what it keeps does not hang on their order or sizes, nor on interruptions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import images

import jaxq
from jaxq import backends
from jaxq.calibration import observe
from jaxq.calibration.batches import Batches
from jaxq.calibration.observe import merged, observe_all
from jaxq.calibration.samples import Samples
from jaxq.calibration.step import Steps
from jaxq.errors import CalibrationError
from jaxq.graph.trace import trace

X = images(23, 6)

# Of other sizes, a ragged last one, and some that come more than once.
STREAM = [X[:4], X[4:8], X[:4], X[8:9], X[4:8], X[:4], X[9:23]]


def relu(params, x):
    """Exact at every batch size, as the last bits of tanh or of a dot are not."""
    return jnp.maximum(x, 0)


RELU = trace(relu, {}, (X,)).graph


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch):
    """What counts the values of one graph is compiled once for all tests."""
    monkeypatch.setattr(observe, "Steps", lambda graph, floors, *rest: steps(graph, tuple(floors.items()), *rest))


@functools.cache
def steps(graph, floors, kernels, mesh):
    return Steps(graph, dict(floors), kernels, mesh)


def one_pass(batches, num_samples=5, fun=relu, **options):
    """Observes every value of the function."""
    batches = Batches(batches)
    graph = RELU if fun is relu else trace(fun, {}, batches.signature.args).graph
    nodes = [node for node in (*graph.inputs, *graph.nodes) if not node.is_constant and node.aval.is_float]
    observed = dict.fromkeys(nodes, -np.inf)
    return observe_all(graph, observed, batches, num_samples, kernels=backends.calibration(), **options)


def assert_same_counts(ours, theirs):
    assert ours.num_examples == theirs.num_examples
    assert ours.histograms.keys() == theirs.histograms.keys()
    jax.tree.map(np.testing.assert_array_equal, dict(ours.histograms), dict(theirs.histograms))


def assert_same(ours, theirs):
    assert_same_counts(ours, theirs)
    assert ours.digests == theirs.digests
    jax.tree.map(np.testing.assert_array_equal, ours.samples, theirs.samples)
    for one, other in zip(ours.snapshots, theirs.snapshots, strict=True):
        assert_same_counts(one, other)


@pytest.mark.parametrize(
    "batches",
    [[X[4:5], X[5:23], X[:4]], [X[i : i + 5] for i in range(0, 23, 5)], [X[:0], X[:12], X[:0], X[12:], X[:0]]],
    ids=["other sizes", "ragged last", "empty among them"],
)
def test_counts_and_samples_do_not_depend_on_order_and_chunks(batches):
    one, many = one_pass([X]), one_pass(batches)
    assert_same_counts(one, many)
    assert one.histograms.keys() == {"input", "max"}
    assert many.histograms["input"].to_numpy().counts.sum() == X.size
    np.testing.assert_array_equal(one.samples[0], many.samples[0])


def test_samples_are_copies():
    (samples,) = one_pass([X]).samples
    assert samples.shape == (5, 6)
    assert samples.base is None or samples.base.shape[0] == 5  # no view of a whole batch


def test_an_example_that_comes_twice_is_counted_twice_and_kept_once():
    statistics = one_pass([X[:3], X[:3]])
    assert statistics.num_examples == 6
    assert statistics.histograms["input"].to_numpy().counts.sum() == 2 * X[:3].size
    assert statistics.samples[0].shape == (3, 6)


def test_no_samples_are_kept_unless_asked_for():
    assert one_pass([X], num_samples=0).samples == ()


def test_batches_are_read_once():
    reads = []

    def generator():
        for i in range(3):
            reads.append(i)
            yield images(2, 6, seed=i)

    one_pass(generator())
    assert reads == [0, 1, 2]


def test_several_arguments_of_which_one_has_no_batch_axis():
    def fun(params, scale, x, y):
        return jnp.maximum(x, y) * scale

    scale = np.float32(2)
    one = one_pass([(scale, X, -X)], fun=fun)
    many = one_pass([(scale, X[:20], -X[:20]), (scale, X[20:], -X[20:])], fun=fun)
    assert [leaf.shape for leaf in many.samples] == [(), (5, 6), (5, 6)]
    jax.tree.map(np.testing.assert_array_equal, one.samples, many.samples)
    for name in ("input/1", "input/2", "max", "mul"):
        jax.tree.map(np.testing.assert_array_equal, one.histograms[name], many.histograms[name])


def test_arguments_of_unequal_batches():
    with pytest.raises(CalibrationError, match=r"batch 1.*\(2, 6\) where the others make it \(3, 6\)"):
        one_pass([(X, X), (X[:3], X[:2])], fun=lambda params, x, y: x + y)


def test_a_fixed_batch_is_one_example():
    def fun(params, x):
        return jnp.maximum(x, 0) if x.shape[0] == 4 else x

    statistics = one_pass([X[:4], X[4:8], X[:4]], fun=fun)
    assert statistics.num_examples == 3
    assert statistics.samples[0].shape == (4, 6)


# ------------------------------------------------------------------------------------------------- zeros and constants


def test_zeros():
    host = one_pass([np.zeros_like(X)]).histograms["max"].to_numpy()
    assert (host.zeros, host.counts.sum(), host.amax) == (X.size, 0, 0.0)


def test_a_constant():
    host = one_pass([np.full_like(X, 3)]).histograms["max"].to_numpy()
    assert (host.zeros, host.counts.max(), host.amax) == (0, X.size, 3.0)


def test_a_value_that_only_the_last_batch_makes_nonzero():
    host = one_pass([-np.abs(X), -np.abs(X), X]).histograms["max"].to_numpy()
    assert host.counts.sum() == np.count_nonzero(X > 0)
    assert host.zeros == 3 * X.size - host.counts.sum()
    assert host.amax == X.max()


# --------------------------------------------------------------------------------------------------------- NaN and Inf


def log_of_half(params, x):
    return jnp.maximum(jnp.log(x * 0.5), 0)


NAN = np.where(np.arange(6) == 2, np.float32("nan"), X)


@pytest.mark.parametrize(
    ("fun", "batches", "message"),
    [
        (log_of_half, [abs(X), X], "batch 1: layer 'log' makes NaN; the batch itself holds neither NaN nor Inf"),
        (log_of_half, [abs(X), 0 * X], "batch 1: layer 'log' makes Inf; the batch itself"),
        (relu, [X, X, NAN], "batch 2, argument 0: 23 of its 138 values are NaN or Inf"),
        (relu, [NAN], "batch 0, argument 0: 23 of"),
        (lambda params, x, y: x + y["a"], [(X, {"a": X}), (X, {"a": NAN})], r"batch 1, argument 1\['a'\]: 23 of"),
    ],
    ids=["layer's NaN", "layer's Inf", "input", "first input", "second argument"],
)
def test_nonfinite_values_are_errors_that_say_where(fun, batches, message):
    kept = []
    with pytest.raises(CalibrationError, match=message):
        one_pass(batches, fun=fun, keep=kept.append)
    assert [statistics.num_examples for statistics in kept] == [23 * (len(batches) - 1)] * (len(batches) > 1)


def masked_then_broken(params, x):
    """The -inf of a mask is meant; what comes after is not."""
    masked = jnp.exp(jnp.where(x > 0, x, -jnp.inf))
    return masked + 1 / jnp.floor(abs(x))


def test_a_mask_is_not_blamed_for_what_another_layer_makes():
    batches = Batches([X])
    graph = trace(masked_then_broken, {}, batches.signature.args).graph
    with pytest.raises(CalibrationError, match="layer 'div' makes Inf"):
        observe_all(graph, dict.fromkeys(graph.outputs, -np.inf), batches, 0)


def carried(params, x):
    (_, last), _ = jax.lax.scan(lambda carry, _: ((carry[0], carry[1] * 0.5), None), (x, jnp.log(x)), length=2)
    return last


def test_a_nan_is_followed_through_a_scan():
    batches = Batches([X])
    graph = trace(carried, {}, batches.signature.args).graph
    with pytest.raises(CalibrationError, match="layer 'log' makes NaN"):
        observe_all(graph, dict.fromkeys(graph.outputs, -np.inf), batches, 0)


# -------------------------------------------------------------------------------------------- interrupted and resumed


@functools.cache
def whole_stream():
    return one_pass(STREAM)


def interrupted(batches):
    yield from batches
    raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [1, 3, 5, len(STREAM)])
def test_an_interrupted_pass_goes_on_to_the_same_bits(stop):
    kept = []
    with pytest.raises(KeyboardInterrupt):
        one_pass(interrupted(STREAM[:stop]), keep=kept.append)
    (start,) = kept
    assert_same_counts(start, one_pass(STREAM[:stop]))
    assert_same(one_pass(STREAM, start=start), whole_stream())


def test_a_pass_goes_on_with_the_batches_in_another_order():
    start = one_pass(STREAM[:4])
    assert_same_counts(one_pass(STREAM[::-1], start=start), whole_stream())


def test_an_interrupt_amid_a_batch_leaves_that_batch_out(monkeypatch):
    kept, add, calls = [], Samples.add, []

    def add_then_stop(samples, leaves):
        add(samples, leaves)
        calls.append(leaves)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Samples, "add", add_then_stop)
        one_pass(STREAM, keep=kept.append)
    assert_same_counts(kept[0], one_pass(STREAM[:2]))
    assert_same(one_pass(STREAM, start=kept[0]), whole_stream())


def test_nothing_is_kept_of_nothing():
    kept = []
    with pytest.raises(KeyboardInterrupt):
        one_pass(interrupted([X[:0]]), keep=kept.append)
    assert kept == []


def test_checkpoints_are_kept_on_the_way(monkeypatch):
    monkeypatch.setattr(observe, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    kept = []
    one_pass([X[:4], X[4:8], X[8:]], keep=kept.append)
    assert [statistics.num_examples for statistics in kept] == [4, 8, 23]


# ------------------------------------------------------------------------------------- snapshots, settling and merging


def test_snapshots_lie_ever_further_apart():
    sizes = [shot.num_examples for shot in one_pass([X[i : i + 1] for i in range(14)]).snapshots]
    assert sizes == [2, 3, 4, 6, 8, 12, 14]


def test_a_snapshot_is_what_a_pass_that_ended_there_would_return():
    parts = [X[i : i + 1] for i in range(8)]
    for shot in one_pass(parts).snapshots:
        assert_same_counts(shot, one_pass(parts[: shot.num_examples]))


def test_a_pass_ends_when_it_has_settled():
    reads = []

    def generator():
        for i in range(23):
            reads.append(i)
            yield X[i : i + 1]

    statistics = one_pass(generator(), settled=lambda statistics: statistics.num_examples > 4)
    assert statistics.num_examples == 6  # 5 is no snapshot
    assert len(reads) == 6


def test_a_pass_that_had_settled_does_not_go_on():
    def settled(statistics):
        return statistics.num_examples > 4

    parts = [X[i : i + 1] for i in range(23)]
    once = one_pass(parts, settled=settled)
    assert_same(one_pass(parts, settled=settled, start=once), once)


@pytest.mark.parametrize("cuts", [(), (7,), (1, 2, 20)])
def test_merged_parts_are_one_pass(cuts):
    parts = [one_pass([rows[:2], rows[2:]]) for rows in np.split(X, cuts)]
    total, whole = merged(RELU, 5, parts), one_pass([X])
    assert_same_counts(total, whole)
    np.testing.assert_array_equal(total.samples[0], whole.samples[0])
    assert total.digests == sum((part.digests for part in parts), ())
    sizes = [shot.num_examples for shot in total.snapshots]
    assert sizes == sorted(set(sizes))


def test_an_output_may_hold_minus_inf_but_not_inf():
    """A mask is written so; an overflow is not."""
    x = np.full((2, 4), 3.0, np.float32)
    params = {"w": np.full((4, 2), 2.0**125, np.float32)}
    assert jaxq.calibrate(lambda p, x: -(x @ p["w"]), params, [x], config=jaxq.QuantConfig(method="mse"))
    with pytest.raises(jaxq.CalibrationError, match="makes Inf"):
        jaxq.calibrate(lambda p, x: x @ p["w"], params, [x], config=jaxq.QuantConfig(method="mse"))
