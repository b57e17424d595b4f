"""Convolution on the CUDA cores, in Triton: for depthwise ones, and for groups too narrow for the tensor cores.

A program's tile is output pixels x output channels; each output is a sum of its own over the taps, of integer
multiply-adds. Neighbouring pixels read the same lines of x, which the L1 cache holds.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from pallas_kernels import tiles
from pallas_kernels.conv.config import ConvChannelConfig
from pallas_kernels.conv.gather import Gather, across, block_mask, block_of, prepare
from pallas_kernels.conv.window import Geometry
from pallas_kernels.epilogue import Epilogue

_UNROLLED = 32  # terms of a sum: beyond that the code only grows, loads enough are in flight


def conv_by_channel(
    x: jax.Array,
    w: jax.Array,
    epilogue: Epilogue | None,
    geometry: Geometry,
    *,
    out_dtype: jax.typing.DTypeLike,
    config: ConvChannelConfig,
    interpret: bool = False,
) -> jax.Array:
    """`conv` of non-empty arrays, as one Triton kernel."""
    x, gather = prepare(x, geometry)
    rows, columns = geometry.rows, geometry.features
    if epilogue is not None and epilogue.residual is not None:
        epilogue = dataclasses.replace(epilogue, residual=epilogue.residual.reshape(rows, columns))
    terms = geometry.taps * geometry.depth
    column_tiles = pl.cdiv(columns, config.block_n)

    def place(program: Any) -> tuple[Any, Any]:
        # The channels of the same pixels next to one another, as in memory. (One axis: the others end at 65,535.)
        return lax.div(program, column_tiles), lax.rem(program, column_tiles)

    tile = pl.BlockSpec((config.block_m, config.block_n), place)
    channels = pl.BlockSpec((config.block_n,), lambda program: place(program)[1:])
    weights = pl.BlockSpec((terms, config.block_n), lambda program: (0, place(program)[1]))
    out = pl.pallas_call(
        functools.partial(
            _kernel,
            place=place,
            gather=gather,
            rows=rows,
            columns=columns,
            depth=geometry.depth,
            group_columns=columns // geometry.window.groups,
            config=config,
            interpret=interpret,
        ),
        grid=(pl.cdiv(rows, config.block_m) * column_tiles,),
        in_specs=(pl.BlockSpec(), weights, tiles.epilogue_specs(epilogue, tile, channels)),
        out_specs=tile,
        out_shape=jax.ShapeDtypeStruct((rows, columns), out_dtype, manual_axis_type=jax.typeof(x).manual_axis_type),
        compiler_params=pltriton.CompilerParams(num_warps=config.num_warps),
        interpret=interpret,
        name="conv_channel",
    )(x.reshape(-1), w.reshape(columns, terms).T, epilogue)
    return out.reshape(geometry.out_shape)


def _kernel(
    x_ref: Any,
    w_ref: Any,
    epilogue: Epilogue | None,
    out_ref: Any,
    *,
    place: Any,
    gather: Gather,
    rows: int,
    columns: int,
    depth: int,
    group_columns: int,
    config: ConvChannelConfig,
    interpret: bool,
) -> None:
    row_tile, column_tile = place(pl.program_id(0))
    row, column = (row_tile * config.block_m, rows), (column_tile * config.block_n, columns)
    shape = (config.block_m, config.block_n)
    pixels = gather.rows(row, config.block_m)
    in_columns = tiles.mask((config.block_n,), column)
    first_channel = column[0] + lax.iota(jnp.int32, config.block_n)
    if group_columns > 1 or depth > 1:
        first_channel = lax.div(first_channel, group_columns) * depth

    def accumulate(term: Any, acc: jax.Array) -> jax.Array:
        address, inside = pixels.under(lax.div(term, depth))
        channel = first_channel + lax.rem(term, depth)
        x = tiles.load(x_ref.at[block_of(address, channel)], block_mask(inside, in_columns, shape))
        w = tiles.load(w_ref.at[term, :], in_columns)
        return acc + x.astype(jnp.int32) * across(w.astype(jnp.int32), shape)

    acc, terms = jnp.zeros(shape, jnp.int32), gather.taps * depth
    if terms > _UNROLLED:
        acc = lax.fori_loop(0, terms, accumulate, acc)
    else:
        for term in np.arange(terms, dtype=np.int32):  # what interpret mode takes as an index
            acc = accumulate(term, acc)
    tiles.store(acc, epilogue, out_ref, row, column, interpret=interpret)
