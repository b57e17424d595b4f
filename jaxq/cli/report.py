"""`jaxq report`: a page about a plan, to read in a browser and to hand on."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxq import files
from jaxq.calibration.histogram import Histogram
from jaxq.calibration.result import Calibration
from jaxq.calibration.select import joined
from jaxq.calibration.thresholds import Cost, cost
from jaxq.cli import drawing, page
from jaxq.cli.arguments import batch_of, batch_size, check_batch, seconds
from jaxq.cli.text import add_command, print_json, progress
from jaxq.errors import PlanError
from jaxq.numerics import largest_level
from jaxq.plan import artifact, tune
from jaxq.plan.artifact import PLAN_FILE
from jaxq.plan.plan import Plan
from jaxq.plan.timing import TimingCache
from jaxq.report import Row
from jaxq.retune import layers_of

_MORE = """\
The page is one file of HTML without scripts; nothing in it comes from a network. It holds what `jaxq inspect` tells,
the layers with their times in int8 and in float, and a drawing of the fused graph.

Times are those of the plan, if it was tuned, or are measured with --time, as `jaxq tune` measures them.

With --calibration, what Calibration.save wrote: the histogram of every value that may become integers, with the
threshold that the plan's scale stands for, or where that is fused away the one that the calibration chooses; what that
clips; and the value's signal to noise ratio, by the histogram.

examples:
  jaxq report net.jaxq -o report.html
  jaxq report net.jaxq -o report.html --calibration net.calibration --time 30
"""


def add_to(commands: Any) -> None:
    parser = add_command(
        commands, "report", run, "Writes a page about a plan: layers, times, thresholds, graph.", _MORE
    )
    parser.add_argument("file", help="a .jaxq file")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="where to write the page")
    parser.add_argument("--calibration", metavar="FILE", help="what Calibration.save wrote")
    parser.add_argument("--time", type=seconds, metavar="S", help="time the layers, for so many seconds")
    parser.add_argument("--batch", type=batch_size, metavar="N", help="the batch size to time at (default: 1)")


# {layer: (seconds in int8, in float)}
_Times = Mapping[str, tuple[float, float]]


def run(options: argparse.Namespace) -> int:
    header, _ = PLAN_FILE.read(options.file)
    plan, _ = artifact.load(options.file, options.trusted)
    check_batch(plan, options.batch)
    calibration = Calibration.load(options.calibration) if options.calibration else None
    values = {} if calibration is None else _values(plan, calibration, options.calibration)
    times, measured = _times(plan, options)
    head = [
        f"{os.path.getsize(options.file):,} bytes, written by jaxq {header.get('jaxq')} and jax {header.get('jax')}",
        f"batch size: {batch_of(plan)}",
        *(f"argument {node.name}: {node.aval}" for node in plan.graph.inputs),
        *(f"result {node.name}: {node.aval}" for node in plan.graph.outputs),
    ]
    name = Path(options.file).name
    parts = [page.heading(name, 1), page.paragraphs(head, "quiet"), page.heading("Summary")]
    parts += [page.paragraphs(plan.summary.totals()), page.heading("Layers")]
    parts += [page.paragraphs(measured, "quiet"), _layers(plan, times, values)]
    if values:
        figures = [value.figure() for value in values.values()]
        parts += [page.heading("Values and their thresholds"), page.grid(figures)]
    parts += [page.heading("Graph"), _graph(plan, times)]
    text = page.page(f"{name}: jaxq report", *parts)
    try:
        files.replace(Path(options.output), text.encode())
    except OSError as error:
        raise PlanError(f"{options.output}: cannot be written: {error.strerror}") from error
    facts = {"file": options.file, "output": options.output, "bytes": len(text.encode())}
    facts |= {"layers": len(plan.summary.nodes), "timed": len(times), "histograms": len(values)}
    if options.json:
        print_json(facts)
    else:
        print(f"{options.output}: {facts['bytes']:,} bytes")
    return 0


def _times(plan: Plan, options: argparse.Namespace) -> tuple[_Times, list[str]]:
    """The layers' times, and what they are of."""
    if options.time:
        progress(f"timing layers for at most {options.time:g} s")
        cache, batch = TimingCache(), options.batch or 1
        layers = layers_of(plan.graph, batch)
        found = tune.time_layers(layers, batch, cache, options.time, patient=False).layers()
        cache.save()
        return found, [f"Times of each layer alone, at batch {batch} on {cache.device}."]
    tuning = plan.summary.tuning
    if tuning is None:
        return {}, ["Not timed: with --time S, or of a tuned plan, each layer's times stand here."]
    return tuning.layers, [f"Times of each layer alone, at batch {tuning.batch} on {tuning.device}."]


@dataclass(frozen=True)
class _Value:
    """A value that may become integers: what was seen of it, and what its threshold costs. `whose`: who chose it."""

    name: str
    dtype: str
    histogram: Histogram
    threshold: float
    whose: str

    @cached_property
    def cost(self) -> Cost:
        return cost(self.histogram, self.threshold, unsigned=self.dtype == "uint8")

    def figure(self) -> str:
        counts = self.histogram.to_numpy()
        lines = (
            self.name,
            f"{self.dtype}, threshold {self.threshold:.4g} ({self.whose}), greatest value {counts.amax:.4g}",
            f"{self.cost.sqnr:.1f} dB, {self.cost.clipped:.3%} clipped",
        )
        return page.figure(drawing.histogram(counts, self.threshold), lines)


def _values(plan: Plan, calibration: Calibration, path: str) -> dict[str, _Value]:
    """By name; those of one scale are one, under the name of the first.

    Raises:
      PlanError: the calibration is of none of the plan's layers.
    """
    known, found = _thresholds(plan), {}
    inside = {tensor.name for tensor in calibration.tensors} - {node.name for node in plan.graph.inputs}
    if inside and not inside & {_made(node.name) for node in plan.graph.all_nodes}:
        raise PlanError(f"{path}: is a calibration of another network than the plan's")
    chosen = {row.name: row for row in calibration.report().rows}
    for tensor in calibration.tensors:
        row, histogram = chosen[tensor.name], joined(tensor, calibration.histograms)
        threshold, whose = (known[tensor.name], "the plan's") if tensor.name in known else (row.threshold, row.method)
        found[tensor.name] = _Value(tensor.name, tensor.dtype, histogram, threshold, whose)
    return found


def _thresholds(plan: Plan) -> dict[str, float]:
    """{value: the largest magnitude that its scale covers}, by the float value's name. (A node with a table in its
    epilogue makes another value than the one of its name.)"""
    found: dict[str, float] = {}
    for node in plan.graph.all_nodes:
        if node.qtype is not None and isinstance(node.qtype.scale, float) and node.get("table") is None:
            found.setdefault(_made(node.name), node.qtype.scale * largest_level(node.qtype.dtype))
    return found


def _made(node: str) -> str:
    """The float value whose integers the node makes."""
    return node.removesuffix("/quantize").removesuffix("/slice")


_HEAD = (
    "layer",
    "op",
    "precision",
    "fused",
    "in → out",
    "scale",
    "MACs",
    "SQNR dB",
    "int8 ms",
    "float ms",
    "why in float",
)
_NUMERIC = ("scale", "MACs", "SQNR dB", "int8 ms", "float ms")


def _layers(plan: Plan, times: _Times, values: Mapping[str, _Value]) -> str:
    """A row for each; no column stands empty."""
    rows = plan.summary.nodes
    total = sum(row.macs for row in rows) or 1
    cells = [_cells(row, total, times.get(row.name), values.get(_made(row.name))) for row in rows]
    full = [i for i in range(len(_HEAD)) if any(line[i] for line in cells)]
    head, lines = [_HEAD[i] for i in full], [[line[i] for i in full] for line in cells]
    return page.table(head, lines, (row.precision for row in rows), _NUMERIC)


def _cells(row: Row, total: int, times: tuple[float, float] | None, value: _Value | None) -> tuple[str, ...]:
    operands, result = row.dtypes
    int8, in_float = ("", "") if times is None else (f"{1e3 * seconds:.3f}" for seconds in times)
    return (
        row.name,
        row.op,
        row.precision,
        " ".join(row.fused),
        f"{', '.join(operands)} → {result}",
        "" if row.scale is None else f"{row.scale:.3g}",
        f"{row.macs / total:.1%}" if row.macs else "",
        "" if value is None else f"{value.cost.sqnr:.1f}",
        int8,
        in_float,
        row.reason,
    )


def _graph(plan: Plan, times: _Times) -> str:
    tooltips = {}
    for node in plan.graph.all_nodes:
        lines = [node.name, " ".join((node.op, *node.fused)), str(node.aval), node.reason]
        if node.name in times:
            lines.append("{:.3f} ms in int8, {:.3f} ms in float".format(*(1e3 * s for s in times[node.name])))
        tooltips[node.name] = "\n".join(filter(None, lines))
    legend = "Green is int8, orange is float; a box tells more when the mouse rests on it."
    return page.paragraphs([legend], "quiet") + f'<div class="wide graph">{drawing.graph(plan.graph, tooltips)}</div>'
