"""From scale groups to thresholds: what must be observed, and for "auto" how much each candidate threshold disturbs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxq import numerics
from jaxq.calibration.histogram import Histogram, merge
from jaxq.calibration.select import Errors, Sums, Tensor, candidates, sums
from jaxq.calibration.step import leading_size
from jaxq.config import QuantConfig
from jaxq.errors import CalibrationError
from jaxq.graph.evaluate import evaluate, reference
from jaxq.graph.node import ANCHORS, Graph, Node
from jaxq.passes.place import Placement, ScaleGroup

# Layout ops whose result holds all values of their operands and no others.
_SAME_VALUES = frozenset(
    {
        *("reshape", "transpose", "squeeze", "rev", "concatenate", "stack"),
        *("convert_element_type", "copy", "name", "stop_gradient"),
    }
)

_LARGEST = float(np.finfo(np.float32).max)


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


def measure_errors(
    graph: Graph,
    placement: Placement,
    tensors: Sequence[Tensor],
    histograms: Mapping[str, Histogram],
    samples: Sequence[np.ndarray],
    percentile: float,
) -> Errors:
    """{tensor name: {candidate threshold: {reader: error}}} for the tensors whose candidates differ."""
    groups = {tensor_of(group): group for group in placement.scale_groups}
    found = {tensor: sorted(set(candidates(tensor, histograms, percentile).values())) for tensor in tensors}
    open_ = {groups[tensor]: thresholds for tensor, thresholds in found.items() if len(thresholds) > 1}
    errors: dict[str, dict[float, dict[str, float]]] = {group.name: {} for group in open_}
    if not open_:
        return errors
    thresholds_of = {group.name: thresholds for group, thresholds in open_.items()}
    for (name, reader), measured in _measure(graph, placement, open_, samples).items():
        for threshold, error in zip(thresholds_of[name], measured.tolist(), strict=True):
            errors[name].setdefault(threshold, {})[reader] = error
    return errors


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


def _with(run: Callable[..., Any], operands: Sequence[Any], at: int) -> Callable[[Any], Any]:
    """The function of one operand, the others as they are."""
    return lambda x: run(*operands[:at], x, *operands[at + 1 :])


def _measure(
    graph: Graph,
    placement: Placement,
    candidates_of: Mapping[ScaleGroup, Sequence[float]],
    samples: Sequence[np.ndarray],
) -> dict[tuple[str, str], np.ndarray]:
    """{(tensor name, reader): the error by each of the tensor's candidate thresholds}.

    A reader is run on the samples with this input alone quantized: its error is the squared error of its output over
    its squared output. A group that none reads has its own error.
    """
    index = {group: i for i, group in enumerate(candidates_of)}
    group_of = {node.name: placement.groups[node] for node in placement.groups}
    wanted = readers(placement)
    bound = graph.bind(leading_size(graph, samples))

    def measure(params: Any, leaves: Any, thresholds: Sequence[jax.Array]) -> dict[tuple[str, str], jax.Array]:
        errors: dict[tuple[str, str], jax.Array] = {}
        values: dict[Node, Any] = {}

        def add(group: ScaleGroup, reader: str, value: jax.Array, exact: jax.Array, read: Callable[[Any], Any]) -> None:
            """The errors of `read`, which makes `exact` of the group's value."""
            exact = exact.astype(jnp.float32)
            unit = jnp.maximum(jnp.max(jnp.abs(exact), initial=0), jnp.float32(1e-30))  # squares stay within float32
            power = jnp.maximum(jnp.sum(jnp.square(exact / unit)), jnp.float32(1e-30))

            def error(threshold: jax.Array) -> jax.Array:
                scale = threshold / numerics.largest_level(group.dtype)
                q = numerics.quantize(value, 1 / scale, dtype=group.dtype)
                approximate = read(numerics.dequantize(q, scale, dtype=np.dtype(np.float32)))
                relative = jnp.sum(jnp.square((approximate.astype(jnp.float32) - exact) / unit)) / power
                return jnp.nan_to_num(relative, nan=_LARGEST, posinf=_LARGEST)

            key = group.name, reader
            errors[key] = errors.get(key, jnp.float32(0)) + lax.map(error, thresholds[index[group]])

        def tap(node: Node, value: Any) -> None:
            values[node] = value
            group = group_of.get(node.name)
            if group in index and wanted[group.name] == [group.name]:
                add(group, group.name, value, value, lambda x: x)
            for role in ANCHORS.get(node.op, ()):
                source = node.operand(role)
                group = group_of.get(source.name)
                if group in index:
                    run, operands = reference(node), [values[operand] for operand in node.inputs]
                    at = node.roles.index(role)
                    add(group, node.name, values[source], value, _with(run, operands, at))

        values.update(zip(bound.inputs, leaves, strict=True))
        values.update({node: params[node.name] for node in bound.nodes if node.op == "param"})
        evaluate(bound, params, leaves, tap=tap)
        return errors

    thresholds = [np.array(row, np.float32) for row in candidates_of.values()]
    measured = jax.jit(measure)(graph.params, list(samples), thresholds)
    return {key: np.asarray(errors) for key, errors in measured.items()}
