"""Weights in the form that the CPU kernels read: packed once, when a model is made or loaded, never in a call.

One form serves all instruction sets (`src/kernels.h`). Of a matrix (N, K), for each block of 16 output channels, K / 4
lines of 16 channels x 4 values, K padded to 64 with zeros, then 128 * sum(w) of each channel as int32. Of a depthwise
convolution (KH, KW, C), for each block of 64 channels and each column of the kernel KH / 4 lines of 64 channels
x 4 rows, then the same sums; the channels (4 x 4 x 4) with their first two axes swapped, as 128-bit shuffles interleave
them. A convolution of several groups is the matrices of its groups, one after another.
Of a weight-only dot, weight and scales (N, L): for each block of 16 output channels, L lines of 16 channels.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.graph.node import Node

BLOCK, DEPTH, LANES = 16, 64, 64


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight, packed. It stands for the array that `unpack` gives, whose shape and dtype it has.

    Attributes:
      data: an array of the weight's dtype, or what another backend's form says, a pytree.
      form: how `data` lies: a `Form` or `GroupForm`, or that of another backend, with `shape`, `dtype` and `unpack`.
    """

    data: Any
    form: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.form.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.form.dtype)

    @property
    def nbytes(self) -> int:
        return sum(int(array.nbytes) for array in jax.tree.leaves(self.data))

    def unpack(self) -> Any:
        """The weight as the graph has it."""
        return self.form.unpack(self.data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.form.unpack(jax.tree.map(np.asarray, self.data)), dtype)

    def tree_flatten(self) -> tuple[tuple[Any], Any]:
        return (self.data,), self.form

    @classmethod
    def tree_unflatten(cls, form: Any, children: tuple[Any]) -> "PackedWeight":
        return cls(children[0], form)


@dataclass(frozen=True)
class Form:
    """`shape` of the weight as the graph has it: (N, K) of a dot, (spatial..., C / groups, O) of a conv."""

    dtype = np.dtype(np.int8)
    shape: tuple[int, ...]
    groups: int = 1
    depthwise: bool = False

    @staticmethod
    def of(node: Node) -> "Form":
        """That of a conv's or dot's weight."""
        shape, groups = node.operand("weight").aval.shape, node.attrs.get("groups", 1)
        depthwise = groups > 1 and groups == node.operand("x").aval.shape[-1] == shape[-1]
        return Form(shape, 1 if depthwise else groups, depthwise)

    @property
    def matrices(self) -> tuple[int, int, int, int]:
        """Groups, output channels of a group N, and the depth as lines of the kernel times values of a line."""
        if len(self.shape) == 2:
            n, k = self.shape
            return 1, n, 1, k
        lines = self._kernel[0]
        return self.groups, self.shape[-1] // self.groups, lines, prod(self.shape[:-1]) // lines

    @property
    def size(self) -> int:
        """Bytes."""
        if self.depthwise:
            height, width = self._kernel
            return _up(self.shape[-1], LANES) * 4 * (width * _up(height, 4) // 4 + 1)
        groups, n, lines, line = self.matrices
        return groups * _up(n, BLOCK) // BLOCK * (_up(lines * _up(line, 4), DEPTH) * BLOCK + BLOCK * 4)

    @property
    def _kernel(self) -> tuple[int, int]:
        """Height and width of a kernel of one or two spatial axes."""
        height, width = (1, *self.shape[:-2])[-2:]
        return height, width

    def pack(self, weight: Any) -> PackedWeight:
        """`weight`, an array or a tracer, packed."""
        xp: Any = jnp if isinstance(weight, jax.core.Tracer) else np
        weight = xp.asarray(weight)
        data = self._pack_depthwise(xp, weight) if self.depthwise else self._pack_matrices(xp, weight)
        return PackedWeight(data, self)

    def unpack(self, data: Any) -> Any:
        """The inverse of `pack`, of its data."""
        xp: Any = np if isinstance(data, np.ndarray) else jnp
        if self.depthwise:
            height, width = self._kernel
            blocks = data.reshape(_up(self.shape[-1], LANES) // LANES, -1, 4, 4, 4, 4)[:, : width * _up(height, 4) // 4]
            lines = xp.transpose(blocks, (0, 1, 3, 2, 4, 5)).reshape(len(blocks), width, -1, LANES, 4)
            rows = xp.transpose(lines, (2, 4, 1, 0, 3)).reshape(_up(height, 4), width, -1)
            return rows[:height, :, : self.shape[-1]].reshape(self.shape)
        groups, n, lines, line = self.matrices
        blocks = data.reshape(groups, _up(n, BLOCK) // BLOCK, -1)[:, :, : -BLOCK * 4]
        quads = xp.transpose(blocks.reshape(groups, blocks.shape[1], -1, BLOCK, 4), (0, 1, 3, 2, 4))
        matrices = quads.reshape(groups, _up(n, BLOCK), -1)[:, :n, : lines * _up(line, 4)]
        matrices = matrices.reshape(groups, n, lines, -1)[..., :line].reshape(groups, n, -1)
        if len(self.shape) == 2:
            return matrices[0]
        return xp.transpose(matrices, (2, 0, 1)).reshape(self.shape)

    def _pack_matrices(self, xp: Any, weight: Any) -> Any:
        groups, n, lines, line = self.matrices
        is_dot = len(self.shape) == 2
        matrices = weight[None] if is_dot else xp.transpose(weight.reshape(-1, groups, n), (1, 2, 0))
        matrices = xp.pad(matrices.reshape(groups, n, lines, line), ((0, 0), (0, -n % BLOCK), (0, 0), (0, -line % 4)))
        matrices = matrices.reshape(groups, matrices.shape[1], -1)
        matrices = xp.pad(matrices, ((0, 0), (0, 0), (0, -matrices.shape[2] % DEPTH)))
        blocks = matrices.shape[1] // BLOCK
        quads = xp.transpose(matrices.reshape(groups, blocks, BLOCK, -1, 4), (0, 1, 3, 2, 4)).reshape(
            groups, blocks, -1
        )
        sums = _bytes(xp, matrices.sum(-1, dtype=np.int32)).reshape(groups, blocks, -1)
        return xp.concatenate([quads, sums], axis=-1).reshape(-1)

    def _pack_depthwise(self, xp: Any, weight: Any) -> Any:
        height, width = self._kernel
        channels = self.shape[-1]
        rows = xp.pad(weight.reshape(height, width, channels), ((0, -height % 4), (0, 0), (0, -channels % LANES)))
        lines = xp.transpose(rows.reshape(-1, 4, width, rows.shape[-1] // LANES, LANES), (3, 2, 0, 4, 1))
        sums = _bytes(xp, rows.sum((0, 1), dtype=np.int32)).reshape(len(lines), 1, LANES, 4)
        blocks = xp.concatenate([lines.reshape(len(lines), -1, LANES, 4), sums], axis=1)
        # Channel (a, b, c) of 4 x 4 x 4 comes to (b, a, c).
        return xp.transpose(blocks.reshape(len(blocks), -1, 4, 4, 4, 4), (0, 1, 3, 2, 4, 5)).reshape(-1)


@dataclass(frozen=True)
class GroupForm:
    """`shape` (N, L) and `dtype` of a weight-only dot's weight, packed or not packed to int4, or of its scales."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def pack(self, array: Any) -> PackedWeight:
        """`array`, an array or a tracer, packed."""
        xp: Any = jnp if isinstance(array, jax.core.Tracer) else np
        channels, lines = self.shape
        rows = xp.pad(xp.asarray(array), ((0, -channels % BLOCK), (0, 0)))
        return PackedWeight(xp.transpose(rows.reshape(-1, BLOCK, lines), (0, 2, 1)).reshape(-1), self)

    def unpack(self, data: Any) -> Any:
        """The inverse of `pack`, of its data."""
        xp: Any = np if isinstance(data, np.ndarray) else jnp
        channels, lines = self.shape
        return xp.transpose(data.reshape(-1, lines, BLOCK), (0, 2, 1)).reshape(-1, lines)[:channels]


AnyForm = Form | GroupForm


def _bytes(xp: Any, sums: Any) -> Any:
    """128 * sums as the bytes of int32."""
    scaled = 128 * sums
    if xp is np:
        return scaled.view(np.int8)
    return jax.lax.bitcast_convert_type(scaled, jnp.int8).reshape(-1)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
