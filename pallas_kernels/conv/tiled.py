"""How the kernels on the CUDA cores are launched: a program for each tile of output pixels x output channels."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from pallas_kernels import tiles
from pallas_kernels.conv.config import ConvChannelConfig, ConvDot4Config
from pallas_kernels.conv.window import Geometry
from pallas_kernels.epilogue import Epilogue
from pallas_kernels.tiles import Edge


def channels_last(w: jax.Array) -> jax.Array:
    """(O, kernel..., C / groups) to (terms, O). A network that has its channels last transposes to give the former: XLA
    then transposes nothing."""
    return jnp.moveaxis(w, 0, -1).reshape(-1, w.shape[0])


def call(
    accumulate: Callable[[Any, Any, Edge, Edge], jax.Array],
    x: jax.Array,
    w: jax.Array,
    block_w: int,
    epilogue: Epilogue | None,
    geometry: Geometry,
    *,
    out_dtype: jax.typing.DTypeLike,
    config: ConvChannelConfig | ConvDot4Config,
    interpret: bool,
    name: str,
) -> jax.Array:
    """`conv` as one Triton kernel.

    Args:
      accumulate: the int32 tile of (x, w, row, column).
      x: as the kernel reads it; a program sees all of it, flat.
      w: with the channels last, of which `block_w` are those of a tile.
    """
    rows, columns = geometry.rows, geometry.features
    if epilogue is not None and epilogue.residual is not None:
        epilogue = dataclasses.replace(epilogue, residual=epilogue.residual.reshape(rows, columns))
    column_tiles = pl.cdiv(columns, config.block_n)

    def place(program: Any) -> tuple[Any, Any]:
        # The channels of the same pixels next to one another, as in memory. (One axis: the others end at 65,535.)
        return lax.div(program, column_tiles), lax.rem(program, column_tiles)

    def kernel(x_ref: Any, w_ref: Any, epilogue: Epilogue | None, out_ref: Any) -> None:
        row_tile, column_tile = place(pl.program_id(0))
        row, column = (row_tile * config.block_m, rows), (column_tile * config.block_n, columns)
        acc = accumulate(x_ref, w_ref, row, column)
        tiles.store(acc, epilogue, out_ref, row, column, interpret=interpret)

    tile = pl.BlockSpec((config.block_m, config.block_n), place)
    channels = pl.BlockSpec((config.block_n,), lambda program: place(program)[1:])
    weights = pl.BlockSpec((*w.shape[:-1], block_w), lambda program: (*(0,) * (w.ndim - 1), place(program)[1]))
    out = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(rows, config.block_m) * column_tiles,),
        in_specs=(pl.BlockSpec(), weights, tiles.epilogue_specs(epilogue, tile, channels)),
        out_specs=tile,
        out_shape=jax.ShapeDtypeStruct((rows, columns), out_dtype, manual_axis_type=jax.typeof(x).manual_axis_type),
        compiler_params=pltriton.CompilerParams(num_warps=config.num_warps),
        interpret=interpret,
        name=name,
    )(x.reshape(-1), w, epilogue)
    return out.reshape(geometry.out_shape)
