"""The passes, in order.

float graph     constants -> products, layout -> canonical, fold -> rows, fuse -> elementwise     exact but for rounding
int8 graph      place -> lower -> tables -> merge     place decides, lower computes the integers, the rest change no bit

Each pass goes through the bodies of scan, while and cond too.
"""

from jaxq.config import QuantConfig
from jaxq.graph.node import Graph
from jaxq.graph.rewrite import rewrite
from jaxq.passes import canonical, fold, fuse, layout, products, rows, tables
from jaxq.passes.choices import Choices
from jaxq.passes.constants import fold_constants
from jaxq.passes.elementwise import collapse
from jaxq.passes.lower import lower
from jaxq.passes.merge import merge
from jaxq.passes.parameters import name_parameters
from jaxq.passes.place import Placement


def simplify(graph: Graph) -> Graph:
    """The exact passes on a traced graph."""
    graph = fold_constants(graph)
    graph = rewrite(graph, products.RULES + layout.RULES)
    graph = rewrite(graph, canonical.RULES + fold.RULES + fuse.ACTIVATIONS)
    graph = rewrite(rows.recognise(graph), rows.RULES + fuse.RULES)
    return name_parameters(collapse(graph))


def quantize(
    graph: Graph, placement: Placement, choices: Choices, config: QuantConfig, *, merging: bool = True
) -> Graph:
    """A simplified, placed float graph to the int8 graph. Without `merging` parallel layers stay apart, and each node
    has the name of the float node that it was."""
    graph = rewrite(lower(graph, placement, choices, config), tables.RULES)
    return name_parameters(merge(graph) if merging else graph)
