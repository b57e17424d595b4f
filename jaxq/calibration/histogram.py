"""The observer's state: an exact, mergeable histogram of the magnitudes of one tensor.

`observe` adds an array, `merge` adds two histograms. Both are integer arithmetic on the bits of the samples, so that
histograms of the same samples are equal bit for bit, however the samples were ordered, split and merged.

In a graph of many tensors, take `from_samples` of each and merge them all at once, `jax.vmap(merge)`: compiling a
merge costs more than running it.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

NUM_BINS = 2048
_LOG2_BINS = 11
_ZERO, _NONFINITE = NUM_BINS, NUM_BINS + 1  # the two slots after the bins
_NUM_SLOTS = NUM_BINS + 2


@partial(jax.tree_util.register_dataclass, data_fields=["counts", "amax"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts of |x| in 2048 equal bins over [0, 2^e), 2^e the least power of two strictly above `amax`.

    `counts` has 2050 slots: the bins, then one for zeros, then one for NaN and Inf. Each count is two uint32 limbs on
    the leading axis, counts[0] + 2^32 counts[1] (x64 is off in JAX).

    Invariants:
      * Every sample is counted once. Bin j holds those with j <= |x| 2^(11 - e) < j + 1. Zeros are in no bin, and a
        subnormal is a zero, as XLA's arithmetic takes it. NaN and Inf touch nothing but their count.
      * e depends on `amax` alone, so the histogram depends on the multiset of samples alone: as amax grows the range
        doubles, and that merges pairs of bins, floor(floor(y) / 2) = floor(y / 2).
      * amax lies in [2^(e - 1), 2^e) unless it is 0, so at least 1025 bins are in use.
    """

    counts: jax.Array  # (2, 2050) uint32
    amax: jax.Array  # () float32: the greatest finite |x|, exact; 0 if there is none

    @property
    def exponent(self) -> jax.Array:
        """e, int32 in [-125, 128]; -126 where amax is 0."""
        return _exponent(self.amax)

    @property
    def nonfinite(self) -> jax.Array:
        """The two limbs of the number of NaN and Inf."""
        return self.counts[..., _NONFINITE]

    def to_numpy(self) -> "HostHistogram":
        """Read the histogram from its device and join the limbs."""
        low, high = np.asarray(self.counts).astype(np.int64)
        counts = low + (high << 32)
        amax = float(self.amax)
        return HostHistogram(
            counts=counts[:NUM_BINS],
            zeros=int(counts[_ZERO]),
            nonfinite=int(counts[_NONFINITE]),
            amax=amax,
            bin_width=math.ldexp(1.0, math.frexp(amax)[1] - _LOG2_BINS),
        )


@dataclasses.dataclass(frozen=True)
class HostHistogram:
    """A `Histogram` on the host: bin j holds bin_width j <= |x| < bin_width (j + 1)."""

    counts: NDArray[np.int64]  # (2048,)
    zeros: int
    nonfinite: int
    amax: float
    bin_width: float


def empty() -> Histogram:
    """The histogram of no samples."""
    return Histogram(counts=jnp.zeros((2, _NUM_SLOTS), jnp.uint32), amax=jnp.zeros((), jnp.float32))


def observe(histogram: Histogram, x: jax.Array) -> Histogram:
    """`histogram` with the samples of `x` added."""
    return merge(histogram, from_samples(x))


def from_samples(x: jax.Array) -> Histogram:
    """The histogram of a float32, bfloat16 or float16 array of any shape and fewer than 2^31 elements."""
    if x.size == 0:
        return empty()
    bits = _bits(x.astype(jnp.float32).reshape(-1)) & 0x7FFFFFFF  # of |x|, and ordered as |x|
    is_zero, is_finite = bits < 0x00800000, bits < 0x7F800000
    # As floats, because XLA's CPU has a fast maximum for these only.
    amax = jnp.max(lax.bitcast_convert_type(jnp.where(is_finite & ~is_zero, bits, 0), jnp.float32))

    # |x| = m 2^(biased - 150) with m of 24 bits: its bin floor(|x| 2^(11 - e)) is a shift of m, free of rounding.
    m, biased = bits & 0x007FFFFF | 0x00800000, bits >> 23
    index = m >> jnp.minimum(_exponent(amax) - _LOG2_BINS + 150 - biased, 31)
    slot = jnp.where(is_zero, _ZERO, jnp.where(is_finite, index, _NONFINITE))
    limbs = jnp.zeros(2 * _NUM_SLOTS, jnp.uint32).at[slot].add(jnp.uint32(1), mode="promise_in_bounds")
    return Histogram(counts=limbs.reshape(2, _NUM_SLOTS), amax=amax)


def merge(a: Histogram, b: Histogram) -> Histogram:
    """The histogram of the samples of both: associative, commutative, `empty()` its identity."""
    amax = jnp.maximum(a.amax, b.amax)
    slot = jnp.arange(_NUM_SLOTS, dtype=jnp.int32)

    def target(h: Histogram) -> jax.Array:
        doublings = jnp.minimum(_exponent(amax) - h.exponent, _LOG2_BINS)
        return jnp.where(slot < NUM_BINS, slot >> doublings, slot)

    targets = jnp.concatenate([target(a), target(b)])
    digits = jnp.concatenate([_digits(a.counts), _digits(b.counts)], axis=1)
    sums = jnp.zeros((4, _NUM_SLOTS), jnp.uint32).at[:, targets].add(digits, mode="promise_in_bounds")
    return Histogram(counts=_carry(sums), amax=amax)


def _bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.int32)


def _exponent(amax: jax.Array) -> jax.Array:
    """The least e with amax < 2^e, from the exponent field of a normal float; -126 for zero."""
    return (_bits(amax) >> 23) - 126


# Counts are added in base 2^16, one uint32 a digit: sums of up to 2^16 terms need a carry only at their end.


def _digits(limbs: jax.Array) -> jax.Array:
    """(2, n) limbs as (4, n) digits, the lowest first."""
    return jnp.stack([limbs[0] & 0xFFFF, limbs[0] >> 16, limbs[1] & 0xFFFF, limbs[1] >> 16])


def _carry(digits: jax.Array) -> jax.Array:
    """(4, n) sums of digits as (2, n) limbs."""
    d0, d1, d2, d3 = digits
    d1 = d1 + (d0 >> 16)
    d2 = d2 + (d1 >> 16)
    d3 = d3 + (d2 >> 16)
    return jnp.stack([d0 & 0xFFFF | d1 << 16, d2 & 0xFFFF | d3 << 16])
