"""What it costs to read a network and to rewrite it, and that the cost is linear in its nodes.

    python examples/rewrite_cost.py

Times, in seconds, of each stage between a Flax model and its int8 graph, without calibration and compilation:

    trace      the function, at several batch sizes, to a graph
    simplify   constants computed, batch norms folded, activations fused
    place      which nodes are int8
    lower      weights quantized, and parallel branches merged

A line for ResNet-50 and one for a transformer of 48 layers; then generated chains of dense layers, ever longer, where
the last column, microseconds by node, stays about the same.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from calibration_cost import ResNet50
from efficientnet_lite0 import SIZE
from flax import linen as nn

from jaxq import passes
from jaxq.config import QuantConfig
from jaxq.graph.trace import trace
from jaxq.passes.place import place
from jaxq.passes.scales import choices_of

WIDTH, NUM_HEADS, NUM_TOKENS = 512, 8, 64


class Transformer(nn.Module):
    """An encoder (pre-norm) of embedded tokens (N, T, WIDTH)."""

    num_layers: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self.num_layers):
            x = x + nn.MultiHeadDotProductAttention(NUM_HEADS)(nn.LayerNorm()(x))
            y = nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x)))
            x = x + nn.Dense(WIDTH)(y)
        return nn.LayerNorm()(x)


def chain(params: Sequence[Any], x: jax.Array) -> jax.Array:
    """Small dense layers, each followed by an activation that stays in the graph."""
    for weight, bias in params:
        x = jnp.tanh(x @ weight + bias)
    return x


def measure(name: str, fun: Callable[..., Any], params: Any, x: np.ndarray) -> None:
    """Prints a line for the network."""
    config, ends = QuantConfig(), [time.perf_counter()]

    def lap(result: Any) -> Any:
        ends.append(time.perf_counter())
        return result

    traced = lap(trace(fun, params, (x,))).graph
    graph = lap(passes.simplify(traced))
    placement = lap(place(graph, config))
    thresholds = {group.name: 1.0 for group in placement.scale_groups}
    lap(passes.quantize(graph, placement, choices_of(placement, thresholds), config))
    laps, total, count = np.diff(ends), ends[-1] - ends[0], len(traced.nodes)
    columns = "".join(f"{seconds:10.2f}" for seconds in (*laps, total))
    print(f"{name:22}{count:8}{columns}{total / count * 1e6:12.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time tracing and rewriting.")
    parser.add_argument("--layers", type=int, default=48, help="of the transformer")
    parser.add_argument("--nodes", type=int, default=10_000, help="of the longest chain")
    args = parser.parse_args()
    stages = ("trace", "simplify", "place", "lower", "total")
    print(f"{'':22}{'nodes':>8}{''.join(f'{stage:>10}' for stage in stages)}{'us / node':>12}")

    images, tokens = np.zeros((2, SIZE, SIZE, 3), np.float32), np.zeros((2, NUM_TOKENS, WIDTH), np.float32)
    for name, model, x in (
        ("ResNet-50", ResNet50(), images),
        (f"transformer, {args.layers} layers", Transformer(args.layers), tokens),
    ):
        shapes: Any = jax.eval_shape(model.init, jax.random.key(0), x)
        rng = np.random.default_rng(0)
        variables = jax.tree.map(lambda leaf, rng=rng: rng.random(leaf.shape, leaf.dtype), shapes)
        measure(name, model.apply, variables, x)

    nodes_by_layer = 6  # weight, bias, dot, its broadcast, add, tanh
    for nodes in (args.nodes // 16, args.nodes // 8, args.nodes // 4, args.nodes // 2, args.nodes):
        layer = (np.eye(4, dtype=np.float32), np.ones(4, np.float32))
        measure("chain", chain, [layer] * (nodes // nodes_by_layer), np.zeros((2, 4), np.float32))


if __name__ == "__main__":
    main()
