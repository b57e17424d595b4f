"""What a layer takes alone, and a border between int8 and float: compiled by itself, timed beside its rivals."""

from collections.abc import Callable, Collection, Iterator, Mapping
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


def timed(calls: Mapping[str, Call], cache: TimingCache, alike: Collection[str] = ()) -> dict[str, float]:
    """The seconds of each; of all anew, side by side, where one is not known.

    Args:
      alike: those of the calls that must give the bits of the last of them. One that raises or gives others is left
        out, and the cache keeps why.
    """
    calls = {what: call for what, call in calls.items() if cache.failure(what) is None}
    known = {what: seconds for what in calls if (seconds := cache.get(what)) is not None}
    if len(known) == len(calls):
        return known
    for what, reason in _unfit({what: calls[what] for what in alike if what in calls}):
        cache.fail(what, reason)
        del calls[what]
    found = dict(zip(calls, interleaved(list(calls.values()), _TURNS), strict=True))
    for what, seconds in found.items():
        cache.put(what, seconds)
    return found


def _unfit(calls: Mapping[str, Call]) -> Iterator[tuple[str, str]]:
    """Which of the calls do not give the bits of the last, and why."""
    if len(calls) < 2:
        return
    *others, last = calls
    expected = jax.device_get(calls[last]())
    for what in others:
        try:
            found = jax.device_get(calls[what]())
        except Exception as error:  # a kernel may fail in any way to compile or to run
            yield what, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            continue
        pairs = list(zip(found, expected, strict=True))
        if not all(np.array_equal(a, b, equal_nan=True) for a, b in pairs):
            differ = sum(int(np.sum(a != b)) for a, b in pairs)
            yield what, f"its bits differ from XLA's, in {differ} of {sum(b.size for b in expected)} elements"
