"""What the Triton kernels of the matrix product share: which program computes what, split K, and the call itself.

A program sums one tile of the output over one part of K. All programs lie on one axis of the grid (the others end at
65,535): tiles run fastest, so that programs that run at once share rows of x and of w in the L2, then parts, then
batches.

With K in parts, a program writes its int32 sum, and plain jnp adds the parts and ends the product: XLA makes that one
kernel. Int32 sums are exact in any order, so splitting never changes a bit; the epilogue runs once.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from pallas_kernels import tiles
from pallas_kernels.epilogue import Epilogue, finish, require
from pallas_kernels.matmul import reference
from pallas_kernels.tiles import Edge

_MOST_ELEMENTS = (1 << 31) - 1  # Triton-Pallas counts the elements of an array in int32


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The programs of a product of x (batches, m, k) and w (batches, n, k), k in whatever the kernel counts.

    Attributes:
      block_m, block_n, block_k: what a program reads in one step.
      part: how much of k, a multiple of block_k, is summed by one program.
      group: tiles of rows that are walked through together, column by column.
    """

    batches: int
    m: int
    n: int
    k: int
    block_m: int
    block_n: int
    block_k: int
    part: int
    group: int = 1

    @property
    def parts(self) -> int:
        """Programs that share a tile."""
        return pl.cdiv(self.k, self.part)

    @property
    def tiles(self) -> tuple[int, int]:
        """Tiles along the rows and along the columns of one output."""
        return pl.cdiv(self.m, self.block_m), pl.cdiv(self.n, self.block_n)

    @property
    def programs(self) -> int:
        """Size of the grid."""
        return self.batches * self.parts * math.prod(self.tiles)

    def place(self, program: Any) -> tuple[Any, Any, Any, Any]:
        """The program's (batch, part, tile of rows, tile of columns)."""
        rows, columns = self.tiles
        rest, tile = lax.div(program, rows * columns), lax.rem(program, rows * columns)
        group = min(self.group, rows)
        first = lax.div(tile, group * columns) * group
        inside = lax.rem(tile, group * columns)
        height = group if rows % group == 0 else lax.min(rows - first, group)
        return (
            lax.div(rest, self.parts),
            lax.rem(rest, self.parts),
            first + lax.rem(inside, height),
            lax.div(inside, height),
        )

    def steps(self, part: Any) -> tuple[Any, Any]:
        """The blocks of k that the part begins and ends before."""
        each, all_steps = self.part // self.block_k, pl.cdiv(self.k, self.block_k)
        if self.parts == 1:
            return 0, all_steps
        return part * each, lax.min((part + 1) * each, all_steps)


def part_of(x: Any, w: Any, block_k: int, splits: int) -> int:
    """The K that one program sums: of `splits` shares in whole blocks or, beyond what int32 holds, `reference.PART`."""
    if reference.is_split(x, w):
        return reference.PART
    return max(1, pl.cdiv(pl.cdiv(x.shape[-1], block_k), splits)) * block_k


def supports(x: Any, w: Any) -> str | None:
    """Why these are too large, or None."""
    parts = pl.cdiv(x.shape[-1], reference.PART) if reference.is_split(x, w) else 1
    return _too_large(max(math.prod(x.shape), math.prod(w.shape), math.prod(x.shape[:-1]) * w.shape[-2] * parts))


def _too_large(elements: int) -> str | None:
    if elements > _MOST_ELEMENTS:
        return f"the Triton kernels take arrays of less than 2**31 elements, not {elements}"
    return None


# The int32 tile of x (rows, k) and w (columns, k) between two steps of k, of (x, w, extra, row, column, steps).
Accumulate = Callable[[Any, Any, Any, Edge, Edge, tuple[Any, Any]], jax.Array]


def call(
    accumulate: Accumulate,
    x: jax.Array,
    w: jax.Array,
    extra: tuple[jax.Array | None, jax.Array | None],
    epilogue: Epilogue | None,
    schedule: Schedule,
    *,
    as_float: bool,
    out_dtype: jax.typing.DTypeLike,
    compiler_params: pltriton.CompilerParams,
    interpret: bool,
    name: str,
) -> jax.Array:
    """The product (batches, m, n) as one Triton kernel and, where K is in parts, the sum of the parts.

    Args:
      accumulate: the loop over k.
      extra: of (batches, parts, m) and (batches, parts, n), or None: what `accumulate` needs for each row and column.
      epilogue: its residual is (batches, m, n).
      as_float: add the parts in float32, for K beyond what int32 holds.

    Raises:
      UnsupportedShapeError: where the parts are too large an array.
    """
    s = schedule
    require(_too_large(s.batches * s.parts * s.m * s.n))
    tile = pl.BlockSpec((None, None, s.block_m, s.block_n), s.place)
    rows = pl.BlockSpec((None, None, s.block_m), lambda program: s.place(program)[:3])
    columns = pl.BlockSpec((None, None, s.block_n), lambda program: (*s.place(program)[:2], s.place(program)[3]))
    x_rows = pl.BlockSpec((None, s.block_m, s.k), lambda program: (s.place(program)[0], s.place(program)[2], 0))
    w_rows = pl.BlockSpec((None, s.block_n, s.k), lambda program: (s.place(program)[0], s.place(program)[3], 0))
    channels = pl.BlockSpec((s.block_n,), lambda program: s.place(program)[3:])
    whole = s.parts == 1
    fused = epilogue if whole else None
    if fused is not None and fused.residual is not None:
        fused = dataclasses.replace(fused, residual=fused.residual[:, None])
    extra_specs = tuple(None if e is None else spec for e, spec in zip(extra, (rows, columns), strict=True))
    out = pl.pallas_call(
        functools.partial(_kernel, accumulate=accumulate, schedule=s, interpret=interpret),
        grid=(s.programs,),
        in_specs=(x_rows, w_rows, extra_specs, tiles.epilogue_specs(fused, tile, channels)),
        out_specs=tile,
        out_shape=jax.ShapeDtypeStruct(
            (s.batches, s.parts, s.m, s.n),
            out_dtype if whole else jnp.int32,
            manual_axis_type=jax.typeof(x).manual_axis_type,
        ),
        compiler_params=compiler_params,
        interpret=interpret,
        name=name,
    )(x, w, extra, fused)
    if whole:
        return out.reshape(s.batches, s.m, s.n)
    parts = [out[:, part] for part in range(s.parts)]
    if as_float:
        return reference.finish_parts(parts, epilogue, out_dtype)
    return finish(functools.reduce(operator.add, parts), epilogue, out_dtype)


def _kernel(
    x_ref: Any,
    w_ref: Any,
    extra: Any,
    epilogue: Epilogue | None,
    out_ref: Any,
    *,
    accumulate: Accumulate,
    schedule: Schedule,
    interpret: bool,
) -> None:
    _, part, i, j = schedule.place(pl.program_id(0))
    row, column = (i * schedule.block_m, schedule.m), (j * schedule.block_n, schedule.n)
    acc = accumulate(x_ref, w_ref, extra, row, column, schedule.steps(part))
    tiles.store(acc, epilogue, out_ref, row, column, interpret=interpret)
