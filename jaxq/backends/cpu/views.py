"""Where the values of a region lie: views of storages, so that slices, transposes and concatenations move nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

ALIGNMENT = 64


@dataclass(eq=False)
class Storage:
    """Memory of one value or of several: a buffer of the call, or a part of the region's arena.

    Attributes:
      size: bytes.
      buffer: number of the call's buffer, or None in the arena.
      first, last: the operations between which its content is needed.
      offset: in the arena, once that is laid out.
    """

    size: int
    buffer: int | None = None
    first: int = -1
    last: int = -1
    offset: int = 0


@dataclass(frozen=True, eq=False)
class View:
    """A strided array in a storage; strides and offset are in elements."""

    storage: Storage
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype
    offset: int = 0

    @staticmethod
    def dense(storage: Storage, shape: Sequence[int], dtype: np.dtype) -> "View":
        return View(storage, tuple(shape), dense_strides(shape), dtype)

    @property
    def byte_offset(self) -> int:
        return self.offset * self.dtype.itemsize

    def byte_stride(self, axis: int) -> int:
        return self.strides[axis] * self.dtype.itemsize

    def transpose(self, permutation: Sequence[int]) -> "View":
        return self._with(tuple(self.shape[i] for i in permutation), tuple(self.strides[i] for i in permutation))

    def slice(self, start: Sequence[int], limit: Sequence[int], step: Sequence[int]) -> "View":
        shape = tuple(-(-(b - a) // s) for a, b, s in zip(start, limit, step, strict=True))
        offset = self.offset + sum(a * stride for a, stride in zip(start, self.strides, strict=True))
        strides = tuple(stride * s for stride, s in zip(self.strides, step, strict=True))
        return View(self.storage, shape, strides, self.dtype, offset)

    def reshape(self, shape: Sequence[int]) -> "View | None":
        """The view of another shape, or None where only a copy has it."""
        strides: list[int] = []
        old = [(size, stride) for size, stride in zip(self.shape, self.strides, strict=True) if size != 1]
        new = [size for size in shape if size != 1]
        if prod(self.shape) == 0:
            return self._with(tuple(shape), dense_strides(shape))
        i = j = 0
        while i < len(old) and j < len(new):
            # The shortest runs of axes that have equally many elements.
            first, last, grown = i, i + 1, j + 1
            have, want = old[i][0], new[j]
            while have != want:
                if have < want:
                    have *= old[last][0]
                    last += 1
                else:
                    want *= new[grown]
                    grown += 1
            if any(old[a][1] != old[a + 1][1] * old[a + 1][0] for a in range(first, last - 1)):
                return None
            strides += [old[last - 1][1] * stride for stride in dense_strides(new[j:grown])]
            i, j = last, grown
        left = iter(strides)
        return self._with(tuple(shape), tuple(1 if size == 1 else next(left) for size in shape))

    def rows(self) -> tuple[int, int] | None:
        """Number and stride in bytes of the rows of the last axis, or None where they are not evenly apart."""
        if self.shape[-1] != 1 and self.strides[-1] != 1:
            return None
        flat = self.reshape((prod(self.shape[:-1]), self.shape[-1]))
        return None if flat is None else (flat.shape[0], flat.byte_stride(0) if flat.shape[0] > 1 else self._last())

    def _last(self) -> int:
        return self.shape[-1] * self.dtype.itemsize

    def _with(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> "View":
        return View(self.storage, shape, strides, self.dtype, self.offset)


def dense_strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


@dataclass(frozen=True)
class Broadcast:
    """How rows of an operand go with the rows of a result: row (r // repeat) % period, `step` 0 where one value stands
    for all channels."""

    repeat: int
    period: int
    step: int

    @staticmethod
    def of(operand: Sequence[int], result: Sequence[int]) -> "Broadcast | None":
        """That of an operand's shape to the result's, or None where it has no such form."""
        shape = (1,) * (len(result) - len(operand)) + tuple(operand)
        outer = [(a, b) for a, b in zip(shape[:-1], result[:-1], strict=True) if b != 1]
        full = [i for i, (a, _) in enumerate(outer) if a != 1]
        if full and full != list(range(full[0], full[-1] + 1)):
            return None
        repeat = prod(b for _, b in outer[full[-1] + 1 :]) if full else 1
        period = prod(outer[i][1] for i in full)
        return Broadcast(max(repeat, 1), max(period, 1), 0 if shape[-1] == 1 and result[-1] != 1 else 1)


@dataclass
class Arena:
    """Memory of a region, shared by storages that are not needed at the same time."""

    storages: list[Storage] = field(default_factory=list)

    def layout(self) -> int:
        """Gives every storage its offset; the size in bytes. The largest are placed first, each at the lowest
        place that is free while it is needed."""
        placed: list[Storage] = []
        for storage in sorted(self.storages, key=lambda s: -s.size):
            beside = sorted(
                (other for other in placed if storage.first <= other.last and other.first <= storage.last),
                key=lambda s: s.offset,
            )
            offset = 0
            for other in beside:
                if offset + storage.size <= other.offset:
                    break
                offset = max(offset, _aligned(other.offset + other.size))
            storage.offset = offset
            placed.append(storage)
        return max((s.offset + s.size for s in placed), default=0)


def _aligned(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT
