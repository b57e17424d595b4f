"""The few channels of a function's results that are far above the others, computed apart with a scale of their own.

Between two dense layers, y = W f(V x), an int8 f is one table of 256 entries, and gives all channels one scale. In
transformers one channel of 1,536 may be five times as large as the others, which then share a fifth of the levels.
Apart,

    y = W[:, rest] f(V[rest] x) + W[:, outliers] f(V[outliers] x)

each half has its own scales; the second product is the residual of the first. LLM.int8() (arXiv 2208.07339) finds
outliers while it runs, and leaves them in float; here they are int8, and always the same channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from jaxq.calibration.select import SMALLEST_THRESHOLD
from jaxq.graph.node import Aval, Names, Node, QType
from jaxq.passes.accumulating import OPEN, ordered, vector, weight_of
from jaxq.passes.elementwise import renamed, reshaped
from jaxq.passes.parameters import name_parameters
from jaxq.passes.place import ScaleGroup
from jaxq.passes.scales import qtype_of
from jaxq.refine.readers import Values, reader_error
from jaxq.refine.state import Samples, State

# So many channels may be outliers, at most a sixteenth of all; a larger gain than this factor in the error is worth it.
_COUNTS = (1, 2, 4, 8, 16)
_SHARE = 16
_WORTH = 1.5


@dataclass(frozen=True)
class _Hidden:
    """y = W f(V x): the dense layers `made` (V) and `reader` (W), and the function between them."""

    made: Node
    function: Node
    reader: Node

    @property
    def groups(self) -> tuple[str, str]:
        """The names of the scale groups of what the function reads and makes."""
        return self.made.name, self.function.name


@dataclass(frozen=True)
class _Split:
    """Which channels are apart, and what the integers of the others and theirs stand for, of both groups."""

    hidden: _Hidden
    outliers: np.ndarray
    rest: tuple[QType, QType]
    apart: tuple[QType, QType]


def refine(state: State, samples: Samples) -> State:
    """The state with outliers apart, wherever their reader errs less by it."""
    values = samples.values(state.graph)
    amax = samples.amax(state.graph)
    splits = [split for hidden in _hidden(state) if (split := _best(state, hidden, values, amax)) is not None]
    for split in splits:
        state = _apply(state, split)
    return state


def _hidden(state: State) -> Iterator[_Hidden]:
    graph, placement = state.graph, state.placement
    for function in graph.nodes:
        if function.op != "elementwise" or function not in placement.int8 or function in graph.outputs:
            continue
        made, users = function.operand("x"), graph.users[function]
        if made.op != "dot" or made.get("residual") is not None or graph.users[made] != [function]:
            continue
        if made in graph.outputs or made not in placement.int8 or len(users) != 1:
            continue
        (reader,) = users
        alone = reader.op == "dot" and reader.operand("x") is function and reader.get("residual") is not function
        if alone and reader in placement.int8 and reader not in placement.groups:
            yield _Hidden(made, function, reader)


def _best(state: State, hidden: _Hidden, values: Values, largest: Values) -> _Split | None:
    amax, of_made = largest[hidden.function.name], largest[hidden.made.name]
    group = state.placement.groups[hidden.function]
    measure = reader_error(state, group, [hidden.reader], values)
    least, best = measure(state.choices.qtypes[group.name]) / _WORTH, None
    order = np.argsort(-amax)
    for count in (count for count in _COUNTS if count * _SHARE <= len(amax)):
        outliers = np.zeros(len(amax), bool)
        outliers[order[:count]] = True
        rest, apart = (qtype_of(group, max(amax[part].max(), SMALLEST_THRESHOLD)) for part in (~outliers, outliers))
        scale = np.where(outliers, apart.scale, rest.scale)
        zero_point = np.where(outliers, apart.zero_point, rest.zero_point)
        error = measure(QType(group.dtype, scale, zero_point))  # type: ignore[arg-type]
        if error < least:
            made = state.placement.groups[hidden.made]
            rest_made, apart_made = (_narrowed(state, made, of_made[part].max()) for part in (~outliers, outliers))
            best, least = _Split(hidden, outliers, (rest_made, rest), (apart_made, apart)), error
    return best


def _narrowed(state: State, group: ScaleGroup, amax: float) -> QType:
    """What the group stands for, of values that may be smaller."""
    before, narrow = state.choices.qtypes[group.name], qtype_of(group, max(amax, SMALLEST_THRESHOLD))
    return narrow if np.all(narrow.scale < before.scale) else before


def _apply(state: State, split: _Split) -> State:
    hidden, outliers = split.hidden, split.outliers
    names = Names()
    for node in state.graph.all_nodes:
        names.unique(node.name)
    apart_name = {node: names.unique(f"{node.name}/outliers") for node in (hidden.made, hidden.function, hidden.reader)}

    def part(made: Node, function: Node, kept: np.ndarray) -> Node:
        """f(V[kept] x)."""
        operands = {"x": made.operand("x"), "weight": weight_of(made, made.operand("weight").value[kept])}
        if (bias := made.get("bias")) is not None:
            operands["bias"] = vector(bias.value[kept], made, "bias")
        shape = (*made.aval.shape[:-1], int(kept.sum()))
        made = ordered(made, operands).replace(aval=Aval(shape, made.aval.dtype))
        return reshaped(function, shape).with_operands({"x": made})

    def change(node: Node) -> Node:
        if node.name != hidden.reader.name or node.op != "dot":
            return node
        function = node.operand("x")
        made = function.operand("x")
        apart = (made.replace(name=apart_name[hidden.made]), renamed(function, apart_name[hidden.function]))
        weight = node.operand("weight").value
        of_outliers = node.with_attrs(**OPEN).replace(name=apart_name[hidden.reader])
        operands = {"x": part(*apart, outliers)}
        operands["weight"] = weight_of(of_outliers, weight[:, outliers])
        if (residual := node.get("residual")) is not None:
            operands["residual"] = residual
        second = ordered(of_outliers, operands)
        operands = {"x": part(made, function, ~outliers), "weight": weight_of(node, weight[:, ~outliers])}
        if (bias := node.get("bias")) is not None:
            operands["bias"] = bias
        return ordered(node, operands | {"residual": second})

    graph = name_parameters(state.graph.map(change))
    of_rest = dict(zip(hidden.groups, split.rest, strict=True))
    of_apart = dict(zip((apart_name[hidden.made], apart_name[hidden.function]), split.apart, strict=True))
    weights = {
        name: weight
        for name, weight in state.choices.weights.items()
        if name not in (hidden.made.name, hidden.reader.name)
    }
    choices = replace(state.choices, qtypes={**state.choices.qtypes, **of_rest, **of_apart}, weights=weights)
    return replace(state, graph=graph, placement=state.placed(graph), choices=choices)
