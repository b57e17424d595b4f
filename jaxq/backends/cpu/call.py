"""A region as a JAX function: one call of the CPU library, with a batching rule."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxq.backends.cpu import library, program
from jaxq.backends.cpu.packing import Form, PackedWeight
from jaxq.graph.node import Graph, Node


def lower(node: Node, otherwise: Callable[[Graph], Callable[..., Any]]) -> Callable[..., Any]:
    """The function of a bound region's operands, weights packed or not; its results as a tuple.

    Args:
      node: a "region".
      otherwise: graph to a function of its inputs, for what the call has no batching rule for.
    """
    body = node.attrs["body"]
    unbound = node.attrs["unbound"].graph
    encoded = program.encode(body)

    def direct(*operands: Any) -> tuple[Any, ...]:
        call = jax.ffi.ffi_call(
            library.TARGET,
            [jax.ShapeDtypeStruct(out.aval.shape, out.aval.dtype) for out in body.outputs],
            vmap_method="sequential",
        )
        return tuple(call(jnp.asarray(encoded.constants), *operands, program=encoded.numbers))

    batched = custom_vmap(direct)

    @batched.def_vmap
    def _(axis_size: int, in_batched: Any, *operands: Any) -> Any:
        outs = [True] * len(body.outputs)
        if not _folds(unbound, in_batched):
            plain = [_plain(encoded.packed, i, operand) for i, operand in enumerate(operands)]
            axes = [0 if is_batched else None for is_batched in in_batched]
            return tuple(jax.vmap(otherwise(body), axes)(*plain)), outs
        size = next(node.aval.shape[0] for node, b in zip(body.inputs, in_batched, strict=True) if b)
        folded = [x.reshape(-1, *x.shape[2:]) if b else x for x, b in zip(operands, in_batched, strict=True)]
        larger = unbound.bind(size * axis_size)
        results = lower(node.replace(attrs={**node.attrs, "body": larger}), otherwise)(*folded)
        return tuple(y.reshape(axis_size, -1, *y.shape[1:]) for y in results), outs

    def run(*operands: Any) -> tuple[Any, ...]:
        return tuple(batched(*(_packed(encoded.packed, i, operand) for i, operand in enumerate(operands))))

    return run


def _folds(unbound: Graph, in_batched: Any) -> bool:
    """Whether another axis of batch makes one larger batch: it is of all that follow the batch, and of nothing else."""
    inputs = all(node.aval.leads_batch == b for node, b in zip(unbound.inputs, in_batched, strict=True))
    return inputs and all(node.aval.leads_batch for node in unbound.outputs)


def _packed(forms: dict[int, Form], index: int, operand: Any) -> Any:
    """The data of a packed weight; one that is not packed yet is packed in the call."""
    if index not in forms:
        return operand
    return operand.data if isinstance(operand, PackedWeight) else forms[index].pack(operand).data


def _plain(forms: dict[int, Form], index: int, data: Any) -> Any:
    return forms[index].unpack(data) if index in forms else data
