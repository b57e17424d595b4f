"""python -m pallas_kernels.bench: are the kernels right on this GPU, and how fast?

It measures the machine's ceilings, checks every kernel against its reference, and times kernels beside XLA's int8, bf16
and f32. The rows stand in a file of JSON lines as soon as they are measured; given the same file again, a run goes on
where the last one ended. Exit code 1 where a kernel failed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from pallas_kernels.bench import table
from pallas_kernels.bench.cases import timed
from pallas_kernels.bench.checks import checks
from pallas_kernels.bench.run import Run


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser("python -m pallas_kernels.bench", description=__doc__)
    parser.add_argument(
        "--budget", type=float, default=420, help="seconds after which nothing more begins (%(default)s)"
    )
    parser.add_argument("--output", type=Path, help="file of JSON lines; its rows are kept, and not measured again")
    parser.add_argument("--only", default="", metavar="REGEX", help="what to check and to time, by name")
    parser.add_argument("--list", action="store_true", help="print the names, and measure nothing")
    parser.add_argument("--tune", action="store_true", help="time all tactics of each shape instead")
    parser.add_argument(
        "--interpret", action="store_true", help="tiny shapes, interpreted: for a machine without a GPU"
    )
    options = parser.parse_args(arguments)
    if options.list:
        names = [check.name for check in checks(options.interpret)] + [case.name for case in timed(options.interpret)]
        print("\n".join(names))
        return 0
    if not options.interpret and jax.default_backend() != "gpu":
        parser.error("JAX sees no GPU here; --interpret runs tiny shapes without one")

    run = Run(options.output, options.budget, options.interpret, options.only)
    cases = timed(options.interpret)
    if options.tune:
        run.tune(cases)
    else:
        run.ceilings(*((64, 2**16) if options.interpret else ()))
        run.check(checks(options.interpret))
        run.time(cases)
        print("\n".join(table.lines(run.rows)))
    if run.skipped:
        print(f"\nskipped, the budget of {options.budget:g} s being spent: {', '.join(run.skipped)}")
    print(f"\n{len(run.passed)} passed, {len(run.failed)} failed")
    for row in run.failed:
        print(f"  {row['name']}: {row['reason']}")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
