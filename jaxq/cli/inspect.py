"""`jaxq inspect`: what is in a file."""

import argparse
import dataclasses
import os
from typing import Any

from jaxq.cli.arguments import batch_of, shown
from jaxq.cli.text import add_command, counted, print_json
from jaxq.models import shown as structure
from jaxq.plan import artifact
from jaxq.plan.artifact import PLAN_FILE
from jaxq.plan.plan import Plan

_MORE = """\
The table has a row for every layer: what was fused into it, in which precision it runs, and why it stays in float.
Nothing is compiled, and no weight is put on a device.

examples:
  jaxq inspect net.jaxq
  jaxq inspect net.jaxq --json | jq '.layers[] | select(.precision == "float") | {name, reason}'
"""


def add_to(commands: Any) -> None:
    parser = add_command(commands, "inspect", run, "Shows what is in a file: its facts, and a table of layers.", _MORE)
    parser.add_argument("file", help="a .jaxq file")


def run(options: argparse.Namespace) -> int:
    facts, plan = _facts(options.file, options.trusted)
    if options.json:
        print_json(facts | {"layers": [dataclasses.asdict(row) for row in plan.summary.nodes]})
        return 0
    print(f"{facts['file']}: {facts['bytes']:,} bytes, {counted(facts['arrays'], 'array')}")
    print(f"written by jaxq {facts['jaxq']} and jax {facts['jax']}, schema {facts['schema']}")
    print(f"signature: {facts['signature']}")
    for kind in ("arguments", "results"):
        for value in facts[kind]:
            print(f"  {kind[:-1]} {value['name']}: {value['dtype']}[{', '.join(map(str, value['shape']))}]")
    print()
    print(plan.summary)
    return 0


def _facts(path: str, trusted: bool) -> tuple[dict[str, Any], Plan]:
    header, arrays = PLAN_FILE.read(path)
    plan, _ = artifact.load(path, trusted)
    summary = plan.summary
    facts = {
        "file": path,
        "bytes": os.path.getsize(path),
        "schema": header["schema"],
        "jaxq": header.get("jaxq"),
        "jax": header.get("jax"),
        "arrays": len(arrays),
        "array_bytes": sum(array.nbytes for array in arrays.values()),
        "signature": f"{structure(plan.in_tree)} -> {structure(plan.out_tree)}",
        "arguments": [{"name": node.name, **shown(node.aval)} for node in plan.graph.inputs],
        "results": [{"name": node.name, **shown(node.aval)} for node in plan.graph.outputs],
        "batch": batch_of(plan),
        "weights": {"float_bytes": summary.float_bytes, "int8_bytes": summary.int8_bytes},
        "thresholds": dict(summary.methods),
        "unmatched_rules": summary.unmatched_rules,
    }
    return facts, plan
