"""From scale groups to thresholds: what must be observed, and who reads it."""

from collections.abc import Iterable, Mapping
from functools import reduce

import numpy as np

from jaxq import numerics
from jaxq.calibration.histogram import Histogram, merge
from jaxq.calibration.select import Errors, Sums, Tensor, sums
from jaxq.config import QuantConfig
from jaxq.errors import CalibrationError
from jaxq.graph.node import ANCHORS, CONTROL, LAYOUT, Aval, Graph, Node, QType
from jaxq.passes.choices import Choices
from jaxq.passes.floors import floors
from jaxq.passes.place import Placement, ScaleGroup, data_inputs

# Layout ops whose result holds all values of their operands and no others.
_SAME_VALUES = frozenset(
    {
        *("reshape", "transpose", "squeeze", "rev", "concatenate", "stack"),
        *("convert_element_type", "copy", "name", "stop_gradient"),
    }
)


def tensor_of(group: ScaleGroup) -> Tensor:
    """The group by names."""
    floor = group.floor if np.isfinite(group.floor) else None
    return Tensor(tuple(source.name for source in group.sources), group.dtype, not group.in_body, floor)


def qtype_of(group: ScaleGroup, threshold: float) -> QType:
    """What the group's integers stand for, where the largest magnitude that they cover is the threshold."""
    offset, scale = offset_and_scale(group, threshold)
    return QType(group.dtype, scale, numerics.zero_point(offset, scale))


def offset_and_scale(group: ScaleGroup, threshold: float) -> tuple[float, float]:
    """What the integer 0 stands for, and the scale, of integers that cover what lies between the group's least value
    and the threshold."""
    lowest, highest = numerics.BOUNDS[group.dtype]
    least = max(group.least, -threshold)
    scale = (threshold - least) / (highest - lowest)
    return least - lowest * scale, scale


def choices_of(placement: Placement, thresholds: Mapping[str, float]) -> Choices:
    """By the threshold of every scale group's name."""
    found = {group.name: group for group in placement.scale_groups if group.name in thresholds}
    return Choices({name: qtype_of(group, thresholds[name]) for name, group in found.items()})


def methods(placement: Placement, config: QuantConfig) -> dict[Tensor, str]:
    """The method of every scale group: of the first source, in program order, for which a rule names one; else the
    config's. In a body "auto" has no values to measure by, and is "mse"."""

    def method(group: ScaleGroup) -> str:
        named = (config.named_method(source.name) for source in group.sources)
        return next((name for name in named if name is not None), config.method)

    return {(tensor := tensor_of(group)): tensor.method(method(group)) for group in placement.scale_groups}


def observed(graph: Graph, placement: Placement) -> dict[Node, float]:
    """The values to observe, so that every rule finds its histograms: all that may exist as integers, but those whose
    histogram follows from others. A rule can only take int8 nodes away, which makes a source of what they read or
    made. To each its floor: lower values count as this one."""
    floor_of = floors(graph)
    return {
        node: floor_of.get(node, -np.inf)
        for node, group in placement.groups.items()
        if not group.exact and (node in group.sources or not (node in placement.int8 and node.op in _SAME_VALUES))
    }


def histograms_of(graph: Graph, tensors: Iterable[Tensor], known: Mapping[str, Histogram]) -> Mapping[str, Histogram]:
    """The histograms, among them those of all sources of the tensors: those that follow from others are added, a
    reshape's is that of its operand, a concatenation's the sum of its operands'.

    Raises:
      CalibrationError: a source was not observed.
    """
    missing = [source for tensor in tensors for source in tensor.sources if source not in known]
    if not missing:
        return known
    derived = dict(known)
    for node in graph.all_nodes:
        operands = [source.name for source in node.inputs]
        if node.name not in derived and node.op in _SAME_VALUES and all(name in derived for name in operands):
            derived[node.name] = reduce(merge, [derived[name] for name in operands])
    for source in missing:
        if source not in derived:
            raise CalibrationError(f"calibration: has no histogram of {source!r}; calibrate this network")
    return derived


def reads(graph: Graph, placement: Placement) -> dict[Node, dict[int, ScaleGroup]]:
    """{node: {index of an operand: the scale group whose error it has}}. An anchor or a table reads integers; a node in
    float what an int8 node made of them, perhaps moved. (A float value that an anchor reads as integers too reaches the
    nodes in float as it is, and a dot that reads floats by row.) Without the nodes of bodies, whose values cannot be
    measured."""
    found: dict[Node, dict[int, ScaleGroup]] = {}
    made = _made_of_integers(graph, placement)
    for node in graph.nodes:
        if node in placement.int8 and node not in placement.by_row:
            indices = [node.roles.index(role) for role in ANCHORS.get(node.op, ())]
            groups = {i: placement.groups[node.inputs[i]] for i in indices or range(node.op == "elementwise")}
        elif node in placement.by_row or node not in made:
            groups = {i: made[source] for i, source in enumerate(node.inputs) if source in made}
        else:
            continue
        found[node] = {i: group for i, group in groups.items() if not group.exact}
    return found


def _made_of_integers(graph: Graph, placement: Placement) -> dict[Node, ScaleGroup]:
    """The values that int8 nodes made as integers, and those that layout ops in float moved."""
    made: dict[Node, ScaleGroup] = {}
    for node in graph.nodes:
        if node in placement.int8:
            if node in placement.groups:
                made[node] = placement.groups[node]
        elif node.op in LAYOUT and has_error(node) and len(data_inputs(node)) == 1 and data_inputs(node)[0] in made:
            made[node] = made[data_inputs(node)[0]]
    return made


def has_error(node: Node) -> bool:
    """Whether the node makes one float value, by no loop or branch: how far that is off can be measured."""
    return node.op not in CONTROL and isinstance(node.aval, Aval) and node.aval.is_float


def readers(graph: Graph, placement: Placement) -> dict[str, list[str]]:
    """{tensor name: its readers}: the nodes that read it; and the tensor itself where it is a result, or nothing reads
    it whose error can be measured."""
    found: dict[str, set[str]] = {group.name: set() for group in placement.scale_groups}
    for node, by in reads(graph, placement).items():
        for group in by.values():
            found[group.name].add(node.name if has_error(node) else group.name)
    made = _made_of_integers(graph, placement)
    for group in {made[node] for node in graph.outputs if node in made and not made[node].exact}:
        found[group.name].add(group.name)
    return {name: sorted(names) or [name] for name, names in found.items()}


def measured_sums(graph: Graph, placement: Placement, errors: Errors) -> Sums:
    """The errors of the readers that the placement has, for the tensors of which all were measured."""
    wanted = readers(graph, placement)
    return sums(
        {
            name: {t: {r: by[r] for r in wanted[name]} for t, by in found.items() if all(r in by for r in wanted[name])}
            for name, found in errors.items()
            if name in wanted
        }
    )
