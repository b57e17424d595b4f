"""What the Triton kernels share: masks at the edges, loads, and the end of a program whose tile is rows x channels.

Partial blocks are masked here, in the kernels: before jax 0.12 nothing else masks them on a GPU (interpret mode does).
"""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from pallas_kernels import compat
from pallas_kernels.epilogue import Epilogue, clip_in_triton, finish, multiply_in_triton, round_in_triton

# The start of a block and the size of its array, along one axis.
Edge = tuple[Any, int]


def mask(shape: tuple[int, ...], *edges: Edge) -> jax.Array | None:
    """Which elements of a block lie inside the array, an edge for each axis; None: all of them."""
    inside = [
        start + lax.broadcasted_iota(jnp.int32, shape, axis) < size
        for axis, (start, size) in enumerate(edges)
        if size % shape[axis]
    ]
    return functools.reduce(operator.and_, inside) if inside else None


def load(ref: Any, mask: jax.Array | None = None, outside: int = 0) -> jax.Array:
    """A block, `outside` where it is masked out."""
    return pltriton.load(ref, mask=mask, other=None if mask is None else jnp.full((), outside, ref.dtype))


def epilogue_specs(epilogue: Epilogue | None, tile: pl.BlockSpec, channels: pl.BlockSpec) -> Epilogue | None:
    """The block specs of the epilogue's operands: `tile` of the residual, `channels` of what has a number a channel."""
    if epilogue is None:
        return None
    has_residual = epilogue.residual is not None
    return Epilogue(
        channels,
        channels,
        channels,
        channels,
        residual=tile if has_residual else None,
        residual_multiplier=pl.BlockSpec() if has_residual else None,
        table=None if epilogue.table is None else pl.BlockSpec(),
    )


def store(acc: jax.Array, refs: Epilogue | None, out_ref: Any, row: Edge, column: Edge, *, interpret: bool) -> None:
    """Ends a program: the accumulator (rows, channels) through the epilogue of those references, to `out_ref`."""
    inside = mask(acc.shape, row, column)
    blocks = None
    if refs is not None:
        in_columns = mask(acc.shape[1:], column)
        multiplier, bias, lo, hi = (load(ref, in_columns) for ref in refs.vectors)
        blocks = Epilogue(
            multiplier,
            bias,
            lo,
            hi,
            residual=None if refs.residual is None else load(refs.residual, inside),
            residual_multiplier=None if refs.residual_multiplier is None else refs.residual_multiplier[...],
            table=refs.table,
            row_scale=None if refs.row_scale is None else load(refs.row_scale, mask(acc.shape[:1], row)),
        )
    out = finish(acc, blocks, out_ref.dtype, lookup=_lookup, **({} if interpret else _instructions()))
    pltriton.store(out_ref, out, mask=inside)


def _instructions() -> dict[str, Any]:
    """What `finish` is given in a kernel that is compiled."""
    from_sm_80 = (compat.compute_capability() or 0) >= 80
    clip = {"clip": clip_in_triton} if from_sm_80 else {}
    return {"to_integer": round_in_triton, "multiply": multiply_in_triton, **clip}


def _lookup(table_ref: Any, index: jax.Array) -> jax.Array:
    return pltriton.load(table_ref.at[index])
