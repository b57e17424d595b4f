"""Depthwise convolution on dp4a, in Triton: four taps of a channel are one instruction.

A word of x holds four channels of a pixel. The words under four taps, transposed as 4 x 4 bytes, are four words that
each hold four taps of one channel: 8 instructions, and 4 dp4a, for 16 products (one by one they take 16 conversions and
16 multiply-adds). The weights, with the channels last as a network has them, are transposed likewise, once for all
pixels of a thread.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.pallas import triton as pltriton

from pallas_kernels import tiles
from pallas_kernels.conv import tiled
from pallas_kernels.conv.config import ConvDot4Config, dot4_candidates, is_in_fours
from pallas_kernels.conv.gather import Gather, across, block_mask, block_of, prepare
from pallas_kernels.conv.window import Geometry
from pallas_kernels.dot4 import dot4, pack4
from pallas_kernels.epilogue import Epilogue
from pallas_kernels.tiles import Edge

_UNROLLED = 8  # quadruples of taps


def refuses(config: ConvDot4Config, geometry: Geometry) -> str | None:
    """Why the tactic does not go with the geometry, or None."""
    if is_in_fours(geometry):
        return None
    return f"{config}: dp4a takes depthwise convolutions with a filter for each channel, of channels in fours"


def candidates(
    x: Any, w: Any, epilogue: Epilogue | None, geometry: Geometry, *, out_dtype: jax.typing.DTypeLike
) -> tuple[ConvDot4Config, ...]:
    """Tactics worth timing, the default first; none for what it does not take."""
    del x, w, epilogue, out_dtype
    return dot4_candidates(geometry)


def run(
    x: jax.Array,
    w: jax.Array,
    epilogue: Epilogue | None,
    geometry: Geometry,
    *,
    out_dtype: jax.typing.DTypeLike,
    offset: jax.Array | None = None,
    config: ConvDot4Config,
    interpret: bool = False,
) -> jax.Array:
    """`conv` of non-empty arrays, as one Triton kernel: depthwise, of channels in fours."""
    del offset  # dp4a takes uint8 as it is
    x, gather = prepare(x, geometry)
    signed, words = x.dtype == jnp.int8, gather.pixel // 4
    x, gather = pack4(x), dataclasses.replace(gather, pixel=words)
    return tiled.call(
        functools.partial(_accumulate, gather=gather, signed=signed, config=config, interpret=interpret),
        x,
        pack4(tiled.channels_last(w)),
        config.block_n // 4,
        epilogue,
        geometry,
        out_dtype=out_dtype,
        config=config,
        interpret=interpret,
        name="conv_dot4",
    )


def _accumulate(
    x_ref: Any,
    w_ref: Any,
    row: Edge,
    column: Edge,
    *,
    gather: Gather,
    signed: bool,
    config: ConvDot4Config,
    interpret: bool,
) -> jax.Array:
    block_words = config.block_n // 4
    shape = (config.block_m, block_words)
    pixels = gather.rows(row, config.block_m)
    first_word = lax.div(column[0], config.block_n) * block_words
    in_words = tiles.mask((block_words,), (first_word, column[1] // 4))
    word = first_word + lax.iota(jnp.int32, block_words)

    zero = jnp.zeros(shape, jnp.int32), jnp.zeros((block_words,), jnp.int32)

    def accumulate(first: Any, accs: tuple[jax.Array, ...], taps: int = 4) -> tuple[jax.Array, ...]:
        x, w = [zero[0]] * 4, [zero[1]] * 4
        for i in range(taps):
            tap = first + np.int32(i)
            address, inside = pixels.under(tap)
            x[i] = tiles.load(x_ref.at[block_of(address, word)], block_mask(inside, in_words, shape))
            w[i] = tiles.load(w_ref.at[tap, :], in_words)
        by_channel = [_transpose4(*words, interpret=interpret) for words in (x, w)]
        return tuple(
            dot4(x, across(w, shape), acc, signed=signed, interpret=interpret)
            for x, w, acc in zip(*by_channel, accs, strict=True)
        )

    accs: tuple[jax.Array, ...] = (zero[0],) * 4
    fours, rest = divmod(gather.taps, 4)
    if fours > _UNROLLED:
        accs = lax.fori_loop(0, fours, lambda four, accs: accumulate(four * np.int32(4), accs), accs)
    else:
        for four in np.arange(fours, dtype=np.int32):  # what interpret mode takes as an index
            accs = accumulate(four * np.int32(4), accs)
    if rest:
        accs = accumulate(np.int32(4 * fours), accs, rest)
    halves = lax.stack((accs[0], accs[2]), axis=2), lax.stack((accs[1], accs[3]), axis=2)
    return lax.stack(halves, axis=3).reshape(config.block_m, config.block_n)


def _transpose4(
    a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array, *, interpret: bool
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Four words: of the lowest bytes of a, b, c and d (a's is the lowest), of the next bytes, and so on."""
    permute = functools.partial(_permute, interpret=interpret)
    ab01, ab23 = permute(a, b, (0, 4, 1, 5)), permute(a, b, (2, 6, 3, 7))
    cd01, cd23 = permute(c, d, (0, 4, 1, 5)), permute(c, d, (2, 6, 3, 7))
    low, high = (0, 1, 4, 5), (2, 3, 6, 7)
    return permute(ab01, cd01, low), permute(ab01, cd01, high), permute(ab23, cd23, low), permute(ab23, cd23, high)


def _permute(a: jax.Array, b: jax.Array, chosen: tuple[int, ...], *, interpret: bool) -> jax.Array:
    """The word of the four chosen bytes, the first lowest: 0 to 3 are those of a, 4 to 7 those of b."""
    if interpret:
        word = jnp.zeros_like(a)
        for to, at in enumerate(chosen):
            byte = lax.shift_right_logical(a if at < 4 else b, jnp.full_like(a, at % 4 * 8)) & jnp.full_like(a, 255)
            word = word | lax.shift_left(byte, jnp.full_like(a, to * 8))
        return word
    selector = sum(at << (4 * to) for to, at in enumerate(chosen))
    [word] = pltriton.elementwise_inline_asm(
        f"prmt.b32 $0, $1, $2, {selector};",
        args=[a, b],
        constraints="=r,r,r",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(a.shape, jnp.int32)],
    )
    return word
