"""Where a NaN or an Inf begins: the graph run node by node, its loops turn by turn."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from jaxq.calibration.step import leading_size
from jaxq.graph.evaluate import control_flow, evaluate
from jaxq.graph.node import Graph, Node

_IS = {"NaN": jnp.isnan, "Inf": jnp.isinf}


def first_nonfinite(graph: Graph, leaves: Sequence[Any], broken: str) -> tuple[str, str]:
    """The name of the layer where the non-finite value `broken` begins, and what it makes: "NaN" or "Inf".

    A mask of -inf is no fault: a NaN is followed back through operands that hold NaN, and only an Inf through those
    that hold Inf; in a loop from turn to turn.
    """
    bound = graph.bind(leading_size(graph, leaves))
    runs: list[_Run] = []
    with jax.disable_jit():  # loops then run in Python, on concrete values
        _run(_Run(bound), [jnp.asarray(leaf) for leaf in leaves], graph.params, runs)
    node = next(node for node in bound.all_nodes if node.name == broken)
    run, what = next(
        ((run, what) for run in runs for what in _IS if node in run.bad[what]),
        (runs[0], "Inf"),
    )
    while source := next(((r, s) for r, s in run.sources(node) if s in r.bad[what]), None):
        run, node = source
    return node.name, what


@dataclass(eq=False)
class _Run:
    """One evaluation of the graph, or of a body in one turn.

    `holder`: the scan, while or cond whose body it is, and `outer` the evaluation in which that stands; `before`: the
    turn before; `last`: for each scan, while or cond in it the last turn; `bad`: the nodes that made NaN or Inf.
    """

    graph: Graph
    holder: Node | None = None
    outer: "_Run | None" = None
    before: "_Run | None" = None
    last: dict[Node, "_Run"] = field(default_factory=dict)
    bad: dict[str, set[Node]] = field(default_factory=lambda: {what: set() for what in _IS})

    def tap(self, node: Node, value: Any) -> None:
        for array in jax.tree.leaves(value):
            for what, is_bad in _IS.items() if jnp.issubdtype(array.dtype, jnp.floating) else ():
                if bool(jnp.any(is_bad(array))):
                    self.bad[what].add(node)

    def sources(self, node: Node) -> Iterator[tuple["_Run", Node]]:
        """Where the node's value may come from, outside of a loop first."""
        yield from ((self, source) for source in node.inputs)
        if node in self.last:
            yield from ((self.last[node], output) for output in self.last[node].graph.outputs)
        if self.holder is not None and self.outer is not None and node in self.graph.inputs:
            operands = self.holder.inputs[len(self.holder.inputs) - len(self.graph.inputs) :]
            yield self.outer, operands[self.graph.inputs.index(node)]
            if self.before is not None:
                yield from ((self.before, output) for output in self.before.graph.outputs)


def _run(run: _Run, operands: Sequence[Any], params: Any, runs: list[_Run]) -> list[Any]:
    runs.append(run)
    for node, operand in zip(run.graph.inputs, operands, strict=True):
        run.tap(node, operand)

    def control(node: Node) -> Callable[..., Any]:
        def function(body: Graph) -> Callable[..., Any]:
            def turn(*args: Any) -> list[Any]:
                if body is node.attrs.get("cond"):  # nothing that it makes leaves it
                    return evaluate(body, params, args)
                run.last[node] = _Run(body, node, run, before=run.last.get(node))
                return _run(run.last[node], args, params, runs)

            return turn

        return control_flow(node, function)

    return evaluate(run.graph, params, operands, tap=run.tap, control=control)
