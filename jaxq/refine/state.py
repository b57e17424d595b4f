"""What refinement works on."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.calibration.step import leading_size, rows
from jaxq.config import QuantConfig
from jaxq.graph.evaluate import evaluate
from jaxq.graph.node import Aval, Graph, Node
from jaxq.passes.choices import Choices
from jaxq.passes.place import Placement, place
from jaxq.passes.simulate import Levels, Simulated, float_function

# The values of a graph on the examples to fit are held in memory, of as many of these as take so many bytes.
_ROOM = 1 << 30

# Of so many examples one is held back.
_HELD_BACK = 4

# The results are compared on so many examples at once.
_PART = 16

_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class State:
    """A placed float graph and what was chosen for it.

    Attributes:
      placer: places another graph as it was placed; by the config alone unless given.
      layers: what the last step found of each layer that it judged apart, as `Gain` has it.
    """

    graph: Graph
    placement: Placement
    choices: Choices
    config: QuantConfig
    placer: Callable[[Graph], Placement] | None = None
    layers: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @cached_property
    def compiled(self) -> dict[str, Any]:
        """Functions that steps have compiled for the graph and its placement, by a name."""
        return {}

    @cached_property
    def simulated(self) -> Simulated:
        return Simulated(self.graph, self.placement)

    @cached_property
    def run(self) -> Callable[..., list[jax.Array]]:
        """The simulated int8 graph, compiled: (parameters, levels, leaves) to outputs."""
        return jax.jit(lambda params, levels, leaves: self.simulated(params, levels, leaves, self._batch(leaves)))

    def placed(self, graph: Graph) -> Placement:
        """The placement of a graph that the state's was rewritten to."""
        return place(graph, self.config) if self.placer is None else self.placer(graph)

    def _batch(self, leaves: Sequence[Any]) -> int:
        return leading_size(self.graph, leaves)

    def choose(self, **changes: Any) -> "State":
        """The state with other choices; what is compiled for it stays."""
        return self._with(choices=replace(self.choices, **changes))

    def with_layers(self, layers: Mapping[str, tuple[float, float]]) -> "State":
        """The state with what was found of these layers; what is compiled for it stays."""
        return self._with(layers=layers)

    def _with(self, **changes: Any) -> "State":
        new = replace(self, **changes)
        for name in ("simulated", "run", "compiled"):
            new.__dict__[name] = getattr(self, name)
        return new

    def weight(self, node: Node) -> np.ndarray:
        """The real weight that a conv's or dot's integers stand for."""
        return self.simulated.weight(node, self.choices, self.config)


# A layer's turn in a walk: the state, the layer, what was made so far on the examples to fit, and on those held back.
Visit = Callable[[State, Node, Mapping[str, np.ndarray], Mapping[str, np.ndarray]], State]


@dataclass(frozen=True, eq=False)
class Samples:
    """Calibration examples: `fit` to choose by, `held` back to judge by; the leaves of the graph's arguments."""

    fit: Sequence[np.ndarray]
    held: Sequence[np.ndarray]
    _exact: dict[Graph, Any] = field(default_factory=dict)
    _values: dict[Graph, Any] = field(default_factory=dict)
    _amax: dict[Graph, Any] = field(default_factory=dict)

    @staticmethod
    def split(graph: Graph, leaves: Sequence[np.ndarray]) -> "Samples":
        """One of four is held back; of a fixed batch, or a single example, all are fitted and judged by."""
        size = leading_size(graph, leaves)
        if size < 2:
            return Samples(leaves, leaves)
        held = max(size // _HELD_BACK, 1)
        return Samples(rows(graph, leaves, slice(held, None)), rows(graph, leaves, slice(held)))

    def values(self, graph: Graph) -> Mapping[str, np.ndarray]:
        """The float value of every node, on the first of the examples to fit, as many as there is room for."""
        if graph not in self._values:
            self._values.clear()
            self._values[graph] = _values(graph, self.fit)
        found: Mapping[str, np.ndarray] = self._values[graph]
        return found

    def parts(self, graph: Graph) -> list[Sequence[np.ndarray]]:
        """The examples to fit, a few at a time."""
        return _parts(graph, self.fit)

    def amax(self, graph: Graph) -> Mapping[str, np.ndarray]:
        """The largest magnitude of each channel of every float value, float64 (C,), on all examples to fit."""
        if graph not in self._amax:
            self._amax.clear()
            self._amax[graph] = _amax(graph, self.parts(graph))
        found: Mapping[str, np.ndarray] = self._amax[graph]
        return found

    def held_values(self, graph: Graph) -> Mapping[str, np.ndarray]:
        """The like on the examples held back."""
        return _values(graph, self.held)

    def walk(self, state: State, names: Collection[str], visit: Visit) -> State:
        """Computes the int8 graph once, on the examples to fit and those held back, and before each of the convs and
        dots named calls `visit(state, node, fit, held)`: with the state so far, and what was made so far of both, not
        yet rounded, as in `values`. The state that it returns differs in the weights of the node, or in what is rounded
        for it alone; by that one the node is computed, and the last is returned."""
        graph, simulated = state.graph, state.simulated
        nodes = {node.name: node for node in graph.nodes if node.name in names}
        params = jax.device_put(graph.params)
        sets = [_fitting(graph, leaves) for leaves in (self.fit, self.held)]
        made = [dict(zip((node.name for node in graph.inputs), leaves, strict=True)) for leaves in sets]
        levels = simulated.levels(state.choices, state.config)

        def levels_at(bound: Node) -> Levels:
            nonlocal state, levels
            if (node := nodes.pop(bound.name, None)) is not None:
                state = visit(state, node, *made)
                known = {name: weight for name, weight in levels.weights.items() if name != node.name}
                levels = simulated.levels(state.choices, state.config, known)
            return levels

        walks = [simulated.steps(params, levels_at, leaves, leading_size(graph, leaves)) for leaves in sets]
        for both in zip(*walks, strict=True):
            for values, (node, value) in zip(made, both, strict=True):
                if isinstance(node.aval, Aval) and not node.is_constant:  # arrays have names of their own
                    values[node.name] = np.asarray(value)
        return state

    def error(self, state: State) -> float:
        """The squared error of the simulated results over their square, on the examples held back; the mean over the
        results that are floats. Infinite where one is not finite."""
        graph = state.graph
        floats = [i for i, node in enumerate(graph.outputs) if node.aval.is_float]
        levels = jax.device_put(state.simulated.levels(state.choices, state.config))
        params = jax.device_put(graph.params)
        squares = np.zeros((len(floats), 2))
        for exact, part in zip(self._exact_parts(graph), _parts(graph, self.held), strict=True):
            found = state.run(params, levels, part)
            squares += [_squares(exact[i], np.asarray(found[i], np.float64)) for i in floats]
        error = float(np.mean(squares[:, 1] / np.maximum(squares[:, 0], _TINY)))
        return error if np.isfinite(error) else np.inf

    def _exact_parts(self, graph: Graph) -> list[list[np.ndarray]]:
        if graph not in self._exact:
            run = jax.jit(_exactly(graph))
            params = jax.device_put(graph.params)
            found = ([np.asarray(y) for y in run(params, part)] for part in _parts(graph, self.held))
            self._exact[graph] = [[_wide(y) for y in outputs] for outputs in found]
        exact: list[list[np.ndarray]] = self._exact[graph]
        return exact


def _parts(graph: Graph, leaves: Sequence[np.ndarray]) -> list[Sequence[np.ndarray]]:
    size = leading_size(graph, leaves)
    return [rows(graph, leaves, slice(i, i + _PART)) for i in range(0, size, _PART)] or [leaves]


def _amax(graph: Graph, parts: Sequence[Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
    @jax.jit
    def run(params: Any, leaves: Any) -> dict[str, jax.Array]:
        found: dict[str, jax.Array] = {}

        def keep(node: Node, value: Any) -> None:
            if isinstance(node.aval, Aval) and node.aval.is_float and node.aval.shape:
                found[node.name] = jnp.max(jnp.abs(value.astype(jnp.float32)), axis=range(value.ndim - 1))

        evaluate(graph.bind(leading_size(graph, leaves)), params, leaves, float_function, keep)
        return found

    params = jax.device_put(graph.params)
    found = [jax.device_get(run(params, part)) for part in parts]
    inputs = [dict(zip((node.name for node in graph.inputs), part, strict=True)) for part in parts]
    given = [{name: np.abs(x).reshape(-1, x.shape[-1]).max(0) for name, x in by.items() if x.ndim} for by in inputs]
    names = (found[0] | given[0]).keys()
    pairs = [of_part | of_inputs for of_part, of_inputs in zip(found, given, strict=True)]
    return {name: np.max([of[name] for of in pairs], axis=0).astype(np.float64) for name in names}


def _exactly(graph: Graph) -> Callable[..., list[Any]]:
    return lambda params, leaves: evaluate(graph.bind(leading_size(graph, leaves)), params, leaves, float_function)


def _wide(y: np.ndarray) -> np.ndarray:
    return y.astype(np.float64) if jnp.issubdtype(y.dtype, jnp.floating) else y


def _squares(exact: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """What is infinite by design, as in a mask, counts for nothing."""
    finite = np.isfinite(exact)
    return float(np.sum(exact[finite] ** 2)), float(np.sum((found - exact)[finite] ** 2))


def _fitting(graph: Graph, leaves: Sequence[np.ndarray]) -> list[np.ndarray]:
    """As many of the examples as there is room for the values of."""
    one = graph.bind(1)
    made = (node.aval for node in one.nodes if isinstance(node.aval, Aval) and not node.is_constant)
    size = sum(4 * int(np.prod(aval.shape)) for aval in made)
    return rows(graph, leaves, slice(max(_ROOM // max(size, 1), 1)))


def _values(graph: Graph, leaves: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    leaves = _fitting(graph, leaves)
    found: dict[str, np.ndarray] = {}

    def keep(node: Node, value: Any) -> None:
        if isinstance(node.aval, Aval):
            found[node.name] = np.asarray(value)

    params, arrays = jax.device_put((graph.params, list(leaves)))
    evaluate(graph.bind(leading_size(graph, leaves)), params, arrays, float_function, keep)
    return dict(zip((node.name for node in graph.inputs), leaves, strict=True)) | found
