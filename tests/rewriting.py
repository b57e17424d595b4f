"""What tests of the float passes share: a layer as a function, its simplified graph, and that graph as lines."""

import cheap
import flax.linen as nn
import jax
import networks
import numpy as np

from jaxq import passes
from jaxq.graph.evaluate import evaluate
from jaxq.graph.trace import trace
from jaxq.graph.verify import verify
from jaxq.passes.lower import fused_words

X = networks.images(4, 8, 8, 6)


def linen(*layers):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for layer in layers:
                x = layer(x) if not isinstance(layer, tuple) else layer[0](*layer[1:])(x)
            return x

    model = Net()
    return model.apply, networks.variables(model, X)


def simplified(fun, params, *args, tolerance=2e-5):
    """The simplified graph, checked: it computes what the function computes, at two batch sizes."""
    graph = verify(passes.simplify(trace(fun, params, args).graph), "float")

    @cheap.jit
    def both(simple, params, *args):
        results = []
        for size in (args[0].shape[0], 3):
            cut = [a[:size] for a in args]
            results.append((evaluate(graph.bind(size), simple, cut), jax.tree.leaves(fun(params, *cut))))
        return results

    for ours, theirs in both(graph.params, params, *args):
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == b.dtype
            a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    return graph


def shown(graph):
    """`op: fused words` of every node that computes."""
    lines = []
    for node in graph.nodes:
        if not node.is_constant and node.op != "input":
            words = fused_words(node) if "lo" in node.attrs else ()
            lines.append(f"{node.op}: {' '.join(words)}" if words else node.op)
    return lines


def norm(**kwargs):
    return nn.BatchNorm(use_running_average=True, **kwargs)
