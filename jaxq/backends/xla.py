"""The backend that takes every node, everywhere: XLA's own int8 convolutions and dots, in the forms it runs well.

XLA multiplies int8 by int8 only (a uint8 convolution is an error, a uint8 dot is slow), so a uint8 operand is shifted,

    sum(x * w) = sum((x - 128) * w) + 128 * sum(w)      with x - 128 in int8, its padding -128

A depthwise convolution runs as a sum over its taps, each a shifted slice times a weight: XLA's CPU fuses that into one
loop, 40 times faster than its convolution. On CUDA every convolution runs so, one dot a tap, because XLA has no int8
convolution with int32 sums there (jax-ml/jax#7637).
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxq import numerics
from jaxq.graph.evaluate import contract, convolve, reference
from jaxq.graph.node import Node


def supports(node: Node) -> str | None:
    """None: XLA takes every node."""
    del node


def candidates(node: Node) -> tuple[None, ...]:
    """One tactic: XLA chooses its kernels itself."""
    del node
    return (None,)


def lower(node: Node, tactic: None = None) -> Callable[..., Any]:
    """The function of the node's operands; floats and whatever moves integers run by their definition."""
    del tactic
    if "multiplier" not in node.roles or node.op not in _SUMS:
        return reference(node)
    total = _SUMS[node.op]

    def run(*operands: Any) -> Any:
        given = dict(zip(node.roles, operands, strict=True))
        acc = total(node, given.pop("x"), given.pop("weight"))
        return numerics.epilogue(acc, **given, dtype=node.aval.dtype)

    return run


def _dot(node: Node, x: jax.Array, weight: jax.Array) -> jax.Array:
    del node
    signed, correction = _signed(x, weight, axis=1)
    return contract(signed, weight, jnp.int32) + correction


def _conv(node: Node, x: jax.Array, weight: jax.Array) -> jax.Array:
    if node.attrs["groups"] == x.shape[-1] == weight.shape[-1] and x.shape[-1] > 1:
        return _taps(node, x, weight, lambda part, tap: part.astype(jnp.int32) * tap[0].astype(jnp.int32))
    signed, correction = _signed(x, weight, axis=tuple(range(weight.ndim - 1)))
    padding_value = -128 if x.dtype == jnp.uint8 else 0
    acc = lax.platform_dependent(
        signed,
        weight,
        cuda=lambda x, w: _taps(node, x, w, _grouped_dot(node.attrs["groups"]), padding_value),
        default=lambda x, w: _padded_convolution(node, x, w, padding_value),
    )
    return acc + correction


_SUMS = {"conv": _conv, "dot": _dot}


def _signed(x: jax.Array, weight: jax.Array, axis: Any) -> tuple[jax.Array, jax.Array]:
    """int8 x as it is; uint8 x less 128, and what that takes from the sums of each output channel."""
    if x.dtype == jnp.int8:
        return x, jnp.zeros((), jnp.int32)
    signed = lax.bitcast_convert_type(x ^ jnp.uint8(128), jnp.int8)
    return signed, 128 * jnp.sum(weight.astype(jnp.int32), axis=axis)


def _pad(node: Node, x: jax.Array, value: int) -> jax.Array:
    """The input with its padding and dilation written out."""
    spatial = [
        (lo, hi, dilation - 1)
        for (lo, hi), dilation in zip(node.attrs["padding"], node.attrs["lhs_dilation"], strict=True)
    ]
    config = [(0, 0, 0), *spatial, (0, 0, 0)]
    return x if not any(map(any, config)) else lax.pad(x, np.array(value, x.dtype), config)


def _padded_convolution(node: Node, x: jax.Array, weight: jax.Array, value: int) -> jax.Array:
    if value:
        rank = len(node.attrs["strides"])
        x = _pad(node, x, value)
        node = node.with_attrs(padding=((0, 0),) * rank, lhs_dilation=(1,) * rank)
    return convolve(node, x, weight, jnp.int32)


def _grouped_dot(groups: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(..., C) times (C / groups, O) to (..., O), each group on its own channels."""

    def dot(part: jax.Array, tap: jax.Array) -> jax.Array:
        if groups == 1:
            return contract(part, tap.T, jnp.int32)
        outer = part.shape[:-1]
        x = part.reshape(-1, groups, part.shape[-1] // groups)
        w = tap.reshape(tap.shape[0], groups, -1)
        by_group = lax.dot_general(x, w, (((2,), (0,)), ((1,), (1,))), preferred_element_type=jnp.int32)
        return by_group.transpose(1, 0, 2).reshape(*outer, -1)

    return dot


def _taps(
    node: Node, x: jax.Array, weight: jax.Array, multiply: Callable[[jax.Array, jax.Array], jax.Array], value: int = 0
) -> jax.Array:
    """The convolution as a sum over its taps: `multiply` takes the part of the input that a tap sees, and the tap."""
    kernel = weight.shape[:-2]
    strides, dilation = node.attrs["strides"], node.attrs["rhs_dilation"]
    x = _pad(node, x, value)
    out = [
        (size - (k - 1) * d - 1) // s + 1
        for size, k, d, s in zip(x.shape[1:-1], kernel, dilation, strides, strict=True)
    ]
    acc: jax.Array | None = None
    for index in product(*map(range, kernel)):
        start = [i * d for i, d in zip(index, dilation, strict=True)]
        stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, out, strides, strict=True)]
        part = lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *strides, 1))
        term = multiply(part, weight[index])
        acc = term if acc is None else acc + term
    assert acc is not None
    return acc
