"""The time of each int8 layer alone, compiled by itself at its own shapes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq import backends
from jaxq.cli.arguments import array
from jaxq.cli.stopwatch import first_call, interleaved
from jaxq.graph.evaluate import evaluate
from jaxq.graph.node import ACCUMULATING, BORDERS, Graph, Node, is_int8
from jaxq.plan.plan import Plan

_COMPUTING = frozenset({*ACCUMULATING, *BORDERS, "table", "reduce_window_max", "reduce_max"})


@dataclass(frozen=True)
class LayerTime:
    """A layer's median, in milliseconds."""

    name: str
    op: str
    ms: float


@dataclass(frozen=True)
class LayerTimes:
    """Of all layers, and of a call that computes nothing: the part of each that is not the layer's."""

    layers: list[LayerTime]
    empty_ms: float

    @property
    def total(self) -> float:
        return sum(layer.ms for layer in self.layers)


def layer_times(plan: Plan, batch: int, seconds: float, seed: int) -> LayerTimes:
    """Of every int8 node that computes (what only moves integers costs next to nothing in its place), not those of
    loops; `seconds` for all of them."""
    nodes = [node for node in plan.marked.bind(batch).nodes if is_int8(node) and node.op in _COMPUTING]
    functions: dict[Node | None, Callable[[], Any]] = {node: alone(node, seed) for node in nodes}
    functions[None] = _empty()
    for function in functions.values():
        first_call(function)
    times = interleaved(functions, seconds / len(functions))
    return LayerTimes([LayerTime(node.name, node.op, times[node].median) for node in nodes], times[None].median)


def _empty() -> Callable[[], Any]:
    run, x = jax.jit(lambda x: x + 1), jnp.zeros((), jnp.int32)
    return lambda: run(x)


def alone(node: Node, seed: int) -> Callable[[], Any]:
    """The bound node as the backends run it by itself, on drawn operands; its weights are its own."""
    rng = np.random.default_rng(seed)
    stand_ins = {s: Node("input", (), {}, s.aval, s.name, qtype=s.qtype) for s in node.inputs if not s.is_constant}
    single = node.replace(inputs=tuple(stand_ins.get(s, s) for s in node.inputs))
    graph = backends.gather(Graph(tuple(stand_ins.values()), (single,)))
    params = jax.tree.map(jnp.asarray, backends.prepare(graph, graph.params))
    operands = [array(rng, stand_in.aval) for stand_in in stand_ins.values()]
    run = jax.jit(lambda params, operands: evaluate(graph, params, operands, backends.choose))
    return lambda: run(params, operands)
