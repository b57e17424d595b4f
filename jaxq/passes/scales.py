"""From scale groups to thresholds: what must be observed, and who reads it."""

from collections.abc import Iterable, Mapping
from functools import reduce

from jaxq.calibration.histogram import Histogram, merge
from jaxq.calibration.select import Errors, Sums, Tensor, sums
from jaxq.config import QuantConfig
from jaxq.errors import CalibrationError
from jaxq.graph.node import ANCHORS, Graph, Node
from jaxq.passes.place import Placement, ScaleGroup

# Layout ops whose result holds all values of their operands and no others.
_SAME_VALUES = frozenset(
    {
        *("reshape", "transpose", "squeeze", "rev", "concatenate", "stack"),
        *("convert_element_type", "copy", "name", "stop_gradient"),
    }
)


def tensor_of(group: ScaleGroup) -> Tensor:
    """The group by names."""
    return Tensor(tuple(source.name for source in group.sources), group.dtype, not group.in_body)


def methods(placement: Placement, config: QuantConfig) -> dict[Tensor, str]:
    """The method of every scale group: of the first source, in program order, for which a rule names one; else the
    config's. In a body "auto" has no values to measure by, and is "mse"."""

    def method(group: ScaleGroup) -> str:
        named = (config.named_method(source.name) for source in group.sources)
        return next((name for name in named if name is not None), config.method)

    return {(tensor := tensor_of(group)): tensor.method(method(group)) for group in placement.scale_groups}


def observed(placement: Placement) -> set[Node]:
    """The values to observe, so that every rule finds its histograms: all that may exist as integers, but those whose
    histogram follows from others. A rule can only take int8 nodes away, which makes a source of what they read or
    made."""
    return {
        node
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


def readers(placement: Placement) -> dict[str, list[str]]:
    """{tensor name: its readers}: the anchors that read it as integers; where none does, the tensor itself."""
    found: dict[str, list[str]] = {group.name: [] for group in placement.scale_groups}
    for node in placement.int8:
        for role in ANCHORS.get(node.op, ()):
            group = placement.groups[node.operand(role)]
            if not group.exact:
                found[group.name].append(node.name)
    return {name: sorted(set(names)) or [name] for name, names in found.items()}


def measured_sums(placement: Placement, errors: Errors) -> Sums:
    """The errors of the readers that the placement has, for the tensors of which all were measured."""
    wanted = readers(placement)
    return sums(
        {
            name: {t: {r: by[r] for r in wanted[name]} for t, by in found.items() if all(r in by for r in wanted[name])}
            for name, found in errors.items()
            if name in wanted
        }
    )
