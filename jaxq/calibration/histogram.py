"""The observer's state: an exact, mergeable histogram of the magnitudes of one tensor.

`observe` adds an array, `merge` adds two histograms. Both are integer arithmetic on the bits of the samples, so that
histograms of the same samples are equal bit for bit, however the samples were ordered, split and merged.

In a graph of many tensors, take `unchecked` of each and merge them outside, as numpy arrays and all at once: compiling
costs more than running.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

NUM_BINS = 2048
_LOG2_BINS = 11
_ZERO, _NONFINITE = NUM_BINS, NUM_BINS + 1  # the two slots after the bins
NUM_SLOTS = NUM_BINS + 2  # of the counts


@partial(jax.tree_util.register_dataclass, data_fields=["counts", "amax"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts of |x| in 2048 equal bins over [0, 2^e), 2^e the least power of two strictly above `amax`.

    `counts` has 2050 slots: the bins, then one for zeros, then one for NaN and Inf. Each count is two uint32 limbs on
    the leading axis, counts[0] + 2^32 counts[1] (x64 is off in JAX).

    Invariants:
      * Every sample is counted once. Bin j holds those with j <= |x| 2^(11 - e) < j + 1. Zeros are in no bin, and a
        subnormal is a zero, as XLA's arithmetic takes it. NaN or Inf make all but their own count void: zero.
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

    @property
    def is_finite(self) -> jax.Array:
        """Whether no sample was NaN or Inf."""
        return (self.nonfinite == 0).all(axis=-1)

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

    def as_zeros(self, magnitude: float) -> "HostHistogram":
        """With the samples in the bin of this magnitude, not above amax, counted as zeros."""
        counts, at = self.counts.copy(), int(magnitude / self.bin_width)
        counts[at] = 0
        return dataclasses.replace(self, counts=counts, zeros=self.zeros + int(self.counts[at]))


def empty() -> Histogram:
    """The histogram of no samples, of numpy arrays."""
    counts: Any = np.zeros((2, NUM_SLOTS), np.uint32)
    amax: Any = np.zeros((), np.float32)
    return Histogram(counts, amax)


def observe(histogram: Histogram, x: jax.Array) -> Histogram:
    """`histogram` with the samples of `x` added."""
    return merge(histogram, unchecked(x))


def from_samples(x: jax.Array) -> Histogram:
    """The histogram of a float32, bfloat16 or float16 array of any shape and fewer than 2^31 elements."""
    return merge(empty(), unchecked(x))


@jax.jit  # so that arrays of one shape are traced once
def unchecked(x: jax.Array) -> Histogram:
    """`from_samples`, but where the array holds NaN or Inf, all but their count is undefined until `merge` voids it."""
    if x.size == 0:
        return empty()
    x = x.astype(jnp.float32).reshape(-1)
    largest = jnp.max(jnp.abs(x))
    amax = jnp.where(largest < jnp.finfo(jnp.float32).tiny, jnp.float32(0), largest)
    zeros = jnp.zeros(2 * NUM_SLOTS, jnp.uint32)  # both limbs, of which the low one is counted in
    count = partial(lax.platform_dependent, cpu=_count_one_by_one, default=_count)
    return Histogram(counts=count(zeros, x, _exponent(amax)).reshape(2, NUM_SLOTS), amax=amax)


def _slots(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """|x| = m 2^(biased - 150) with m of 24 bits: its bin floor(|x| 2^(11 - e)) is a shift of m, free of rounding.

    It is in bounds even where e is too small, which a NaN may make it: it may hide what the maximum met before.
    """
    bits = _bits(x) & 0x7FFFFFFF
    m, biased = bits & 0x007FFFFF | 0x00800000, bits >> 23
    index = jnp.minimum(m >> jnp.minimum(exponent - _LOG2_BINS + 150 - biased, 31), NUM_BINS - 1)
    return jnp.where(bits < 0x7F800000, jnp.where(bits < 0x00800000, _ZERO, index), _NONFINITE)


def _count(counts: jax.Array, x: jax.Array, exponent: jax.Array) -> jax.Array:
    return counts.at[_slots(x, exponent)].add(jnp.uint32(1), mode="promise_in_bounds")


def _count_one_by_one(counts: jax.Array, x: jax.Array, exponent: jax.Array) -> jax.Array:
    """`_count` for XLA's CPU, which compiles this loop in half the time and runs it faster than the scatter."""

    def body(i: jax.Array, counts: jax.Array) -> jax.Array:
        slot = _slots(lax.dynamic_index_in_dim(x, i, keepdims=False), exponent)
        more = lax.dynamic_index_in_dim(counts, slot, keepdims=False) + jnp.uint32(1)
        return lax.dynamic_update_index_in_dim(counts, more, slot, axis=0)

    return lax.fori_loop(0, x.size, body, counts)


def stacked(histograms: Sequence[Histogram]) -> Histogram:
    """Any number of histograms, none at all too, as one with a leading axis, of numpy arrays."""
    return jax.tree.map(lambda *leaves: np.stack(leaves)[1:], empty(), *histograms)


def merge(a: Histogram, b: Histogram) -> Histogram:
    """The histogram of the samples of both: associative, commutative, `empty()` its identity.

    Of numpy arrays it is one of numpy arrays, and nothing is compiled. Leading axes are those of many histograms.
    """
    xp = _namespace(a.amax, b.amax)
    amax = xp.maximum(a.amax, b.amax)
    return _void_unless_finite(Histogram(_carry(_widened(a, amax) + _widened(b, amax)), amax))


def psum(histogram: Histogram, axis_name: str) -> Histogram:
    """The histogram of the samples of all devices along a mapped axis, at most 2^16: what `merge` makes of all."""
    amax = lax.pmax(histogram.amax, axis_name)
    of_that_range = _digits(_carry(_widened(histogram, amax)))
    return _void_unless_finite(Histogram(_carry(lax.psum(of_that_range, axis_name)), amax))


def _void_unless_finite(histogram: Histogram) -> Histogram:
    xp = _namespace(histogram.amax)
    is_finite = histogram.is_finite
    kept = is_finite[..., None, None] | (xp.arange(NUM_SLOTS) == _NONFINITE)
    counts = xp.where(kept, histogram.counts, xp.uint32(0))
    return Histogram(counts, xp.where(is_finite, histogram.amax, xp.float32(0)))


def _namespace(*arrays: jax.Array) -> Any:
    """numpy for arrays of numpy alone, else jax.numpy."""
    return np if all(isinstance(array, np.ndarray | np.generic) for array in arrays) else jnp


def _bits(x: jax.Array) -> jax.Array:
    return x.view(np.int32)


def _exponent(amax: jax.Array) -> jax.Array:
    """The least e with amax < 2^e, from the exponent field of a normal float; -126 for zero."""
    return (_bits(amax) >> 23) - 126


# Counts are added in base 2^16, one uint32 a digit: sums of up to 2^16 terms need a carry only at their end.


def _digits(limbs: jax.Array) -> jax.Array:
    """(..., 2, n) limbs as (..., 4, n) digits, the lowest first."""
    xp = _namespace(limbs)
    low, high = limbs[..., 0, :], limbs[..., 1, :]
    return xp.stack([low & 0xFFFF, low >> 16, high & 0xFFFF, high >> 16], axis=-2)


def _widened(histogram: Histogram, amax: jax.Array) -> jax.Array:
    """The digits of the counts over the range of `amax`, not carried: each doubling of the range merges pairs of bins.
    A doubling, two, four and eight of them, each or not."""
    xp = _namespace(amax)
    doublings = xp.minimum(_exponent(amax) - histogram.exponent, _LOG2_BINS)[..., None, None]
    digits = _digits(histogram.counts)
    bins, others = digits[..., :NUM_BINS], digits[..., NUM_BINS:]
    for step in (1, 2, 4, 8):
        sums = bins.reshape(*bins.shape[:-1], NUM_BINS >> step, 1 << step).sum(axis=-1, dtype=np.uint32)
        merged = xp.concatenate([sums, xp.zeros_like(bins[..., NUM_BINS >> step :])], axis=-1)
        bins = xp.where(doublings & step, merged, bins)
    return xp.concatenate([bins, others], axis=-1)


def _carry(digits: jax.Array) -> jax.Array:
    """(..., 4, n) sums of digits as (..., 2, n) limbs."""
    xp = _namespace(digits)
    d0, d1, d2, d3 = (digits[..., i, :] for i in range(4))
    d1 = d1 + (d0 >> 16)
    d2 = d2 + (d1 >> 16)
    d3 = d3 + (d2 >> 16)
    return xp.stack([d0 & 0xFFFF | d1 << 16, d2 & 0xFFFF | d3 << 16], axis=-2)
