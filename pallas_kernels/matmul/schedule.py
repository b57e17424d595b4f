"""What the Triton kernels of the matrix product share: which program computes what, split K, and the call itself.

A program sums one tile of the output over one part of K, or several one after another. They are numbered, all on one
axis (the others of a grid end at 65,535): tiles run fastest, so that programs that run at once share rows of x and of w
in the L2, then parts, then batches.

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
      part: how much of k, a multiple of block_k, is summed at a time.
      group: tiles of rows that are walked through together, column by column.
      most_programs: which walk over the tiles, the first ones taking the first tiles; None: a program for each tile.
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
    most_programs: int | None = None

    @property
    def parts(self) -> int:
        """Of k, each summed on its own."""
        return pl.cdiv(self.k, self.part)

    @property
    def tiles(self) -> tuple[int, int]:
        """Tiles along the rows and along the columns of one output."""
        return pl.cdiv(self.m, self.block_m), pl.cdiv(self.n, self.block_n)

    @property
    def items(self) -> int:
        """Tiles of all outputs and parts."""
        return self.batches * self.parts * math.prod(self.tiles)

    @property
    def programs(self) -> int:
        """Size of the grid."""
        return min(self.items, self.most_programs or self.items)

    def place(self, item: Any) -> tuple[Any, Any, Any, Any]:
        """The item's (batch, part, tile of rows, tile of columns)."""
        rows, columns = self.tiles
        rest, tile = lax.div(item, rows * columns), lax.rem(item, rows * columns)
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
    """The K that is summed at a time: one of `splits` shares, in whole blocks; beyond int32, `reference.PART`."""
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


# Of a slice of k: the reference to those columns of a tile's rows of x, or of w.
Columns = Callable[[Any], Any]
# The int32 tile of x (rows, k) and w (columns, k) between two steps of k, of (x, w, extra, row, column, steps).
Accumulate = Callable[[Columns, Columns, Any, Edge, Edge, tuple[Any, Any]], jax.Array]


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
      epilogue: its residual is (batches, m, n), its row_scale (batches, m).
      as_float: add the parts in float32, for K beyond what int32 holds.

    Raises:
      UnsupportedShapeError: where the parts are too large an array.
    """
    s = schedule
    require(_too_large(s.batches * s.parts * s.m * s.n))
    whole = s.parts == 1
    fused = epilogue if whole else None
    operands = x, w, extra, fused
    out = pl.pallas_call(
        functools.partial(_kernel, accumulate=accumulate, schedule=s, interpret=interpret),
        grid=(s.programs,),
        in_specs=jax.tree.map(lambda _: pl.BlockSpec(), operands),  # a program may read all: it walks over tiles
        out_specs=pl.BlockSpec(),
        out_shape=jax.ShapeDtypeStruct(
            (s.batches, s.parts, s.m, s.n),
            out_dtype if whole else jnp.int32,
            manual_axis_type=jax.typeof(x).manual_axis_type,
        ),
        compiler_params=compiler_params,
        interpret=interpret,
        name=name,
    )(*operands)
    if whole:
        return out.reshape(s.batches, s.m, s.n)
    parts = [out[:, part] for part in range(s.parts)]
    if as_float:
        return reference.finish_parts(parts, epilogue, out_dtype)
    return finish(functools.reduce(operator.add, parts), epilogue, out_dtype)


def _kernel(
    x_ref: Any,
    w_ref: Any,
    extra_refs: Any,
    epilogue: Epilogue | None,
    out_ref: Any,
    *,
    accumulate: Accumulate,
    schedule: Schedule,
    interpret: bool,
) -> None:
    s = schedule

    def compute(item: Any) -> None:
        b, part, i, j = s.place(item)
        row, column = (i * s.block_m, s.m), (j * s.block_n, s.n)
        rows, columns = pl.ds(row[0], s.block_m), pl.ds(column[0], s.block_n)
        extra = tuple(
            None if ref is None else ref.at[b, part, here]
            for ref, here in zip(extra_refs, (rows, columns), strict=True)
        )
        acc = accumulate(
            lambda here: x_ref.at[b, rows, here],
            lambda here: w_ref.at[b, columns, here],
            extra,
            row,
            column,
            s.steps(part),
        )
        blocks = None
        if epilogue is not None:
            multiplier, bias, lo, hi = (ref.at[columns] for ref in epilogue.vectors)
            residual = None if epilogue.residual is None else epilogue.residual.at[b, rows, columns]
            row_scale = None if epilogue.row_scale is None else epilogue.row_scale.at[b, rows]
            blocks = Epilogue(
                multiplier, bias, lo, hi, residual, epilogue.residual_multiplier, epilogue.table, row_scale
            )
        tiles.store(acc, blocks, out_ref.at[b, part, rows, columns], row, column, interpret=interpret)

    program = pl.program_id(0)
    if s.programs == s.items:
        compute(program)
    else:
        turns = lax.div(s.items + s.programs - 1 - program, s.programs)
        lax.fori_loop(0, turns, lambda turn, _: compute(program + turn * s.programs), None)
