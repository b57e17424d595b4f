"""A convolution, or a windowed reduction, tap by tap: what each position within the window sees as it moves.

As a sum over these, each times a weight, a depthwise convolution takes a fraction of the time of XLA's own on the CPU.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import jax
import numpy as np
from jax import lax

from jaxq.graph.node import Node


def padded(node: Node, x: jax.Array, value: int) -> jax.Array:
    """The input with its padding and dilation written out."""
    spatial = [
        (lo, hi, dilation - 1)
        for (lo, hi), dilation in zip(node.attrs["padding"], node.attrs["lhs_dilation"], strict=True)
    ]
    config = [(0, 0, 0), *spatial, (0, 0, 0)]
    return x if not any(map(any, config)) else lax.pad(x, np.array(value, x.dtype), config)


def parts(node: Node, x: jax.Array, weight: jax.Array, value: int) -> Iterator[tuple[tuple[int, ...], jax.Array]]:
    """Every tap's index in the kernel and the part of the input that it sees, of the output's spatial shape."""
    strides, dilation = (1, *node.attrs["strides"], 1), (1, *node.attrs["rhs_dilation"], 1)
    for index, part in slices(padded(node, x, value), (1, *weight.shape[:-2], 1), strides, dilation):
        yield index[1:-1], part


def slices(
    x: jax.Array, sizes: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], jax.Array]]:
    """For every position within a window of those sizes, what it sees as the window moves over x."""
    out = [(n - (k - 1) * d - 1) // s + 1 for n, k, d, s in zip(x.shape, sizes, dilation, strides, strict=True)]
    for index in product(*map(range, sizes)):
        start = [i * d for i, d in zip(index, dilation, strict=True)]
        stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, out, strides, strict=True)]
        yield index, lax.slice(x, start, stop, strides)
