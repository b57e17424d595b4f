"""`jaxq bench`: how fast a plan is on this machine."""

import argparse
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

import jaxq
from jaxq.cli.arguments import batch_sizes, check_batch, draw, follows_batch, seconds, seed
from jaxq.cli.layers import LayerTimes, layer_times
from jaxq.cli.stopwatch import Times, first_call, interleaved, load
from jaxq.cli.text import add_command, counted, print_json, progress, table
from jaxq.graph.evaluate import evaluate
from jaxq.plan.lift import is_liftable, lift
from jaxq.plan.plan import Plan

PERCENTILES = (50, 90, 99)

_MORE = """\
A call's time is from the call in Python to its result, of arguments that are on the device already. Arguments are drawn
of the plan's shapes and dtypes. What is timed runs in turns, so that a busy machine slows all of it alike.

--against float times the same graph in float beside it, under one jax.jit: every int8 node by its float form on
dequantized weights, as a plan holds no other float weights. That is what the float model costs once its batch norms are
folded; its results are near the float model's, not equal to them. A function that int8 looks up in a table is computed
as itself where it has a name (gelu, silu, ...), and stays a table where it has none, which is said.

--layers compiles every int8 layer alone, on integers of its own shapes. In the plan, the layers of one call share
caches and threads, and what is no product runs in the kernels of its neighbours: the sum of the times is not the
plan's. Each holds the time of a call, whatever is in it, which is told too.

examples:
  jaxq bench net.jaxq
  jaxq bench net.jaxq --batch 1,8,32 --against float
  jaxq bench net.jaxq --layers --seconds 10
"""


def add_to(commands: Any) -> None:
    parser = add_command(commands, "bench", run, "Times a plan on this machine: latency and throughput.", _MORE)
    parser.add_argument("file", help="a .jaxq file")
    parser.add_argument(
        "--batch", type=batch_sizes, metavar="N,N,...", help="batch sizes, one after the other (default: 1)"
    )
    parser.add_argument("--against", choices=["float"], help="time the same graph in float, too, in turns")
    parser.add_argument("--layers", action="store_true", help="time each int8 layer alone, too")
    parser.add_argument(
        "--seconds", type=seconds, default=2.0, metavar="S", help="for each batch size and precision (default: 2)"
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="K", help="of the drawn arguments (default: 0)")


def run(options: argparse.Namespace) -> int:
    qmodel = jaxq.load(options.file, trusted=options.trusted)
    plan = qmodel.plan
    check_batch(plan, options.batch)
    in_float = _in_float(plan) if options.against else None
    batches = []
    for size in options.batch or [1]:
        label = f"batch {size}: " if follows_batch(plan) else ""
        args = draw(plan, size, options.seed)
        functions: dict[str, Callable[[], Any]] = {"int8": functools.partial(qmodel, *args)}
        if in_float is not None:
            functions["float"] = in_float(size, args)
        for name, function in functions.items():
            progress(f"{label}{name} compiled in {first_call(function):.1f} s")
        progress(f"{label}timing for {options.seconds * len(functions):g} s")
        times, layers = interleaved(functions, options.seconds), None
        if options.layers:
            progress(f"{label}compiling layers, one by one, and timing for {options.seconds:g} s")
            layers = layer_times(plan, size, options.seconds, options.seed)
        batches.append(_Batch(size if follows_batch(plan) else None, times, layers))
    device = jax.devices()[0]
    facts = {
        "file": options.file,
        "device": f"{device.platform} ({device.device_kind})",
        "machine": load(),
        "jax": jax.__version__,
        "tables_in_float": _tables(plan) if options.against else [],
    }
    if options.json:
        print_json(facts | {"batches": [batch.data() for batch in batches]})
    else:
        _print(facts, batches)
    return 0


def _in_float(plan: Plan) -> Callable[[int, Any], Callable[[], Any]]:
    """A batch size and arguments to the call of the plan's float form."""
    graph = lift(plan.graph)
    params = jax.tree.map(jnp.asarray, graph.params)

    def at(size: int, args: Any) -> Callable[[], Any]:
        bound = graph.bind(size)
        run = jax.jit(lambda params, leaves: evaluate(bound, params, leaves))
        return functools.partial(run, params, jax.tree.leaves(args))

    return at


def _tables(plan: Plan) -> list[str]:
    """The nodes whose function stays a table in float."""
    return [node.name for node in plan.graph.all_nodes if node.get("table") is not None and not is_liftable(node)]


@dataclass(frozen=True)
class _Batch:
    """What was timed at one batch size; None where the plan has one only."""

    size: int | None
    times: Mapping[str, Times]
    layers: LayerTimes | None

    @property
    def label(self) -> str:
        return "" if self.size is None else f"batch {self.size}: "

    @property
    def ratio(self) -> float | None:
        """The time of float over that of int8, of their medians."""
        return self.times["float"].median / self.times["int8"].median if "float" in self.times else None

    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = {"batch": self.size}
        for name, times in self.times.items():
            data[name] = {
                "calls": len(times.calls),
                **{f"p{percent}_ms": times.percentile(percent) for percent in PERCENTILES},
                "calls_per_second": times.per_second,
                "examples_per_second": None if self.size is None else self.size * times.per_second,
            }
        if self.ratio is not None:
            data["float_over_int8"] = self.ratio
        if self.layers is not None:
            data["empty_call_ms"] = self.layers.empty_ms
            data["layers"] = [
                {"name": layer.name, "op": layer.op, "p50_ms": layer.ms, "share": layer.ms / self.layers.total}
                for layer in self.layers.layers
            ]
        return data

    def rows(self) -> Iterator[tuple[str, ...]]:
        for name, times in self.times.items():
            percentiles = (f"{times.percentile(percent):.3f}" for percent in PERCENTILES)
            throughput = f"{(self.size or 1) * times.per_second:,.1f}"
            yield (str(self.size or "fixed"), name, *percentiles, throughput, f"{len(times.calls):,}")


def _print(facts: dict[str, Any], batches: list[_Batch]) -> None:
    print(f"{facts['file']} on {facts['device']}, {facts['machine']}, jax {facts['jax']}\n")
    per = "calls/s" if batches[0].size is None else "examples/s"
    head = ("batch", "precision", *(f"p{percent} ms" for percent in PERCENTILES), per, "calls")
    print(table(head, [row for batch in batches for row in batch.rows()]))
    for batch in batches:
        if batch.ratio is not None:
            print(f"{batch.label}float takes {batch.ratio:.2f} x the time of int8 (p50)")
    if names := facts["tables_in_float"]:
        print(f"float looks {counted(len(names), 'function')} up in a table, as int8 does: {', '.join(names)}")
    for batch in batches:
        if (layers := batch.layers) is not None:
            print(f"\n{batch.label}int8 layers alone; an empty call takes {layers.empty_ms:.3f} ms")
            rows = [(each.name, each.op, f"{each.ms:.3f}", f"{each.ms / layers.total:.1%}") for each in layers.layers]
            print(table(("layer", "op", "p50 ms", "share"), rows))
