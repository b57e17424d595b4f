"""The command line, `jaxq` or `python -m jaxq`: one file for each command."""

import argparse
import os
import sys
from collections.abc import Sequence

from jaxq.cli import bench, diff, inspect, report, tune, verify
from jaxq.errors import JaxqError
from jaxq.version import __version__

_EPILOG = """\
examples:
  jaxq inspect net.jaxq                              what is in the file, layer by layer
  jaxq bench net.jaxq --batch 1,8,32 --against float latency and throughput, beside float
  jaxq tune net.jaxq -o tuned.jaxq                   layers to float where int8 is slower on this machine
  jaxq report net.jaxq -o report.html                a page: layers, times, thresholds, the fused graph
  jaxq diff old.jaxq new.jaxq                        what differs, down to scales and weights
  jaxq verify net.jaxq                               every bit, computed once more by NumPy

exit codes:
  0    fine
  1    the plans differ, or the check failed
  2    wrong usage, or a file that cannot be read
  130  interrupted by Ctrl-C

`jaxq COMMAND --help` tells more of each."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; `arguments` are those of the process unless given. Returns the exit code.

    Raises:
      SystemExit: wrong usage, or --help, as argparse ends.
    """
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except JaxqError as error:
        print(f"jaxq: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # What read the output has stopped, such as `head`. Python would flush once more at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxq",
        description="Looks into .jaxq files that QuantizedModel.save writes; times, tunes, compares and checks them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"jaxq {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (inspect, bench, tune, report, diff, verify):
        command.add_to(commands)
    return parser
