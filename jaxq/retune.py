"""A plan without its model, from a file, tuned on this machine: the layers where int8 loses go to float.

A file holds no float weights of int8 layers, so that in float they compute on dequantized ones (`plan/lift.py`): what
they then give is nearer to the float model than int8, and not equal to it. Layers that are in float stay there.
"""

from dataclasses import replace

import numpy as np

from jaxq import tuning
from jaxq.graph.node import ANCHORS, BORDERS, LAYOUT, Aval, Graph, Node, constant, precision
from jaxq.plan import tune
from jaxq.plan.alone import described
from jaxq.plan.lift import is_liftable, lift
from jaxq.plan.plan import Plan
from jaxq.plan.timing import TimingCache
from jaxq.plan.tune import Budget, Flow, Layer
from jaxq.qmodel import QuantizedModel, model_of
from jaxq.report import rows


def retune(plan: Plan, seconds: float, batch: int) -> QuantizedModel:
    """The fastest of the plan as it is, the same in float, and mixes of both, by what each takes on this machine."""
    graph, cache, budget = plan.graph, TimingCache(), Budget(seconds)
    twins = tune.time_layers(layers_of(graph, batch), batch, cache, budget.layers, budget.is_patient)

    def model(in_float: frozenset[str]) -> QuantizedModel:
        lifted = lift(graph, {name: twins.reason(name) for name in in_float}) if in_float else graph
        size = sum(array.nbytes for array in lifted.params.values())
        summary = replace(plan.summary, nodes=rows(lifted), int8_bytes=size)
        return model_of(replace(plan, graph=lifted, summary=summary, tactics=None), lifted.params)

    models = {name: model(in_float) for name, in_float in tune.precisions(flow_of(graph), twins, budget).items()}
    return tuning.best(models, twins, batch, cache, budget)


def layers_of(graph: Graph, batch: int) -> list[Layer]:
    """All quantized nodes of the graph that have a form in float, but those in bodies."""

    def layer(node: Node) -> Layer:
        ends = [value for value in (*node.inputs, node) if value.qtype is not None and not value.is_constant]
        values = {v.name: (Aval(v.aval.shape, np.dtype(np.float32)), v.qtype.dtype) for v in ends if v.qtype}
        in_float = {} if node.op in LAYOUT else {f"in float: {described(node, batch)}": _in_float(node)}
        return Layer(node.name, values, in_float, node)

    return [layer(node) for node in graph.nodes if is_liftable(node)]


def flow_of(graph: Graph) -> Flow:
    """That of an int8 graph."""
    quantized = [node for node in graph.nodes if precision(node) != "float"]
    nodes = [node for node in quantized if node.op not in BORDERS]
    read = [(source, node) for node in nodes for source in dict.fromkeys(node.inputs)]
    inside, movable = set(nodes), [node for node in graph.all_nodes if is_liftable(node)]
    return Flow(
        [node.name for node in nodes],
        frozenset(node.name for node in movable),
        frozenset(node.name for node in movable if node.op in (*ANCHORS, "weight_only_dot")),
        [(source.name, node.name) for source, node in read if source in inside],
        [(source.name, node.name) for source, node in read if source.op in ("quantize", "quantize_rows")],
        {node.name for node in nodes if any(user.op == "dequantize" for user in graph.users[node])},
    )


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
