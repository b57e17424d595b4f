"""What "auto" chooses by: how much each candidate threshold of a tensor disturbs the layers that read it."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxq import numerics
from jaxq.calibration.histogram import Histogram
from jaxq.calibration.kernels import XLA, Kernels
from jaxq.calibration.select import Errors, Tensor, candidates
from jaxq.calibration.step import leading_size, rows
from jaxq.graph.evaluate import evaluate, reference
from jaxq.graph.node import ANCHORS, Graph, Node
from jaxq.passes.place import Placement, ScaleGroup
from jaxq.passes.scales import readers, tensor_of

_LARGEST = float(np.finfo(np.float32).max)

# (tensor name, reader)
_Pair = tuple[str, str]


def measure_errors(
    graph: Graph,
    placement: Placement,
    tensors: Sequence[Tensor],
    histograms: Mapping[str, Histogram],
    samples: Sequence[np.ndarray],
    percentile: float,
    kernels: Kernels = XLA,
) -> Errors:
    """{tensor name: {candidate threshold: {reader: error}}} for the tensors whose candidates differ.

    A reader is run on the samples with this tensor alone quantized: its error is the squared error of its output over
    its squared output. A tensor that none reads has its own error. Some 1e38 stands for what is not finite.
    """
    groups = {tensor_of(group): group for group in placement.scale_groups}
    found = {tensor: sorted(set(candidates(tensor, histograms, percentile).values())) for tensor in tensors}
    open_ = {groups[tensor]: thresholds for tensor, thresholds in found.items() if len(thresholds) > 1}
    errors: dict[str, dict[float, dict[str, float]]] = {group.name: {} for group in open_}
    if not open_:
        return errors
    thresholds_of = {group.name: thresholds for group, thresholds in open_.items()}
    for (name, reader), measured in _measure(graph, placement, open_, samples, kernels).items():
        for threshold, error in zip(thresholds_of[name], measured.tolist(), strict=True):
            errors[name].setdefault(threshold, {})[reader] = error
    return errors


def _measure(
    graph: Graph,
    placement: Placement,
    candidates_of: Mapping[ScaleGroup, Sequence[float]],
    samples: Sequence[np.ndarray],
    kernels: Kernels,
) -> dict[_Pair, np.ndarray]:
    """The errors by the thresholds of each group. One example runs after another: in the memory of one, whatever the
    number of samples, all candidates fit."""
    run = jax.jit(_measuring(graph.bind(1), placement, candidates_of.keys(), kernels))
    params = jax.device_put(graph.params)
    scales = {
        group.name: np.array(thresholds, np.float32) / np.float32(numerics.largest_level(group.dtype))
        for group, thresholds in candidates_of.items()
    }
    squares: dict[_Pair, Any] = defaultdict(float)  # of the exact results and of all errors, over the examples
    for i in range(leading_size(graph, samples) or 1):
        for pair, found in run(params, rows(graph, samples, slice(i, i + 1)), scales).items():
            norm, relative = np.split(np.asarray(found, np.float64), [1], axis=1)
            squares[pair] += norm**2 * np.append(np.ones_like(norm), relative, axis=1)
    errors = {pair: np.sum(of[:, 1:] / np.maximum(of[:, :1], 1 / _LARGEST), 0) for pair, of in squares.items()}
    return {pair: np.nan_to_num(error, nan=_LARGEST, posinf=_LARGEST) for pair, error in errors.items()}


def _measuring(graph: Graph, placement: Placement, groups: Collection[ScaleGroup], kernels: Kernels) -> Any:
    """The bound graph as a function of its parameters, its inputs and the candidate scales by group name, to the
    `trial_errors` of every reader, of each operand and value of the group that it meets.

    A reader runs once: with what the candidates make of its input, in a new leading axis beside the input itself. So
    it is compiled once, and once is what compiling it costs in the network alone.
    """
    group_of = {node.name: group for node, group in placement.groups.items() if group in groups}
    unread = {name for name, found in readers(placement).items() if found == [name]}

    def measuring(params: Any, leaves: Any, scales: Mapping[str, jax.Array]) -> dict[_Pair, list[jax.Array]]:
        errors: dict[_Pair, list[jax.Array]] = defaultdict(list)

        def trials(group: ScaleGroup, x: jax.Array) -> jax.Array:
            return kernels.trials(x, scales[group.name], group.dtype)

        def lower(node: Node) -> Callable[..., Any]:
            run = reference(node)
            roles = [role for role in ANCHORS.get(node.op, ()) if node.operand(role).name in group_of]

            def read(*operands: Any) -> Any:
                for role in roles:
                    group, at = group_of[node.operand(role).name], node.roles.index(role)
                    tried = (*operands[:at], trials(group, operands[at]), *operands[at + 1 :])
                    results = jax.vmap(run, [0 if i == at else None for i in range(len(operands))])(*tried)
                    exact, found = kernels.trial_errors(results.astype(np.float32))
                    errors[group.name, node.name].append(found)
                return exact.astype(node.aval.dtype)

            return read if roles else run

        def tap(node: Node, value: Any) -> None:
            group = group_of.get(node.name)
            if group is not None and group.name in unread:
                errors[group.name, group.name].append(kernels.trial_errors(trials(group, value))[1])

        evaluate(graph, params, leaves, lower, tap)
        return dict(errors)

    return measuring
