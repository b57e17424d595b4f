"""What became of a network: a row for every node of its int8 graph, as data and as a table."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from jaxq.graph.node import Aval, Graph, Node, precision
from jaxq.refine.gain import Gain

_OPS = {
    "reduce_window_max": "pool",
    "reduce_window_min": "pool",
    "window_sum": "pool",
    "sum": "pool",
    "product": "mul",
    "conv_general_dilated": "conv",
    "dot_general": "dot",
    "weight_only_dot": "dot",
}


@dataclass(frozen=True)
class Row:
    """One fused node.

    Attributes:
      name: the layer path.
      op: "conv", "dot", "add", "pool", ..., or the JAX primitive's name.
      precision: "int8" or "float"; "int8 weight-only" or "int4 weight-only" for a dot of floats with such weights.
      fused: what its epilogue holds: "bias", "residual", "relu", "relu6", "clip", "requantize", "merged:3"; before that
        "per token" where its rows have scales of their own, "weight:int4" where its weights have 4 bits.
      macs: multiply-adds for one example; 0 for all but convs and dots. In a scan those of all turns, in a while of one
        turn, in a cond of each branch.
      reason: why it stays in float, or "".
      dtypes: of its data operands, and of its result.
      scale: of its result where that is integers; one number, or None.
      tactic: what computes it, backend and kernel config, where measuring chose another than the default; or "".
    """

    name: str
    op: str
    precision: str
    fused: tuple[str, ...]
    macs: int
    reason: str
    dtypes: tuple[tuple[str, ...], str]
    scale: float | None
    tactic: str = ""


@dataclass(frozen=True)
class Tuning:
    """What measuring on one machine chose.

    Attributes:
      device: the machine.
      batch: the batch size.
      seconds: a call of the whole network: "int8", "float" (the same graph), "mixed" where some layers stay in float,
        and "function", the user's own under `jax.jit`.
      chosen: "int8", "float" or "mixed".
      layers: {layer: (seconds in int8, in float)} of each layer alone.
      timings: all that was timed, as the timing cache holds it.
      failures: {what was to be timed: why it cannot be used}: tactics that do not compile, or give other bits.
    """

    device: str
    batch: int
    seconds: Mapping[str, float]
    chosen: str
    layers: Mapping[str, tuple[float, float]]
    timings: Mapping[str, float]
    failures: Mapping[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        times = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in self.seconds.items())
        lines = [f"tuned: {self.chosen}, at batch {self.batch} on {self.device}: {times}"]
        return lines + [f"left out: {what}: {reason}" for what, reason in self.failures.items()]


@dataclass(frozen=True)
class Accuracy:
    """What `max_drop` chose.

    Attributes:
      in_float: the metric of the function itself.
      max_drop: how far below it the plan's may be.
      frontier: {number of layers in float: the metric}, as far as it was measured, ascending.
      layers: those that were chosen to stay in float.
    """

    in_float: float
    max_drop: float
    frontier: Mapping[int, float]
    layers: tuple[str, ...]

    def drop(self, count: int) -> float:
        return self.in_float - self.frontier[count]

    def lines(self) -> list[str]:
        count = len(self.layers)
        points = ", ".join(f"{layers}: {metric:.4g}" for layers, metric in self.frontier.items())
        return [
            f"accuracy: {self.frontier[count]:.4g} with {count} layers kept in float for it, {self.in_float:.4g} in "
            f"float: a drop of {self.drop(count):.3g}, at most {self.max_drop:g}",
            f"accuracy by the number of layers in float: {points}",
        ]


@dataclass(frozen=True)
class Summary:
    """`nodes` as data; printed, a table with totals.

    Attributes:
      nodes: a row for every node that computes, in program order.
      float_bytes, int8_bytes: the size of the weights before and after.
      fixed_because: why the plan has a fixed batch size, or None.
      methods: how many scale groups took each calibration method.
      unmatched_rules: patterns of rules that matched no layer.
      tuning: what measuring chose, or None.
      accuracy: what `max_drop` chose, or None.
      recipe: what each step of the recipe brought.
    """

    nodes: tuple[Row, ...]
    float_bytes: int
    int8_bytes: int
    fixed_because: str | None
    methods: Mapping[str, int]
    unmatched_rules: tuple[str, ...]
    tuning: Tuning | None = None
    accuracy: Accuracy | None = None
    recipe: tuple[Gain, ...] = ()

    def __str__(self) -> str:
        total = sum(row.macs for row in self.nodes) or 1
        head = ("layer", "op", "precision", "fused", "in -> out", "scale", "MACs")
        lines = [head, *(_cells(row, total) for row in self.nodes)]
        if any(row.tactic for row in self.nodes):
            tactics = ["tactic", *(row.tactic for row in self.nodes)]
            lines = [(*cells, tactic) for cells, tactic in zip(lines, tactics, strict=True)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        table.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*table, "", *self.totals()])

    def totals(self) -> list[str]:
        """What stands below the table."""
        total = sum(row.macs for row in self.nodes) or 1
        kinds = ["int8", *sorted({row.precision for row in self.nodes} - {"int8", "float"})]
        lines = [
            *(self._total(kind, total) for kind in kinds),
            f"weights: {self.float_bytes / 1e6:.2f} MB in float, {self.int8_bytes / 1e6:.2f} MB now",
        ]
        if self.methods:
            lines.append("thresholds: " + ", ".join(f"{n} by {method}" for method, n in self.methods.items()))
        lines.append(f"batch: fixed, {self.fixed_because}" if self.fixed_because else "batch: any size")
        reasons: dict[str, list[Row]] = {}
        for row in self.nodes:
            if row.precision == "float":
                reasons.setdefault(row.reason, []).append(row)
        if not reasons:
            lines.append("float: nothing")
        for reason, rows in reasons.items():
            names = ", ".join(row.name for row in rows[:3]) + (", ..." if len(rows) > 3 else "")
            macs = sum(row.macs for row in rows)
            lines.append(f"float: {len(rows)} ({macs / total:.1%} of the multiply-adds), {reason}: {names}")
        lines.extend(f"rule {pattern!r} matched no layer" for pattern in self.unmatched_rules)
        lines.extend(line for gain in self.recipe for line in gain.lines())
        return lines + [line for chosen in (self.accuracy, self.tuning) if chosen for line in chosen.lines()]

    def _total(self, precision: str, total: int) -> str:
        rows = [row for row in self.nodes if row.precision == precision]
        share = sum(row.macs for row in rows) / total
        counts = ", ".join(f"{n} {op}" for op, n in Counter(row.op for row in rows).most_common())
        return f"{precision}: {counts or 'nothing'}; {share:.1%} of {total:,} multiply-adds an example"


def _cells(row: Row, total: int) -> tuple[str, ...]:
    operands, result = row.dtypes
    scale = "" if row.scale is None else f"{row.scale:.3g}"
    share = f"{row.macs / total:.1%}" if row.macs else ""
    fused = " ".join(row.fused)
    return (row.name, row.op, row.precision, fused, f"{', '.join(operands)} -> {result}", scale, share)


def rows(graph: Graph, tactics: Mapping[str, Any] | None = None) -> tuple[Row, ...]:
    """The rows of an int8 graph and its bodies; `tactics` are those of its nodes by name."""
    tactics = tactics or {}
    return tuple(replace(row, tactic=str(tactics.get(row.name, ""))) for row in _rows(graph, turns=1))


def _rows(graph: Graph, turns: int) -> Iterator[Row]:
    for node in graph.nodes:
        for body in node.bodies:
            yield from _rows(body, turns * node.attrs.get("length", 1))
        if not node.is_constant and node.op not in ("input", "item"):
            yield _row(node, turns)


def _row(node: Node, turns: int) -> Row:
    op = node.op
    if op == "affine":
        op = "add" if node.get("residual") is not None else "affine"
    elif op in ("table", "elementwise", "stablehlo"):
        op = node.attrs["word"]
    elif op == "opaque":
        op = node.attrs["primitive"].name
    data = [node.operand(role) for role in ("x", "y", "residual") if role in node.roles] if node.roles else node.inputs
    avals = [source.aval for source in data if isinstance(source.aval, Aval) and not source.is_constant]
    outs = (node.aval,) if isinstance(node.aval, Aval) else node.aval
    scale = None
    if node.qtype is not None and np.ndim(node.qtype.scale) == 0 and node.op != "quantize_rows":
        scale = float(node.qtype.scale)
    return Row(
        name=node.name,
        op=_OPS.get(op, op),
        precision=precision(node),
        fused=node.fused,
        macs=turns * _macs(node),
        reason=node.reason,
        dtypes=(tuple(str(aval.dtype) for aval in avals), ", ".join(str(aval.dtype) for aval in outs)),
        scale=scale,
    )


def _macs(node: Node) -> int:
    """Multiply-adds for one example."""

    def size(aval: Any) -> int:
        return prod(dim if isinstance(dim, int) else dim.bind(1) for dim in aval.shape)

    if node.op == "dot":
        return size(node.aval) * node.operand("weight").aval.shape[1]
    if node.op in ("matmul", "weight_only_dot"):
        x = node.operand("x").aval
        return size(node.aval) * size(Aval(x.shape[-1:], x.dtype))
    if node.op == "conv":  # the zeros that an input dilation inserts are no work
        taps = prod(node.operand("weight").aval.shape[:-1])
        return size(node.aval) * taps // prod(node.attrs["lhs_dilation"])
    if node.op == "dot_general":
        (contracting, _), _ = node.attrs["dimension_numbers"]
        return size(node.aval) * prod(int(node.inputs[0].aval.shape[axis]) for axis in contracting)
    if node.op == "conv_general_dilated":
        _, rhs, _ = node.attrs["dimension_numbers"]
        return size(node.aval) * prod(int(node.inputs[1].aval.shape[axis]) for axis in rhs[1:])
    return 0
