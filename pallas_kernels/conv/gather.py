"""Which bytes of x a kernel reads for its rows, the output pixels: their addresses, and whether they lie in x."""

import functools
import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import tiles
from pallas_kernels.conv.window import Geometry


@dataclass(frozen=True)
class Gather:
    """The geometry that a kernel sees, after what XLA has done to x; one number for each spatial axis.

    Attributes:
      sizes: of x.
      out: of the output.
      kernel: numbers of taps.
      strides, dilation: as in `Window`.
      before: zeros before x that are not written out.
      pixel: bytes from one pixel to the next: the channels of all groups.
    """

    sizes: tuple[int, ...]
    out: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    pixel: int

    @classmethod
    def of(cls, x: jax.Array, geometry: Geometry, before: tuple[int, ...]) -> "Gather":
        window, sizes = geometry.window, x.shape[1:-1]
        return cls(sizes, geometry.out, geometry.kernel, window.strides, window.dilation, before, x.shape[-1])

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def leaves_x(self) -> tuple[bool, ...]:
        """Along which axes some tap of some output pixel lies outside of x."""
        axes = zip(self.sizes, self.out, self.kernel, self.strides, self.dilation, self.before, strict=True)
        return tuple(
            lo > 0 or (out - 1) * stride + (taps - 1) * step - lo >= size for size, out, taps, stride, step, lo in axes
        )

    def rows(self, row: tiles.Edge, block: int) -> "Rows":
        """The rows of the block that starts there."""
        index = row[0] + lax.iota(jnp.int32, block)
        corner: list[jax.Array] = []
        for size, stride, before in reversed([*zip(self.out, self.strides, self.before, strict=True)]):
            corner.insert(0, lax.rem(index, size) * stride - before)
            index = lax.div(index, size)
        for size, at in zip(self.sizes, corner, strict=True):
            index = index * size + at
        return Rows(self, corner, index * self.pixel, tiles.mask((block,), row))


@dataclass(frozen=True)
class Rows:
    """A block of rows.

    Attributes:
      corner: coordinates in x of the pixel under the kernel's first tap, for each spatial axis one for each row.
      first: addresses of those pixels.
      inside: which rows are rows of the output; None: all.
    """

    gather: Gather
    corner: list[jax.Array]
    first: jax.Array
    inside: jax.Array | None

    def under(self, tap: Any) -> tuple[jax.Array, jax.Array | None]:
        """Addresses of the pixels under a tap (numbered in row-major order), and which of them lie in x; None: all."""
        gather = self.gather
        inside, away, size = [self.inside], jnp.int32(0), 1
        for axis in reversed(range(len(gather.kernel))):
            shift = lax.rem(tap, gather.kernel[axis]) * gather.dilation[axis]
            tap = lax.div(tap, gather.kernel[axis])
            away, size = away + shift * size, size * gather.sizes[axis]
            if gather.leaves_x[axis]:
                at = self.corner[axis] + shift
                inside.append((at >= 0) & (at < gather.sizes[axis]))
        return self.first + away * gather.pixel, all_of(inside)


def prepare(x: jax.Array, geometry: Geometry) -> tuple[jax.Array, Gather]:
    """What a kernel reads: x as it is or, with a dilated input, written out."""
    window = geometry.window
    if set(window.input_dilation) == {1}:
        return x, Gather.of(x, geometry, tuple(lo for lo, _ in window.padding))
    return (x := written_out(x, geometry)), Gather.of(x, geometry, (0,) * len(window.strides))


def written_out(x: jax.Array, geometry: Geometry, more_pixels: int = 0) -> jax.Array:
    """x with its dilation and padding, and with more zeros behind the last spatial axis."""
    window = geometry.window
    spatial = [(lo, hi, step - 1) for (lo, hi), step in zip(window.padding, window.input_dilation, strict=True)]
    lo, hi, interior = spatial.pop()
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *spatial, (lo, hi + more_pixels, interior), (0, 0, 0)])


def all_of(masks: Iterable[jax.Array | None]) -> jax.Array | None:
    """What all masks leave; None leaves everything."""
    given = [mask for mask in masks if mask is not None]
    return functools.reduce(operator.and_, given) if given else None


def block_of(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """The addresses (rows, columns) of bytes at `columns` from the starts `rows`."""
    shape = rows.shape + columns.shape
    return down(rows, shape) + across(columns, shape)


def block_mask(rows: jax.Array | None, columns: jax.Array | None, shape: tuple[int, int]) -> jax.Array | None:
    """The mask of a block whose rows and columns those masks leave."""
    return all_of((None if rows is None else down(rows, shape), None if columns is None else across(columns, shape)))


def down(v: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A number for each row, in all columns."""
    return lax.broadcast_in_dim(v, shape, (0,))


def across(v: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A number for each column, in all rows."""
    return lax.broadcast_in_dim(v, shape, (1,))
