"""`jaxq tune`: which layers are faster in float on this machine."""

import argparse
from typing import Any

from jaxq.api import BUDGETS
from jaxq.cli.arguments import batch_size, check_batch, seconds
from jaxq.cli.text import add_command, counted, print_json, table
from jaxq.plan import artifact
from jaxq.report import Summary
from jaxq.retune import retune

_MORE = """\
Every int8 layer is timed alone, by each kernel that this device has for it, and its float form beside it; then whole
networks: the plan as it is, the same in float, and the mix that keeps in float the layers where int8 loses by more than
the borders around it cost. The fastest is written to the file that -o names, with the kernels of its layers where these
are not the default; without -o nothing is written.

A file holds no float weights of its int8 layers: a layer that goes to float computes on its dequantized weights, as in
`jaxq bench --against float`. What it gives is nearer to the float model than in int8, and not equal to it. To tune with
the model's own weights, quantize(..., tune="fast"). Layers that are in float stay there.

Times are kept in ~/.cache/jaxq, or in the folder that JAXQ_CACHE_DIR names.

examples:
  jaxq tune net.jaxq -o tuned.jaxq
  jaxq tune net.jaxq --batch 32 --budget full -o tuned.jaxq
  jaxq tune net.jaxq --json | jq .chosen
"""


def add_to(commands: Any) -> None:
    parser = add_command(commands, "tune", run, "Puts the layers in float where int8 is slower on this machine.", _MORE)
    parser.add_argument("file", help="a .jaxq file")
    parser.add_argument("-o", "--output", metavar="FILE", help="where to write the tuned plan")
    parser.add_argument("--batch", type=batch_size, metavar="N", help="the batch size to measure at (default: 1)")
    parser.add_argument(
        "--budget",
        type=_seconds,
        default="fast",
        metavar="B",
        help="fast (30 s, the default), full (300 s), or a number of seconds",
    )


def _seconds(text: str) -> float:
    if BUDGETS.get(text):
        return BUDGETS[text]
    try:
        return seconds(text)
    except argparse.ArgumentTypeError:
        what = f"a budget is fast, full, or a number of seconds above 0, not {text!r}"
        raise argparse.ArgumentTypeError(what) from None


def run(options: argparse.Namespace) -> int:
    plan, _ = artifact.load(options.file, options.trusted)
    check_batch(plan, options.batch)
    tuned = retune(plan, options.budget, options.batch or 1)
    if options.output:
        tuned.save(options.output)
    summary = tuned.summary()
    if options.json:
        print_json(_data(options.file, summary))
    else:
        _print(summary, options.output)
    return 0


def _data(path: str, summary: Summary) -> dict[str, Any]:
    tuning = summary.tuning
    assert tuning is not None
    now = {row.name: {"precision": row.precision, "tactic": row.tactic} for row in summary.nodes}
    nothing = {"precision": None, "tactic": ""}
    layers = [
        {"name": name, "int8_ms": 1e3 * int8, "float_ms": 1e3 * in_float} | now.get(name, nothing)
        for name, (int8, in_float) in tuning.layers.items()
    ]
    networks = {f"{name}_ms": 1e3 * seconds for name, seconds in tuning.seconds.items()}
    return (
        {"file": path, "device": tuning.device, "batch": tuning.batch, "chosen": tuning.chosen}
        | networks
        | {"layers": layers, "left_out": tuning.failures}
    )


def _print(summary: Summary, output: str | None) -> None:
    tuning = summary.tuning
    assert tuning is not None
    now = {row.name: f"{row.precision} {row.tactic}".rstrip() for row in summary.nodes}
    rows = [
        (name, f"{1e3 * int8:.3f}", f"{1e3 * in_float:.3f}", now.get(name, ""))
        for name, (int8, in_float) in tuning.layers.items()
    ]
    print(table(("layer", "int8 ms", "float ms", "now"), rows))
    print()
    print("\n".join(tuning.lines()))
    moved = sum(row.precision == "float" and row.name in tuning.layers for row in summary.nodes)
    print(f"{counted(moved, 'layer')} in float; {f'written to {output}' if output else 'nothing written: no -o'}")
