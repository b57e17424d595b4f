"""What refinement works on."""

from collections.abc import Callable, Mapping, Sequence
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
from jaxq.passes.simulate import Simulated, float_function

# The values of a graph on the examples to fit are held in memory, of as many of these as take so many bytes.
_ROOM = 1 << 30

# Of so many examples one is held back.
_HELD_BACK = 4

# The results are compared on so many examples at once.
_PART = 16

_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class State:
    """A placed float graph and what was chosen for it. `placer` places another graph as it was placed; by the
    config alone unless given."""

    graph: Graph
    placement: Placement
    choices: Choices
    config: QuantConfig
    placer: Callable[[Graph], Placement] | None = None

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
        new = replace(self, choices=replace(self.choices, **changes))
        for name in ("simulated", "run"):
            new.__dict__[name] = getattr(self, name)
        return new

    def weight(self, node: Node) -> np.ndarray:
        """The real weight that a conv's or dot's integers stand for."""
        return self.simulated.weight(node, self.choices, self.config)


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

    def amax(self, graph: Graph) -> Mapping[str, np.ndarray]:
        """The largest magnitude of each channel of every float value, float64 (C,), on all examples to fit."""
        if graph not in self._amax:
            self._amax.clear()
            self._amax[graph] = _amax(graph, _parts(graph, self.fit))
        found: Mapping[str, np.ndarray] = self._amax[graph]
        return found

    def held_values(self, graph: Graph) -> Mapping[str, np.ndarray]:
        """The like on the examples held back."""
        return _values(graph, self.held)

    def simulated(self, state: State) -> Mapping[str, np.ndarray]:
        """As `values`, as the int8 graph makes them, before each is rounded."""
        return _simulated(state, self.fit)

    def held_simulated(self, state: State) -> Mapping[str, np.ndarray]:
        """The like on the examples held back."""
        return _simulated(state, self.held)

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


def _simulated(state: State, leaves: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    levels = jax.device_put(state.simulated.levels(state.choices, state.config))
    return _collected(
        state.graph, leaves, lambda params, some, size, tap: state.simulated(params, levels, some, size, tap=tap)
    )


def _values(graph: Graph, leaves: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return _collected(
        graph, leaves, lambda params, some, size, tap: evaluate(graph.bind(size), params, some, float_function, tap)
    )


def _collected(graph: Graph, leaves: Sequence[np.ndarray], run: Callable[..., Any]) -> dict[str, np.ndarray]:
    """The value of every node, and of the inputs, as `run` makes it of (parameters, leaves, their number, tap)."""
    leaves = _fitting(graph, leaves)
    found: dict[str, np.ndarray] = {}

    def keep(node: Node, value: Any) -> None:
        if isinstance(node.aval, Aval):
            found[node.name] = np.asarray(value)

    params, arrays = jax.device_put((graph.params, list(leaves)))
    run(params, arrays, leading_size(graph, leaves), keep)
    return dict(zip((node.name for node in graph.inputs), leaves, strict=True)) | found
