"""What the integers of an int8 graph stand for: each of its nodes is the float node on the real numbers that it reads.

`lower` puts scales, by channel too, and zero points into weights, multipliers, biases, bounds, tables and paddings.
Here they are taken as they are defined, real = scale * (q - zero_point), so that whatever `lower` does is checked.
"""

import cheap
import numpy as np

from jaxq.graph.evaluate import evaluate, reference
from jaxq.graph.node import LAYOUT, Graph, Node
from jaxq.numerics import BOUNDS
from jaxq.passes.choices import Choices
from jaxq.passes.lower import lower
from jaxq.passes.place import Placement


def check(graph: Graph, placement: Placement, choices: Choices, config, x: np.ndarray) -> int:
    """Asserts that every int8 node gives, of the integers that it reads, the integer nearest to the real result; the
    number of nodes."""
    floats = graph.bind(len(x))
    int8 = {node.name for node in placement.int8 if node.op not in LAYOUT}
    lowered = lower(graph, placement, choices, config).bind(len(x))
    named = {node.name: node for node in lowered.nodes if not node.is_constant}
    checked = [node for node in floats.nodes if node.name in int8]

    @cheap.jit
    def run(params, float_params, x):
        found = {}
        evaluate(lowered, params, [x], tap=lambda node, value: found.__setitem__(node.name, value))
        found |= dict(zip((node.name for node in lowered.inputs), [x], strict=True))
        exact = {}
        for node in checked:
            operands = [
                _operand(named[node.name], role, source, found, float_params)
                for role, source in zip(node.roles, node.inputs, strict=True)
            ]
            exact[node.name] = reference(node)(*operands)
        return exact, found

    exact, found = run(lowered.params, floats.params, x)
    for node in checked:
        _compare(named[node.name], np.asarray(exact[node.name], np.float64), np.asarray(found[node.name], np.float64))
    return len(checked)


def _compare(node: Node, exact: np.ndarray, found: np.ndarray) -> None:
    if node.qtype is None:
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4 * np.max(np.abs(exact), initial=0))
        return
    steps = np.clip(exact / node.qtype.scale + node.qtype.zero_point, *BOUNDS[node.qtype.dtype])
    assert np.max(np.abs(steps - found), initial=0) <= 0.51, node


def _operand(node: Node, role: str, source: Node, found, params):
    """The real number that the int8 node reads in that role."""
    if role == "weight":
        return _weight(node)
    if source.is_constant:
        return params[source.name] if source.op == "param" else np.asarray(source.value)
    read = node.operand(role)
    if read.op == "pad" and source.op != "pad":
        read = read.inputs[0]  # the float node pads by itself, with zeros
    value = found[read.name]
    if read.qtype is None:
        return value
    scale = np.asarray(read.qtype.scale, np.float32)
    return (value.astype(np.float32) - np.float32(read.qtype.zero_point)) * scale


def _weight(node: Node) -> np.ndarray:
    weight = node.operand("weight")
    scale = weight.qtype.scale
    real = weight.value * (scale if node.op == "conv" else scale[:, None])
    scale_x = node.operand("x").qtype.scale
    return np.asarray(real / by_input(node, scale_x / np.max(scale_x)) if np.ndim(scale_x) else real, np.float32)


def by_input(node: Node, channels: np.ndarray) -> np.ndarray:
    """What stands for each input channel, as it goes with the weight of a dot (N, K) or conv (..., C / groups, O)."""
    if node.op == "dot":
        return channels[None]
    inner, features = node.operand("weight").aval.shape[-2:]
    group = np.arange(features) // (features // node.attrs["groups"])
    return channels[group[None] * inner + np.arange(inner)[:, None]]
