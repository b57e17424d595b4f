"""A plan without its model, from a file, tuned on this machine: the layers where int8 loses go to float.

A file holds no float weights of int8 layers, so that in float they compute on dequantized ones (`plan/lift.py`): what
they then give is nearer to the float model than int8, and not equal to it. Layers that are in float stay there.
"""

import time
from dataclasses import replace
from functools import partial

import numpy as np
from tqdm import tqdm

from jaxq import backends
from jaxq.backends import xla
from jaxq.graph.node import ANCHORS, LAYOUT, Aval, Graph, Node, bind, constant, precision
from jaxq.plan import tune
from jaxq.plan.alone import alone, borders, call, described, timed
from jaxq.plan.cut import Costs, cheapest
from jaxq.plan.lift import is_liftable, lift
from jaxq.plan.plan import Plan
from jaxq.plan.timing import TimingCache
from jaxq.plan.tune import Twins
from jaxq.qmodel import QuantizedModel, model_of
from jaxq.report import Tuning, rows

_NEVER = 1e3  # seconds


def retune(plan: Plan, seconds: float, batch: int) -> QuantizedModel:
    """The fastest of the plan as it is, the same in float, and a mix of both, by what each takes on this machine."""
    graph, cache = plan.graph, TimingCache()
    twins = time_layers(graph, batch, cache, seconds / 2)
    cache.save()
    liftable = [node for node in graph.all_nodes if is_liftable(node)]
    mix = slower_in_int8(graph, twins)
    networks = {"int8": frozenset[str](), "float": frozenset(node.name for node in liftable)}
    if mix and not {node.name for node in liftable if node.op in ANCHORS} <= mix:
        networks["mixed"] = mix

    def model(in_float: frozenset[str]) -> QuantizedModel:
        lifted = lift(graph, {name: twins.reason(name) for name in in_float}) if in_float else graph
        size = sum(array.nbytes for array in lifted.params.values())
        summary = replace(plan.summary, nodes=rows(lifted), int8_bytes=size)
        return model_of(replace(plan, graph=lifted, summary=summary), lifted.params)

    models = {name: model(in_float) for name, in_float in networks.items()}
    args = tune.arguments(graph, plan.in_tree, batch)
    found = tune.fastest({name: partial(model, *args) for name, model in models.items()}, seconds / 2)
    chosen = tune.choices(found)[0]
    tuning = Tuning(cache.device, batch, found, chosen, twins.layers(), cache.used)
    return models[chosen].with_summary(replace(models[chosen].summary(), tuning=tuning))


def time_layers(graph: Graph, batch: int, cache: TimingCache, seconds: float) -> Twins:
    """The times of all quantized nodes that have a form in float, but those in bodies, until `seconds` are over; and of
    the borders of the values that they read and make."""
    twins = Twins()
    end = time.perf_counter() + seconds
    for node in tqdm([n for n in graph.nodes if is_liftable(n)], desc="timing layers", unit="layer", disable=None):
        if time.perf_counter() > end:
            break
        for value in (*node.inputs, node):
            if value.qtype is not None and not value.is_constant and value.name not in twins.quantize:
                calls = borders(Aval(bind(value.aval.shape, batch), np.dtype(np.float32)), value.qtype.dtype)
                twins.quantize[value.name], twins.dequantize[value.name] = timed(calls, cache)
        if node.op in LAYOUT:
            continue
        what = described(node, batch)
        calls = {
            f"in float: {what}": call(_in_float(node), batch, xla.lower),
            what: call(alone(node), batch, backends.choose),
        }
        twins.in_float[node.name], twins.int8[node.name] = timed(calls, cache)
    return twins


def _in_float(node: Node) -> Graph:
    """The node alone, of real numbers: lifted between borders, which fall away."""
    inputs, stands_for, one = [], {}, constant(np.float32(1))
    for source in dict.fromkeys(node.inputs):
        if not source.is_constant:
            aval = source.aval if source.qtype is None else Aval(source.aval.shape, np.dtype(np.float32))
            x = Node("input", (), {}, aval, source.name)
            inputs.append(x)
            quantized = source.replace(op="quantize", inputs=(x, one), attrs={}, roles=("x", "multiplier"))
            stands_for[source] = x if source.qtype is None else quantized.replace(name=f"{source.name}/quantize")
    end = node.replace(inputs=tuple(stands_for.get(source, source) for source in node.inputs))
    if node.qtype is not None:
        aval = Aval(node.aval.shape, np.dtype(np.float32))
        end = Node("dequantize", (end, one), {}, aval, f"{node.name}/dequantize", ("x", "scale"))
    return lift(Graph(tuple(inputs), (end,)))


def slower_in_int8(graph: Graph, twins: Twins) -> frozenset[str]:
    """The names of the quantized nodes that the cheapest precisions put into float."""
    costs = Costs()
    quantized = (node for node in graph.nodes if precision(node) != "float")
    nodes = dict.fromkeys(node for node in quantized if node.op not in ("quantize", "dequantize"))
    for node in nodes:
        costs.int8[node.name] += twins.int8.get(node.name, 0.0)
        costs.in_float[node.name] += twins.in_float.get(node.name, 0.0) if is_liftable(node) else _NEVER
        if any(user.op == "dequantize" for user in graph.users[node]):
            costs.int8[node.name] += twins.dequantize.get(node.name, 0.0)
        for source in dict.fromkeys(node.inputs):
            if source.op == "quantize":
                costs.int8[node.name] += twins.quantize.get(source.name, 0.0)
            elif source in nodes:
                border = twins.dequantize.get(source.name, 0.0), twins.quantize.get(source.name, 0.0)
                costs.edges[source.name, node.name] = border
    return frozenset(str(name) for name, in_int8 in cheapest(costs).items() if not in_int8)
