"""What the passes make of a network, in numbers. Nothing is compiled and no batch is run: every threshold is 1."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxq import passes
from jaxq.config import QuantConfig
from jaxq.graph.node import WEIGHTED, Node
from jaxq.graph.trace import trace
from jaxq.graph.verify import verify
from jaxq.models import as_function
from jaxq.passes.place import place
from jaxq.passes.scales import choices_of
from jaxq.report import Row, rows

# Rows that stand at the borders of int8 regions; how many there are follows from the rest.
BORDERS = frozenset({"quantize", "dequantize"})


@dataclass(frozen=True)
class Counts:
    """How many of each. A count that is not there is 0.

    Attributes:
      int8: rows in int8 by op, "conv", "dot", "pool", "add", ..., without the borders. A merged conv is one.
      float: rows in float by op, without the slices of a merged op's float result: what was not quantized, in full.
      fused: epilogues of int8 rows by the word that they hold, "bias", "relu", "residual", "requantize", ...
      merges: merged rows by the number of branches in each.
      norms: maps per channel left in the float graph, in no conv's or dot's weights: norms that did not fold.
      quantized, dequantized: borders.
      fixed_because: why the batch size is fixed, or None.
      rows: all of them, for what a number does not say.
    """

    int8: Counter[str]
    float: Counter[str]
    fused: Counter[str]
    merges: Counter[int]
    norms: int
    quantized: int
    dequantized: int
    fixed_because: str | None
    rows: tuple[Row, ...] = field(repr=False)

    def named(self, part: str) -> list[Row]:
        """The rows whose name holds `part`."""
        return [row for row in self.rows if part in row.name]


def _differs_by_channel(node: Node) -> bool:
    """True for a scale or bias of several values: a parameter, where a number is the same in each channel."""
    vectors = [operand.value for role in ("scale", "bias") if (operand := node.get(role)) is not None]
    return any(np.ptp(vector) > 0 for vector in vectors)


def count(model: Any, variables: Any, *args: Any, config: QuantConfig | None = None, **static_kwargs: Any) -> Counts:
    """Traces, simplifies, places, lowers and verifies the model.

    Args:
      model: a Linen module, an NNX module (`variables` is None), or fun(params, *args).
      variables: its parameters.
      args: one batch; `jax.ShapeDtypeStruct` serves.
      config: rules, if any.
      static_kwargs: of every call.
    """
    config = config or QuantConfig()
    fun, params = as_function(model, variables, static_kwargs)
    traced = trace(fun, params, args)
    graph = verify(passes.simplify(traced.graph), "float")
    placement = place(graph, config)
    thresholds = {group.name: 1.0 for group in placement.scale_groups}
    found = rows(verify(passes.quantize(graph, placement, choices_of(placement, thresholds), config), "quantized"))

    int8 = [row for row in found if row.precision == "int8"]
    words = [word for row in int8 for word in row.fused]
    merged = [int(word.removeprefix("merged:")) for word in words if word.startswith("merged:")]
    return Counts(
        int8=Counter(row.op for row in int8 if row.op not in BORDERS),
        float=Counter(row.op for row in found if row.precision == "float" and "merged layer" not in row.reason),
        fused=Counter(word for word in words if not word.startswith("merged:")),
        merges=Counter(merged),
        norms=sum(node.op not in WEIGHTED and _differs_by_channel(node) for node in graph.nodes),
        quantized=sum(row.op == "quantize" for row in int8),
        dequantized=sum(row.op == "dequantize" for row in int8),
        fixed_because=traced.fixed_because,
        rows=found,
    )
