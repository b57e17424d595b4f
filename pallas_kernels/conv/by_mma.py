"""Convolution as an implicit matrix product on the tensor cores, in Triton: dots of int8 compile for sm_80 and later.

Rows are output pixels, columns output channels, and the depth runs over the taps and, within a tap, over the bytes
that lie side by side in x: the channels of one pixel or, with few channels (`ConvMmaConfig.merge_taps`), those of all
pixels that a row of the kernel covers. No patches are written: a program gathers its rows of x by one masked load a
step, which Triton turns into asynchronous copies of up to 16 bytes.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from pallas_kernels import compat, estimate, shift, tiles
from pallas_kernels.conv.config import ConvMmaConfig, can_merge, mma_candidates
from pallas_kernels.conv.gather import Gather, across, block_mask, block_of, prepare, written_out
from pallas_kernels.conv.window import Geometry
from pallas_kernels.epilogue import Epilogue, require
from pallas_kernels.matmul.config import MmaConfig, mma_cycles

_COPIES = (4, 16)  # bytes of the smallest asynchronous copy, and of the largest
_DEPTH = 32  # of one instruction of the tensor cores
_BESIDE_PRODUCT = 4  # tactics worth timing where the tactics of a matrix product are, too


def refuses(config: ConvMmaConfig, geometry: Geometry) -> str | None:
    """Why the tactic does not go with the geometry, or None."""
    if config.merge_taps and not can_merge(geometry):
        return f"{config}: taps merge only without groups and without dilation of the last axis"
    return None


def candidates(
    x: Any, w: Any, epilogue: Epilogue | None, geometry: Geometry, *, out_dtype: jax.typing.DTypeLike
) -> tuple[ConvMmaConfig, ...]:
    """Tactics worth timing, the default first; none for groups too narrow for the tensor cores."""
    del x, w, out_dtype
    found = mma_candidates(geometry, has_residual=epilogue is not None and epilogue.residual is not None)
    return found[:_BESIDE_PRODUCT] if geometry.is_pointwise else found


def cycles(config: ConvMmaConfig, x: Any, w: Any, epilogue: Epilogue | None, geometry: Geometry) -> float:
    """Estimated cycles of the busiest multiprocessor: those of the product in its tiles."""
    groups = geometry.window.groups
    tile = MmaConfig(config.block_m, config.block_n, config.block_k, config.num_warps, config.num_stages)
    sizes = groups, geometry.rows, geometry.features // groups, geometry.taps * geometry.depth
    product = mma_cycles(tile, *sizes, has_residual=epilogue is not None and epilogue.residual is not None)
    return max(product, estimate.memory(math.prod(x.shape) + math.prod(w.shape)))


def run(
    x: jax.Array,
    w: jax.Array,
    epilogue: Epilogue | None,
    geometry: Geometry,
    *,
    out_dtype: jax.typing.DTypeLike,
    offset: jax.Array | None = None,
    config: ConvMmaConfig,
    interpret: bool = False,
) -> jax.Array:
    """`conv` of non-empty arrays, as one Triton kernel."""
    if not interpret:
        require(compat.refuses_shared(config, config.shared_bytes))
    groups = geometry.window.groups
    rows, columns = geometry.rows, geometry.features // groups
    if x.dtype == jnp.int8:
        offset = None
    elif offset is None:  # the zeros outside of x are shifted, too: the sum is over all taps
        offset = shift.offset(w, range(1, w.ndim))
    if groups == 1 and geometry.depth % min(_COPIES):  # else no copy would be asynchronous
        x, w = (_pad_last(v, -geometry.depth % min(_COPIES)) for v in (x, w))
        geometry = Geometry.of(x, w, geometry.window)
    if config.merge_taps:
        x, w, gather = _merge_taps(x, w, geometry)
    else:
        x, gather = prepare(x, geometry)
    depth = w.size // (geometry.features * gather.taps)
    by_group = (rows, groups, columns)
    if epilogue is not None:
        multiplier, bias, lo, hi = (v.reshape(by_group[1:]) for v in epilogue.vectors)
        residual = None if epilogue.residual is None else epilogue.residual.reshape(by_group)
        epilogue = dataclasses.replace(epilogue, multiplier=multiplier, bias=bias, lo=lo, hi=hi, residual=residual)

    row_tiles, column_tiles = pl.cdiv(rows, config.block_m), pl.cdiv(columns, config.block_n)

    def place(program: Any) -> tuple[Any, Any, Any]:
        # Programs that gather the same pixels run next to one another: x comes from memory once, and w, which is
        # small, stays in the L2 cache. (One axis of the grid: the others end at 65,535.)
        rest = lax.div(program, column_tiles)
        return lax.div(rest, groups), lax.rem(rest, groups), lax.rem(program, column_tiles)

    tile = pl.BlockSpec((config.block_m, None, config.block_n), place)
    channels = pl.BlockSpec((None, config.block_n), lambda program: place(program)[1:])
    weights = pl.BlockSpec((None, config.block_n, gather.taps * depth), lambda program: (*place(program)[1:], 0))
    out = pl.pallas_call(
        functools.partial(
            _kernel,
            place=place,
            gather=gather,
            rows=rows,
            columns=columns,
            depth=depth,
            config=config,
            interpret=interpret,
        ),
        grid=(row_tiles * groups * column_tiles,),
        in_specs=(
            pl.BlockSpec(),
            weights,
            None if offset is None else channels,
            tiles.epilogue_specs(epilogue, tile, channels),
        ),
        out_specs=tile,
        out_shape=jax.ShapeDtypeStruct(by_group, out_dtype, manual_axis_type=jax.typeof(x).manual_axis_type),
        compiler_params=pltriton.CompilerParams(num_warps=config.num_warps, num_stages=config.num_stages),
        interpret=interpret,
        name="conv_mma",
    )(
        x.reshape(-1),
        w.reshape(groups, columns, -1),
        None if offset is None else offset.reshape(groups, columns),
        epilogue,
    )
    return out.reshape(geometry.out_shape)


def _merge_taps(x: jax.Array, w: jax.Array, geometry: Geometry) -> tuple[jax.Array, jax.Array, Gather]:
    """What the kernel reads with few channels: x with its padding written out, so that a row of the kernel covers bytes
    that lie side by side. (Where XLA makes x, at the network's border, it makes it so at once.) Lines start at whole
    copies, and a row of the kernel is whole instructions long, that no mask cuts a copy short."""
    pixel = geometry.depth
    more_taps = -geometry.kernel[-1] % (_DEPTH // pixel) if _DEPTH % pixel == 0 else 0
    line = geometry.padded[-1] + more_taps
    more_pixels = more_taps + -line % (max(_COPIES) // math.gcd(max(_COPIES), pixel))
    x = written_out(x, geometry, more_pixels)
    w = lax.pad(w, jnp.zeros((), w.dtype), [(0, 0, 0)] * (w.ndim - 2) + [(0, more_taps, 0), (0, 0, 0)])
    gather = Gather.of(x, geometry, (0,) * (x.ndim - 2))
    return x, w, dataclasses.replace(gather, kernel=(*gather.kernel[:-1], 1))


def _pad_last(v: jax.Array, more: int) -> jax.Array:
    return lax.pad(v, jnp.zeros((), v.dtype), [(0, 0, 0)] * (v.ndim - 1) + [(0, more, 0)])


def _kernel(
    x_ref: Any,
    w_ref: Any,
    offset_ref: Any,
    epilogue: Epilogue | None,
    out_ref: Any,
    *,
    place: Any,
    gather: Gather,
    rows: int,
    columns: int,
    depth: int,
    config: ConvMmaConfig,
    interpret: bool,
) -> None:
    block_m, block_n, block_k = config.block_m, config.block_n, config.block_k
    row_tile, group, column_tile = place(pl.program_id(0))
    row, column = (row_tile * block_m, rows), (column_tile * block_n, columns)
    pixels = gather.rows(row, block_m)
    chunks = pl.cdiv(depth, block_k)  # of a tap

    def accumulate(step: jax.Array, acc: jax.Array) -> jax.Array:
        tap, start = lax.div(step, chunks), lax.rem(step, chunks) * block_k
        address, inside = pixels.under(tap)
        in_tap = (start, depth)
        bytes_of_group = start + group * depth + lax.iota(jnp.int32, block_k)
        mask = block_mask(inside, tiles.mask((block_k,), in_tap), (block_m, block_k))
        x = shift.signed(tiles.load(x_ref.at[block_of(address, bytes_of_group)], mask))
        w_columns = pl.ds(tap * depth + start, block_k)
        w = tiles.load(w_ref.at[:, w_columns], tiles.mask((block_n, block_k), column, in_tap))
        return acc + lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)

    acc = lax.fori_loop(0, gather.taps * chunks, accumulate, jnp.zeros((block_m, block_n), jnp.int32))
    if offset_ref is not None:
        acc = acc + across(tiles.load(offset_ref, tiles.mask((block_n,), column)), acc.shape)
    tiles.store(acc, epilogue, out_ref, row, column, interpret=interpret)
