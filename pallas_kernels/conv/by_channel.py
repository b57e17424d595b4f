"""Convolution on the CUDA cores, in Triton: for depthwise ones, and for groups too narrow for the tensor cores.

A program's tile is output pixels x output channels; each output is a sum of its own over the taps, of integer
multiply-adds. Neighbouring pixels read the same lines of x, which the L1 cache holds.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels import tiles
from pallas_kernels.conv import tiled
from pallas_kernels.conv.config import ConvChannelConfig, channel_candidates
from pallas_kernels.conv.gather import Gather, across, block_mask, block_of, prepare
from pallas_kernels.conv.window import Geometry
from pallas_kernels.epilogue import Epilogue
from pallas_kernels.tiles import Edge

_UNROLLED = 32  # terms of a sum: beyond that the code only grows, loads enough are in flight


def refuses(config: ConvChannelConfig, geometry: Geometry) -> str | None:
    """Why the tactic does not go with the geometry, or None."""
    del config, geometry
    return None


def candidates(
    x: Any, w: Any, epilogue: Epilogue | None, geometry: Geometry, *, out_dtype: jax.typing.DTypeLike
) -> tuple[ConvChannelConfig, ...]:
    """Tactics worth timing, the default first."""
    del x, w, epilogue, out_dtype
    return channel_candidates(geometry)


def run(
    x: jax.Array,
    w: jax.Array,
    epilogue: Epilogue | None,
    geometry: Geometry,
    *,
    out_dtype: jax.typing.DTypeLike,
    offset: jax.Array | None = None,
    config: ConvChannelConfig,
    interpret: bool = False,
) -> jax.Array:
    """`conv` of non-empty arrays, as one Triton kernel."""
    del offset  # uint8 is taken as it is
    x, gather = prepare(x, geometry)
    return tiled.call(
        functools.partial(_accumulate, gather=gather, geometry=geometry, config=config),
        x,
        tiled.channels_last(w),
        config.block_n,
        epilogue,
        geometry,
        out_dtype=out_dtype,
        config=config,
        interpret=interpret,
        name="conv_channel",
    )


def _accumulate(
    x_ref: Any,
    w_ref: Any,
    row: Edge,
    column: Edge,
    *,
    gather: Gather,
    geometry: Geometry,
    config: ConvChannelConfig,
) -> jax.Array:
    depth, group_columns = geometry.depth, geometry.features // geometry.window.groups
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
        return lax.fori_loop(0, terms, accumulate, acc)
    for term in np.arange(terms, dtype=np.int32):  # what interpret mode takes as an index
        acc = accumulate(term, acc)
    return acc
