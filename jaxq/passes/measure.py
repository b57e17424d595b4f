"""What "auto" chooses by: how much each candidate threshold of a tensor disturbs the layers that read it."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.calibration.histogram import Histogram
from jaxq.calibration.kernels import XLA, Kernels
from jaxq.calibration.select import Errors, Tensor, candidates
from jaxq.calibration.step import leading_size, rows
from jaxq.graph.evaluate import evaluate, reference
from jaxq.graph.node import ANCHORS, Graph, Node
from jaxq.passes.place import Placement, ScaleGroup
from jaxq.passes.scales import has_error, offset_and_scale, readers, reads, tensor_of

_LARGEST = float(np.finfo(np.float32).max)

# A mask is added to what it hides, and lies beyond this: the least finite number, or half of it.
_MASKED = 1e30

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

    A reader (`scales.readers`) is run on the samples with this tensor alone quantized: its error is the squared error
    of its output over its squared output. Some 1e38 stands for what is not finite.
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
    run = jax.jit(_measuring(graph, placement, candidates_of.keys(), kernels))
    params = jax.device_put(graph.params)
    ranges = {
        group.name: np.array([offset_and_scale(group, threshold) for threshold in thresholds], np.float32)
        for group, thresholds in candidates_of.items()
    }
    squares: dict[_Pair, Any] = defaultdict(float)  # of the exact results and of all errors, over the examples
    for i in range(leading_size(graph, samples) or 1):
        for pair, found in run(params, rows(graph, samples, slice(i, i + 1)), ranges).items():
            norm, relative = np.split(np.asarray(found, np.float64), [1], axis=1)
            squares[pair] += norm**2 * np.append(np.ones_like(norm), relative, axis=1)
    errors = {pair: np.sum(of[:, 1:] / np.maximum(of[:, :1], 1 / _LARGEST), 0) for pair, of in squares.items()}
    return {pair: np.nan_to_num(error, nan=_LARGEST, posinf=_LARGEST) for pair, error in errors.items()}


def _without_mask(results: jax.Array) -> jax.Array:
    """The exact results, and those of the trials behind them, with 0 where a mask makes them as good as infinite."""
    return jnp.where(jnp.abs(results[:1]) < _MASKED, results, 0)


def _measuring(graph: Graph, placement: Placement, groups: Collection[ScaleGroup], kernels: Kernels) -> Any:
    """The graph, for one example, as a function of its parameters, its inputs and the candidates' offsets and
    scales by group name, to the `trial_errors` of every reader, of each operand and value of the group that it meets.

    A reader runs once: with what the candidates make of its input, in a new leading axis beside the input itself. So
    it is compiled once, and once is what compiling it costs in the network alone.
    """
    read = {
        node.name: {index: group for index, group in by.items() if group in groups}
        for node, by in reads(graph, placement).items()
        if has_error(node)
    }
    itself = {name for name, found in readers(graph, placement).items() if name in found}
    alone = {node.name: group for node, group in placement.groups.items() if group in groups and group.name in itself}

    def measuring(params: Any, leaves: Any, ranges: Mapping[str, jax.Array]) -> dict[_Pair, list[jax.Array]]:
        errors: dict[_Pair, list[jax.Array]] = defaultdict(list)

        def trials(group: ScaleGroup, x: jax.Array) -> jax.Array:
            offsets, scales = ranges[group.name].T
            if not group.has_zero_point:
                return kernels.trials(x, scales, group.dtype)
            x = x.astype(jnp.float32)
            shifted = (x - offset for offset in offsets)  # by the zero point, not rounded to an integer
            tried = [kernels.trials(of, scales[i, None], group.dtype)[1] for i, of in enumerate(shifted)]
            return jnp.stack([x, *(of + offset for of, offset in zip(tried, offsets, strict=True))])

        def lower(node: Node) -> Callable[..., Any]:
            run = reference(node)
            of = read.get(node.name, {})

            def with_errors(*operands: Any) -> Any:
                for at, group in of.items():
                    tried = trials(group, operands[at])
                    if node.op not in ANCHORS:  # reads the dequantized value, in its dtype
                        tried = tried.astype(operands[at].dtype)
                    axes = [0 if i == at else None for i in range(len(operands))]
                    results = jax.vmap(run, axes)(*operands[:at], tried, *operands[at + 1 :])
                    if node.get("residual") is not None:
                        exact, results = results[0], _without_mask(results)
                        errors[group.name, node.name].append(kernels.trial_errors(results.astype(np.float32))[1])
                    else:
                        exact, found = kernels.trial_errors(results.astype(np.float32))
                        errors[group.name, node.name].append(found)
                return exact.astype(node.aval.dtype)

            return with_errors if of else run

        def tap(node: Node, value: Any) -> None:
            group = alone.get(node.name)
            if group is not None:
                errors[group.name, group.name].append(kernels.trial_errors(trials(group, value))[1])

        evaluate(graph.bind(1), params, leaves, lower, tap)
        return dict(errors)

    return measuring
