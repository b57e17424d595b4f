"""One pass over the batches: what it keeps does not hang on their order or sizes."""

import jax
import jax.numpy as jnp
import numpy as np
from networks import images

from jaxq.calibration.batches import Batches
from jaxq.calibration.observe import calibrate
from jaxq.graph.trace import trace

X = images(23, 6)


def observed(batches, num_samples=5):
    traced = trace(lambda p, x: jnp.tanh(x), {}, (X,))
    nodes = [node for node in traced.graph.nodes if not node.is_constant]
    return calibrate(traced.graph, nodes, Batches(batches), num_samples)


def test_histograms_do_not_depend_on_order_and_chunks():
    parts = [X[:4], X[4:5], X[5:23]]
    one, many = observed([X]), observed(parts[::-1])
    assert one.histograms.keys() == many.histograms.keys() == {"input", "tanh"}
    for ours, theirs in zip(
        jax.tree.leaves(one.histograms["input"]), jax.tree.leaves(many.histograms["input"]), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert sum(one.histograms["input"].to_numpy().counts) == X.size


def test_samples_do_not_depend_on_order_and_chunks():
    one, many = observed([X]), observed([X[9:], X[:9]])
    np.testing.assert_array_equal(one.samples[0], many.samples[0])
    assert one.samples[0].shape == (5, 6)
    assert one.samples[0].base is None or one.samples[0].base.shape[0] == 5  # no view of a whole batch


def test_an_example_that_comes_twice_is_kept_once():
    statistics = observed([X[:3], X[:3]])
    assert statistics.samples[0].shape == (3, 6)


def test_batches_are_read_once():
    reads = []

    def generator():
        for i in range(3):
            reads.append(i)
            yield images(2, 6, seed=i)

    observed(generator())
    assert reads == [0, 1, 2]
