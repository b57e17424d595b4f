"""The observers inside scan, while and cond: histograms that go through the loop with its values.

Each body gives back the histograms of what one turn made. A scan or while carries their sum from turn to turn, and of
a cond the branch taken gives its own, all others empty ones. So values inside loops cost the memory of one turn.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.calibration import histogram
from jaxq.calibration.histogram import Histogram
from jaxq.calibration.kernels import Kernels
from jaxq.graph.evaluate import control_flow, evaluate
from jaxq.graph.node import Graph, Node

Histograms = dict[str, Histogram]


def observed(
    graph: Graph, floors: Mapping[str, float], params: Mapping[str, Any], leaves: Sequence[Any], kernels: Kernels
) -> tuple[list[Any], Histograms]:
    """The outputs of the bound graph, and the histograms of the named values, not yet voided where they hold NaN. What
    is lower than a value's floor counts as that.

    Those of a body that did not run are empty.
    """
    seen: Histograms = {}

    def tap(node: Node, value: Any) -> None:
        if node.name in floors:
            seen[node.name] = kernels.count(_at_least(value, floors[node.name]))

    def control(node: Node) -> Callable[..., Any]:
        def run(*operands: Any) -> Any:
            results, inside = _through(node, floors, params, operands, kernels)
            seen.update(inside)
            return results

        return run

    for node, leaf in zip(graph.inputs, leaves, strict=True):
        tap(node, leaf)
    return evaluate(graph, params, leaves, tap=tap, control=control), seen


def _at_least(value: jax.Array, floor: float) -> jax.Array:
    return value if floor == -np.inf else jnp.maximum(value, jnp.asarray(floor, value.dtype))


def _through(
    node: Node, floors: Mapping[str, float], params: Mapping[str, Any], operands: Sequence[Any], kernels: Kernels
) -> tuple[list[Any], Histograms]:
    """The results of a scan, while or cond, and the histograms of the named values in its bodies."""
    inside = [inner.name for body in node.bodies for inner in body.all_nodes if inner.name in floors]
    if not inside:
        return list(control_flow(node, lambda body: lambda *args: evaluate(body, params, args))(*operands)), {}
    none = _stacked([histogram.empty()] * len(inside))
    attrs = node.attrs

    def turn(body: Graph, args: Sequence[Any]) -> tuple[list[Any], Histogram]:
        results, seen = observed(body, floors, params, args, kernels)
        return results, _stacked([seen.get(name) or histogram.empty() for name in inside])

    def added(body: Graph, args: Sequence[Any], before: Histogram) -> tuple[list[Any], Histogram]:
        results, seen = turn(body, args)
        return results, histogram.merge(before, seen)

    if node.op == "scan":
        first, last = attrs["num_consts"], attrs["num_consts"] + attrs["num_carry"]

        def scanned(body: Graph) -> Callable[..., Any]:
            def run(*args: Any) -> Any:
                results, total = added(body, [*args[:last], *args[last + 1 :]], args[last])
                return [*results[: last - first], total, *results[last - first :]]

            return run

        run = control_flow(node, scanned, num_carry=attrs["num_carry"] + 1)
        results = list(run(*operands[:last], none, *operands[last:]))
        total = results.pop(last - first)
    elif node.op == "while":

        def looped(body: Graph) -> Callable[..., Any]:
            if body is attrs["cond"]:
                return lambda *args: evaluate(body, params, args[:-1])

            def run(*args: Any) -> Any:
                results, total = added(body, args[:-1], args[-1])
                return [*results, total]

            return run

        *results, total = control_flow(node, looped)(*operands, none)
    else:

        def branch(body: Graph) -> Callable[..., Any]:
            def run(*args: Any) -> Any:
                results, total = turn(body, args)
                return [*results, total]

            return run

        *results, total = control_flow(node, branch)(*operands)
    return results, {name: jax.tree.map(lambda leaf, i=i: leaf[i], total) for i, name in enumerate(inside)}


def _stacked(histograms: Sequence[Histogram]) -> Histogram:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *histograms)
