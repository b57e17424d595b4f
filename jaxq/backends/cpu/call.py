"""A region as a JAX function: one call of the CPU library, with a batching rule."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxq.backends.cpu import library, program
from jaxq.backends.cpu.packing import AnyForm, PackedWeight
from jaxq.graph.node import Graph, Node


def lower(node: Node, otherwise: Callable[[Graph], Callable[..., Any]]) -> Callable[..., Any]:
    """The function of a bound region's operands, weights packed or not; its results as a tuple.

    Args:
      node: a "region".
      otherwise: graph to a function of its inputs, for what the call has no batching rule for.
    """
    body = node.attrs["body"]
    packed = program.packed_weights(body)
    call = _call(body, node.attrs["unbound"].graph, otherwise)

    def run(*operands: Any) -> tuple[Any, ...]:
        return tuple(call(*(_packed(packed, i, operand) for i, operand in enumerate(operands))))

    return run


def _call(body: Graph, unbound: Graph, otherwise: Callable[[Graph], Callable[..., Any]]) -> Callable[..., Any]:
    """The call with packed weights, and its batching rule."""
    encoded = program.encode(body, unbound)

    @custom_vmap
    def call(*operands: Any) -> tuple[Any, ...]:
        run = jax.ffi.ffi_call(library.TARGET, _results(body, operands))
        return tuple(run(jnp.asarray(encoded.constants), *operands, program=encoded.numbers))

    @call.def_vmap
    def _(axis_size: int, in_batched: Any, *operands: Any) -> Any:
        outs = (True,) * len(body.outputs)
        if not _folds(unbound, in_batched):
            plain = [_plain(encoded.packed, i, x, b) for i, (x, b) in enumerate(zip(operands, in_batched, strict=True))]
            axes = [0 if is_batched else None for is_batched in in_batched]
            return jax.vmap(otherwise(body), axes)(*plain), outs
        folded = [x.reshape(-1, *x.shape[2:]) if b else x for x, b in zip(operands, in_batched, strict=True)]
        size = next(x.shape[0] for x, b in zip(folded, in_batched, strict=True) if b)
        results = _call(unbound.bind(size), unbound, otherwise)(*folded)
        return tuple(y.reshape(axis_size, -1, *y.shape[1:]) for y in results), outs

    return call


def _results(body: Graph, operands: Any) -> Any:
    """Shapes and dtypes of the results. Inside `shard_map` they vary over the axes of the mesh that the operands vary
    over, which the type of any function of them says."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return [jax.ShapeDtypeStruct(out.aval.shape, out.aval.dtype) for out in body.outputs]

    def function(*operands: Any) -> Any:
        number = sum(jnp.sum(x.astype(jnp.float32)) for x in operands)
        return [jnp.broadcast_to(number, out.aval.shape).astype(out.aval.dtype) for out in body.outputs]

    return jax.eval_shape(function, *operands)


def _folds(unbound: Graph, in_batched: Any) -> bool:
    """Whether another axis of batch makes one larger batch: it is of all that follow the batch, and of nothing else."""
    inputs = all(node.aval.leads_batch == b for node, b in zip(unbound.inputs, in_batched, strict=True))
    return inputs and all(node.aval.leads_batch for node in unbound.outputs)


def _packed(forms: dict[int, AnyForm], index: int, operand: Any) -> Any:
    """The data of a packed weight; one that is not packed yet is packed in the call."""
    if index not in forms:
        return operand
    return operand.data if isinstance(operand, PackedWeight) else forms[index].pack(operand).data


def _plain(forms: dict[int, AnyForm], index: int, data: Any, is_batched: bool) -> Any:
    if index not in forms:
        return data
    return jax.vmap(forms[index].unpack)(data) if is_batched else forms[index].unpack(data)
