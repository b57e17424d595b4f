"""The end of a consumer of the `tma` kernels: from its accumulator to the output in memory.

What the epilogue reads arrives in shared memory while the tensor cores work. The accumulator is finished in parts of 32
or 64 columns (so that a part's operands fit in registers), each of which leaves through shared memory while the next is
computed: two slots for outputs, two for residuals.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import mosaic
from pallas_kernels.epilogue import Epilogue, finish
from pallas_kernels.matmul.tma import CONSUMERS, Tiles, swizzle

_SLOTS = 2


def scratch(
    config: Tiles, n: int, epilogue: Epilogue | None, offset: Any, out_dtype: jax.typing.DTypeLike
) -> dict[str, Any]:
    """Shared memory and barriers of all consumers' ends; None of what there is not."""
    rows, columns = config.consumer_tile

    def parts(dtype: jax.typing.DTypeLike) -> Any:
        transforms = swizzle(config.part, n, jnp.dtype(dtype).itemsize)
        return plgpu.SMEM((CONSUMERS, _SLOTS, rows, config.part), dtype, transforms=transforms)

    residual = None if epilogue is None else epilogue.residual
    copies = (0 if epilogue is None else len(epilogue.vectors)) + (offset is not None)
    return {
        "out_parts": parts(out_dtype),
        "vector_parts": None if epilogue is None else plgpu.SMEM((CONSUMERS, 4, columns), jnp.float32),
        "offset_parts": None if offset is None else plgpu.SMEM((CONSUMERS, columns), jnp.int32),
        "channels_full": plgpu.Barrier(num_barriers=CONSUMERS, num_arrivals=copies) if copies else None,
        "residual_parts": None if residual is None else parts(residual.dtype),
        "residual_full": None if residual is None else plgpu.Barrier(num_barriers=CONSUMERS * _SLOTS),
    }


class End:
    """The end of consumer `me`, over references: those of the kernel's operands, and what `scratch` describes.

    `layout` is the accumulator's in registers; None when interpreting.
    """

    def __init__(
        self,
        config: Tiles,
        me: Any,
        epilogue: Epilogue | None,
        offset: Any,
        out: Any,
        *,
        layout: Any,
        **scratch: Any,
    ) -> None:
        self.config, self.me, self.epilogue, self.offset, self.out = config, me, epilogue, offset, out
        self.scratch = scratch
        self.arithmetic = {} if layout is None else mosaic.arithmetic(layout)

    def fetch(self, b: Any, row: Any, column: Any) -> None:
        """Starts the copies of what the tile at (row, column) of matrix b needs."""
        me, scratch = self.me, self.scratch
        here = pl.ds(column, self.config.consumer_tile[1])
        if self.epilogue is not None:
            for i, vector in enumerate(self.epilogue.vectors):
                plgpu.copy_gmem_to_smem(
                    vector.at[here], scratch["vector_parts"].at[me, i], scratch["channels_full"].at[me]
                )
        if self.offset is not None:
            plgpu.copy_gmem_to_smem(
                self.offset.at[b, here], scratch["offset_parts"].at[me], scratch["channels_full"].at[me]
            )
        for part in range(min(_SLOTS, self._parts)):
            self._fetch_residual(part, b, row, column)

    def store(self, acc: Callable[[slice], jax.Array], b: Any, row: Any, column: Any) -> None:
        """Finishes the accumulator, given by its columns, and starts its copy to the output."""
        me, width, out_parts = self.me, self.config.part, self.scratch["out_parts"]
        if self.scratch["channels_full"] is not None:
            plgpu.barrier_wait(self.scratch["channels_full"].at[me])
        for part in range(self._parts):
            slot = part % _SLOTS
            here = slice(part * width, (part + 1) * width)
            finished = finish(
                self._offset(acc(here), here), self._operands(part, here), self.out.dtype, **self.arithmetic
            )
            # The slot's last copy has left. (At first both: which slot the last tile ended in hangs on its parts.)
            plgpu.wait_smem_to_gmem(min(part, _SLOTS - 1), wait_read_only=True)
            out_parts[me, slot] = finished
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(out_parts.at[me, slot], self._tile(self.out, part, b, row, column))
            if part + _SLOTS < self._parts:
                self._fetch_residual(part + _SLOTS, b, row, column)

    @property
    def _parts(self) -> int:
        return self.config.consumer_tile[1] // self.config.part

    def _tile(self, ref: Any, part: int, b: Any, row: Any, column: Any) -> Any:
        width = self.config.part
        return ref.at[b, pl.ds(row, self.config.consumer_tile[0]), pl.ds(column + part * width, width)]

    def _fetch_residual(self, part: int, b: Any, row: Any, column: Any) -> None:
        if self.epilogue is not None and self.epilogue.residual is not None:
            slot = part % _SLOTS
            plgpu.copy_gmem_to_smem(
                self._tile(self.epilogue.residual, part, b, row, column),
                self.scratch["residual_parts"].at[self.me, slot],
                self.scratch["residual_full"].at[self.me * _SLOTS + slot],
            )

    def _offset(self, acc: jax.Array, here: slice) -> jax.Array:
        if self.offset is None:
            return acc
        offset = mosaic.load(self.scratch["offset_parts"].at[self.me, here])
        return acc + lax.broadcast_in_dim(offset, acc.shape, (1,))

    def _operands(self, part: int, here: slice) -> Epilogue | None:
        if self.epilogue is None:
            return None
        vectors = [
            mosaic.load(self.scratch["vector_parts"].at[self.me, i, here]) for i in range(len(self.epilogue.vectors))
        ]
        if self.epilogue.residual is None:
            return Epilogue(*vectors)
        slot = part % _SLOTS
        plgpu.barrier_wait(self.scratch["residual_full"].at[self.me * _SLOTS + slot])
        residual = mosaic.load(self.scratch["residual_parts"].at[self.me, slot])
        factor = self.epilogue.residual_multiplier[0]
        return dataclasses.replace(Epilogue(*vectors), residual=residual, residual_multiplier=factor)
