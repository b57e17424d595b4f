"""`jaxq verify`: computes a plan's integers once more in NumPy and compares the bits."""

import argparse
import dataclasses
from typing import Any

import jax
import numpy as np

import jaxq
from jaxq.cli.arguments import batch_size, check_batch, draw, seed
from jaxq.cli.probe import Difference, decibels, difference, differences, inside_bodies, int8_nodes, is_exact, probe
from jaxq.cli.text import add_command, counted, print_json, progress, table
from jaxq.graph.node import Node

# Of results behind float nodes, which differ between two programs in their last bits, and then in a few integers.
FLOOR = 30.0

_MORE = """\
The plan is compiled for this machine with every int8 node as a result. NumPy computes each of these nodes from the
operands that it had there, by the definition of the numerics and with no code of the backends, and every bit has to be
the same. A node that differs is itself wrong, whatever was wrong before it.

Then the results are compared with those of the plan as it is served: in every bit where only integers lead to them; in
decibels, at least 30, where float nodes do. Arguments are drawn of the plan's shapes and dtypes.

Nodes inside loops and branches are not compared one by one; the last line says how many there are.

examples:
  jaxq verify net.jaxq
  jaxq verify net.jaxq --batch 8 --seed 1

exit code 1: a bit differs; the nodes that do are printed, the first one first.
"""


@dataclasses.dataclass(frozen=True)
class Result:
    """A result of the plan as it is served, beside the same in the program that was compared node by node.

    Attributes:
      bound_by: what has to hold of it: "bits" where only integers lead to it, "decibels" of floats behind float nodes,
        and "nothing" of integers that floats chose (the index of a largest value, say): one tie gives another.
    """

    name: str
    bound_by: str
    decibels: float
    difference: Difference | None

    @property
    def is_right(self) -> bool:
        if self.difference is None or self.bound_by == "nothing":
            return True
        return self.bound_by == "decibels" and self.decibels >= FLOOR

    def __str__(self) -> str:
        if self.difference is None:
            return f"result {self.name}: every bit the same"
        differ = f"{self.difference.count:,} of {counted(self.difference.size, 'element')} differ"
        how = {
            "bits": "only integers lead to it: none may",
            "decibels": f"float nodes lead to it: {self.decibels:.1f} dB, of which {FLOOR:g} are right",
            "nothing": "integers that floats chose: not judged",
        }
        return f"result {self.name}: {differ}; {how[self.bound_by]}"


def add_to(commands: Any) -> None:
    parser = add_command(commands, "verify", run, "Computes a plan once more in NumPy and compares the bits.", _MORE)
    parser.add_argument("file", help="a .jaxq file")
    parser.add_argument("--batch", type=batch_size, metavar="N", help="batch size (default: 1)")
    parser.add_argument("--seed", type=seed, default=0, metavar="K", help="of the drawn arguments (default: 0)")


def run(options: argparse.Namespace) -> int:
    qmodel = jaxq.load(options.file, trusted=options.trusted)
    batch = options.batch or 1
    check_batch(qmodel.plan, options.batch)
    args = draw(qmodel.plan, batch, options.seed)
    progress("compiling, with every int8 node as a result")
    graph, values = probe(qmodel.plan, batch, args)
    nodes, unseen = len(int8_nodes(graph)), inside_bodies(graph)
    progress(f"computing {counted(nodes, 'int8 node')} in NumPy")
    wrong = list(differences(graph, values))
    progress("compiling, as the plan is served")
    served = jax.tree.leaves(qmodel(*args))
    results = [_result(node, values[node], np.asarray(y)) for node, y in zip(graph.outputs, served, strict=True)]
    is_right = not wrong and all(result.is_right for result in results)
    if options.json:
        data = {"file": options.file, "batch": batch, "seed": options.seed, "right": is_right, "nodes": nodes}
        data |= {"nodes_in_loops": unseen, "differences": [dataclasses.asdict(each) for each in wrong]}
        print_json(data | {"results": [dataclasses.asdict(each) | {"right": each.is_right} for each in results]})
    else:
        _print(wrong, results, nodes, unseen)
    return 0 if is_right else 1


def _result(node: Node, expected: np.ndarray, served: np.ndarray) -> Result:
    bound_by = "bits" if is_exact(node) else "decibels" if node.aval.is_float else "nothing"
    return Result(node.name, bound_by, decibels(expected, served), difference(node, expected, served))


def _print(wrong: list[Difference], results: list[Result], nodes: int, unseen: int) -> None:
    if wrong:
        print(f"{counted(len(wrong), 'int8 node')} of {nodes:,} differ; the first is {wrong[0].name!r}\n")
        head = ("node", "op", "differ", "of", "largest", "first at", "NumPy", "plan")
        print(table(head, [_cells(each) for each in wrong]))
    else:
        print(f"{counted(nodes, 'int8 node')}: every bit the same")
    for result in results:
        print(f"{'' if result.is_right else 'WRONG: '}{result}")
    if unseen:
        print(f"not compared: {counted(unseen, 'int8 node')} inside loops and branches")


def _cells(each: Difference) -> tuple[Any, ...]:
    largest = "NaN" if each.largest is None else f"{each.largest:g}"
    values = (f"{each.expected:g}", f"{each.found:g}")
    return (each.name, each.op, f"{each.count:,}", f"{each.size:,}", largest, str(list(each.index)), *values)
