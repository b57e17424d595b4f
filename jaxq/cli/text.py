"""What the commands share of text: their parsers, tables, JSON, and progress."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], says: str, more: str
) -> argparse.ArgumentParser:
    """The command's parser; `says` is one sentence, `more` the examples and the facts below its options."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=says, description=says, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print data instead of a table")
    parser.add_argument("--trusted", action="store_true", help="read StableHLO, too, which only its writer makes safe")
    return parser


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns as wide as their cells; numbers stand at the right."""
    lines = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    numeric = [bool(lines) and all(_is_number(cell) for cell in column) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric or [False] * len(head), strict=True)
        )
        return "  ".join(aligned).rstrip()

    return "\n".join([line(head), "  ".join("-" * width for width in widths), *map(line, lines)])


def _is_number(cell: str) -> bool:
    return not cell.strip("0123456789.,%- ")


def print_json(data: Any) -> None:
    """The data as JSON; numbers that it lacks as text: "inf", "-inf", "nan"."""
    print(json.dumps(_plain(data), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def progress(message: str) -> None:
    """A line of progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


def counted(number: int, noun: str) -> str:
    """1 node, 2 nodes."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
