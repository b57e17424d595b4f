"""`jaxq bench`: how fast a plan is on this machine."""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import jaxq
from jaxq.cli import float_form
from jaxq.cli.arguments import batch_sizes, check_batch, draw, follows_batch
from jaxq.cli.layers import LayerTimes, layer_times
from jaxq.cli.stopwatch import Times, first_call, interleaved, load
from jaxq.cli.text import add_command, counted, print_json, progress, table
from jaxq.graph.evaluate import evaluate
from jaxq.plan.plan import Plan

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
        "--seconds", type=_seconds, default=2.0, metavar="S", help="for each batch size and precision (default: 2)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="K", help="of the drawn arguments (default: 0)")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"seconds are a number above 0, not {text!r}")
    return seconds


def run(options: argparse.Namespace) -> int:
    qmodel = jaxq.load(options.file)
    check_batch(qmodel.plan, options.batch)
    tables = float_form.unnamed(qmodel.plan.graph) if options.against else []
    results = []
    for batch in options.batch or [1]:
        times = _whole(qmodel, batch, options)
        layers = _layers(qmodel.plan, batch, options) if options.layers else None
        results.append((batch if follows_batch(qmodel.plan) else None, times, layers))
    device = jax.devices()[0]
    facts = {
        "file": options.file,
        "device": f"{device.platform} ({device.device_kind})",
        "machine": load(),
        "jax": jax.__version__,
        "float_form_with_tables": tables,
    }
    if options.json:
        print_json(facts | {"batches": [_data(*result) for result in results]})
    else:
        _print(facts, results)
    return 0


def _whole(qmodel: Any, batch: int, options: argparse.Namespace) -> dict[str, Times]:
    plan: Plan = qmodel.plan
    args = jax.device_put(draw(plan, batch, options.seed))
    functions: dict[str, Callable[[], Any]] = {"int8": lambda: qmodel(*args)}
    if options.against:
        graph, leaves = plan.graph.bind(batch), jax.tree.leaves(args)
        compiled = jax.jit(lambda params, leaves: evaluate(graph, params, leaves, float_form.lower))
        params = jax.tree.map(jnp.asarray, float_form.parameters(plan.graph))
        functions["float"] = lambda: compiled(params, leaves)
    for name, function in functions.items():
        progress(f"batch {batch}: {name} compiled in {first_call(function):.1f} s")
    progress(f"batch {batch}: timing for {options.seconds * len(functions):g} s")
    return interleaved(functions, options.seconds)


def _layers(plan: Plan, batch: int, options: argparse.Namespace) -> LayerTimes:
    progress(f"batch {batch}: compiling layers, one by one")
    return layer_times(plan, batch, options.seconds, options.seed)


def _data(batch: int | None, times: dict[str, Times], layers: LayerTimes | None) -> dict[str, Any]:
    whole = {
        name: {
            "calls": len(each.calls),
            **{f"p{percent}_ms": each.percentile(percent) for percent in (50, 90, 99)},
            "calls_per_second": each.per_second,
            "examples_per_second": None if batch is None else batch * each.per_second,
        }
        for name, each in times.items()
    }
    data: dict[str, Any] = {"batch": batch, **whole}
    if "float" in times:
        data["float_over_int8"] = times["float"].median / times["int8"].median
    if layers is not None:
        data["empty_call_ms"] = layers.empty_ms
        data["layers"] = [
            {"name": layer.name, "op": layer.op, "p50_ms": layer.ms, "share": layer.ms / layers.total}
            for layer in layers.layers
        ]
    return data


def _print(facts: dict[str, Any], results: list[tuple[int | None, dict[str, Times], LayerTimes | None]]) -> None:
    print(f"{facts['file']} on {facts['device']}, {facts['machine']}, jax {facts['jax']}\n")
    rows = [
        (
            "fixed" if batch is None else batch,
            name,
            *(f"{each.percentile(percent):.3f}" for percent in (50, 90, 99)),
            f"{(batch or 1) * each.per_second:,.1f}",
            f"{len(each.calls):,}",
        )
        for batch, times, _ in results
        for name, each in times.items()
    ]
    per = "calls/s" if results[0][0] is None else "examples/s"
    print(table(("batch", "precision", "p50 ms", "p90 ms", "p99 ms", per, "calls"), rows))
    for batch, times, layers in results:
        of = "" if batch is None else f"batch {batch}: "
        if "float" in times:
            print(f"{of}float takes {times['float'].median / times['int8'].median:.2f} x the time of int8 (p50)")
        if layers is not None:
            print(f"\n{of}int8 layers alone, {layers.total:.3f} ms together; an empty call: {layers.empty_ms:.3f} ms")
            timed = [(each.name, each.op, f"{each.ms:.3f}", f"{each.ms / layers.total:.1%}") for each in layers.layers]
            print(table(("layer", "op", "p50 ms", "share"), timed))
    if facts["float_form_with_tables"]:
        names = facts["float_form_with_tables"]
        print(f"the float form looks {counted(len(names), 'function')} up in a table, as int8 does: {', '.join(names)}")
