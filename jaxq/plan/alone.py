"""What a layer takes alone, and a border between int8 and float: compiled by itself, timed beside its rivals."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq import backends, numerics
from jaxq.graph.evaluate import Lower, evaluate
from jaxq.graph.node import Aval, Graph, Node, bind
from jaxq.plan.timing import TimingCache, drawn, interleaved

# Seconds of turns for one comparison.
_TURNS = 0.1


def alone(node: Node) -> Graph:
    """The node as a graph: its operands but constants are inputs."""
    stands_for = {s: s.replace(op="input", inputs=(), attrs={}, roles=()) for s in node.inputs if not s.is_constant}
    moved = node.replace(inputs=tuple(stands_for.get(s, s) for s in node.inputs))
    return Graph(tuple(stands_for.values()), (moved,))


Call = Callable[[], Any]


def call(graph: Graph, batch: int, lower: Lower) -> Call:
    """A call of the graph on drawn values, which compiles at the first one."""
    gathered = backends.gather(graph) if lower is backends.choose else graph
    bound = gathered.bind(batch)

    def compiled() -> tuple[Any, Any, Any]:
        params = jax.device_put(backends.prepare(gathered, graph.params) if gathered is not graph else graph.params)
        leaves = jax.device_put(drawn([node.aval for node in bound.inputs]))
        return jax.jit(lambda params, leaves: evaluate(bound, params, leaves, lower)), params, leaves

    return _first_compiles(compiled)


def _first_compiles(compiled: Callable[[], tuple[Any, Any, Any]]) -> Call:
    ready: list[Any] = []

    def call() -> Any:
        if not ready:
            ready.extend(compiled())
        run, params, leaves = ready
        return run(params, leaves)

    return call


def described(node: Node, batch: int) -> str:
    """All that a node's time hangs on: its op, geometry, operands and result."""
    attrs = {key: value for key, value in sorted(bind(dict(node.attrs), batch).items()) if key != "value"}
    shown = {key: [n.op for n in value.nodes] if isinstance(value, Graph) else value for key, value in attrs.items()}
    operands = [f"{role}{bind(s.aval, batch)}" for role, s in zip(node.roles or [""] * 9, node.inputs, strict=False)]
    return f"{node.op} {shown} of {', '.join(operands)} to {bind(node.aval, batch)}"


def borders(value: Aval, dtype: str) -> dict[str, Call]:
    """Calls that quantize and dequantize a float value."""

    def quantizes() -> Any:
        run = jax.jit(lambda _, x: numerics.quantize(x, jnp.float32(8), dtype=dtype))
        return run, None, jax.device_put(drawn([value]))[0]

    def dequantizes() -> Any:
        run = jax.jit(lambda _, q: numerics.dequantize(q, jnp.float32(0.125), dtype=value.dtype))
        return run, None, jax.device_put(drawn([Aval(value.shape, np.dtype(dtype))]))[0]

    return {
        f"quantize {value} to {dtype}": _first_compiles(quantizes),
        f"dequantize {dtype} to {value}": _first_compiles(dequantizes),
    }


def timed(calls: Mapping[str, Call], cache: TimingCache) -> list[float]:
    """The seconds of each; of all anew, side by side, where one is not known."""
    known = [seconds for what in calls if (seconds := cache.get(what)) is not None]
    if len(known) < len(calls):
        known = interleaved(list(calls.values()), _TURNS)
        for what, seconds in zip(calls, known, strict=True):
            cache.put(what, seconds)
    return known
