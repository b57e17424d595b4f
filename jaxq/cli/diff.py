"""`jaxq diff`: in what two plans differ."""

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any

from jaxq.cli.compare import Changes, compare
from jaxq.cli.text import add_command, print_json, table
from jaxq.plan import artifact

_MORE = """\
Nodes are matched by their names. Compared are the signature, every node (its op, precision, shape, what it reads and
what is fused into it), the scales of integers, and the arrays byte by byte; not the versions of jaxq and jax that wrote
the files, nor what does not change the function.

examples:
  jaxq diff old.jaxq new.jaxq
  jaxq diff old.jaxq new.jaxq > /dev/null && echo the same

exit codes, as those of diff: 0 no difference, 1 some, 2 a file that cannot be read.
"""


def add_to(commands: Any) -> None:
    parser = add_command(commands, "diff", run, "Tells in what two plans differ.", _MORE)
    parser.add_argument("old", help="a .jaxq file")
    parser.add_argument("new", help="another")


def run(options: argparse.Namespace) -> int:
    (old, _), (new, _) = (artifact.load(path, options.trusted) for path in (options.old, options.new))
    changes = compare(old, new)
    if options.json:
        print_json({"old": options.old, "new": options.new, "differ": changes.differ, **dataclasses.asdict(changes)})
    else:
        print("\n\n".join(_sections(changes)) if changes.differ else "no difference")
    return 1 if changes.differ else 0


def _sections(changes: Changes) -> Iterator[str]:
    if changes.signature:
        yield "\n".join(("signature", *(f"  {line}" for line in changes.signature)))
    if changes.added or changes.removed or changes.changed:
        count = f"{len(changes.added)} added, {len(changes.removed)} removed, {len(changes.changed)} changed"
        lines = [f"nodes: {count}"]
        lines += [f"  - {name}" for name in changes.removed]
        lines += [f"  + {name}" for name in changes.added]
        lines += [f"  ~ {name}: {'; '.join(what)}" for name, what in changes.changed.items()]
        yield "\n".join(lines)
    if changes.scales:
        largest = max(changes.scales, key=lambda each: each.relative)
        head = f"scales: {len(changes.scales):,} of {changes.compared_scales:,} differ, {largest.name} most"
        rows = [(each.name, f"{each.old:.6g}", f"{each.new:.6g}", f"{each.relative:.3%}") for each in changes.scales]
        yield f"{head}\n{table(('node', 'old', 'new', 'difference'), rows)}"
    if changes.arrays:
        head = f"arrays: {len(changes.arrays):,} of {changes.compared_arrays:,} differ"
        rows = [(each.name, each.layer, f"{each.changed:,}", f"{each.size:,}") for each in changes.arrays]
        yield f"{head}\n{table(('array', 'layer', 'changed bytes', 'of'), rows)}"
