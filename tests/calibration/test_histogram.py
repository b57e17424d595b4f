"""The observer's histogram is exact: any order, chunking and merging of the same samples gives the same bits."""

import functools
import math

import cheap
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxq.calibration.histogram import NUM_BINS, Histogram, empty, from_samples, merge, observe, psum

TINY = float(np.finfo(np.float32).tiny)
HUGE = float(np.finfo(np.float32).max)

# One compiled shape for all examples: arrays are padded with zeros, which stand in a slot of their own.
SIZE = 64
observe_jit = jax.jit(observe)
merge_jit = jax.jit(merge)
from_samples_jit = cheap.jit(from_samples)
psum_jit = cheap.jit(jax.vmap(lambda x: psum(from_samples(x), "devices"), axis_name="devices"))

floats = st.floats(width=32) | st.floats(-4, 4, width=32) | st.sampled_from([0.0, -0.0, 1.0, 2.0**-20, TINY, HUGE])
samples = st.lists(floats, max_size=3 * SIZE)


def of(values, dtype=np.float32):
    """The histogram of `values`, observed in chunks of SIZE."""
    x = np.asarray(values, dtype).reshape(-1)
    padding = -len(x) % SIZE
    h = empty()
    for chunk in np.pad(x, (0, padding)).reshape(-1, SIZE):
        h = observe_jit(h, jnp.asarray(chunk))
    if not h.is_finite:
        return h
    counts = jnp.asarray(h.counts).at[0, NUM_BINS].add(-jnp.uint32(padding))
    return Histogram(counts=counts, amax=h.amax)


def equal(a, b):
    return np.array_equal(a.counts, b.counts) and a.amax.tobytes() == b.amax.tobytes()


def check_against_numpy(h, values):
    """Counts by np.histogram in float64, whose power-of-two edges are exact. NaN and Inf void all but their count."""
    x = np.abs(np.asarray(values).astype(np.float64)).reshape(-1)
    host = h.to_numpy()
    assert host.nonfinite == np.count_nonzero(~np.isfinite(x))
    assert bool(h.is_finite) == (host.nonfinite == 0)
    if host.nonfinite:
        x = x[:0]
    nonzero = x[x >= TINY]
    assert host.amax == nonzero.max(initial=0)
    assert host.zeros == len(x) - len(nonzero)
    assert host.counts.sum() == len(nonzero)
    if len(nonzero):
        stop = 2.0 ** int(h.exponent)
        assert stop / 2 <= host.amax < stop
        assert host.bin_width == stop / NUM_BINS
        np.testing.assert_array_equal(host.counts, np.histogram(nonzero, NUM_BINS, (0, stop))[0])


@settings(max_examples=30, deadline=None)
@given(samples)
def test_observe_agrees_with_numpy(values):
    check_against_numpy(of(values), np.float32(values))


@settings(max_examples=30, deadline=None)
@given(samples, st.randoms(use_true_random=False), st.integers(0, 3 * SIZE))
def test_order_and_chunking_do_not_matter(values, random, cut):
    shuffled = list(values)
    random.shuffle(shuffled)
    assert equal(of(values), of(shuffled))
    assert equal(of(values), merge_jit(of(shuffled[:cut]), of(shuffled[cut:])))


@settings(max_examples=30, deadline=None)
@given(samples, samples, samples)
def test_merge_is_associative_and_commutative_with_identity(a, b, c):
    a, b, c = of(a), of(b), of(c)
    assert equal(merge_jit(a, b), merge_jit(b, a))
    assert equal(merge_jit(merge_jit(a, b), c), merge_jit(a, merge_jit(b, c)))
    assert equal(merge_jit(a, empty()), a)


@pytest.mark.parametrize("steps", [1, 3, 10, 11, 12, 240])
def test_range_doubles(steps):
    small = np.random.default_rng(0).uniform(2.0**-120, 2.0**-119, SIZE).astype(np.float32)
    large = np.float32([2.0 ** (-120 + steps)])
    h = merge_jit(of(small), of(large))
    assert int(h.exponent) == -119 + steps
    check_against_numpy(h, np.concatenate([small, large]))
    assert equal(h, merge_jit(of(large), of(small)))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [0, 1, -3, 0.1, 1e-7, TINY, TINY / 2, 65504, HUGE, math.inf, math.nan])
def test_constants(dtype, value):
    with np.errstate(over="ignore"):
        x = np.full(SIZE, value, np.float32).astype(dtype)
    check_against_numpy(of(x, dtype), x)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_value_of_a_16_bit_type(dtype):
    x = np.arange(2**16).astype(np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        finite = x[np.isfinite(x.astype(np.float32))]
        check_against_numpy(from_samples_jit(finite), finite.astype(np.float32))
        check_against_numpy(observe_jit(empty(), jnp.asarray(x)), x.astype(np.float32))


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, 5000])
def test_sizes_around_the_block_of_the_cpu(size):
    x = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    check_against_numpy(from_samples_jit(x), x)


def test_exponent_at_powers_of_two():
    for e in range(-125, 128):
        for x, expected in ((2.0**e, e + 1), (math.nextafter(2.0**e, 0), e + 1), (2.0**e * (1 - 2.0**-24), e)):
            assert int(of([x]).exponent) == (expected if np.float32(x) >= TINY else -126)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3, 5, 7)])
def test_shapes(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    check_against_numpy(from_samples_jit(x), x)


def test_subnormals_are_zeros():
    host = of([TINY / 2, -1e-45, 0.0, TINY]).to_numpy()
    assert (host.zeros, host.counts.sum(), host.amax) == (3, 1, TINY)


@pytest.mark.parametrize("where", [0, 700, 1500])
def test_nonfinite_samples_are_counted_wherever_they_stand(where):
    """The maximum may forget what it met before a NaN: the range is wrong then, the count must not be."""
    x = 2.0 ** np.random.default_rng(0).uniform(-30, 30, 1500)
    x = np.insert(x, where, [np.nan, np.inf, -np.inf, -np.nan]).astype(np.float32)
    assert from_samples_jit(x).nonfinite.tolist() == [4, 0]
    check_against_numpy(observe_jit(of([1, 2, 3]), jnp.asarray(x)), np.append(x, np.float32([1, 2, 3])))


def with_count(count, slot, amax):
    counts = np.zeros((2, NUM_BINS + 2), np.uint32)
    counts[:, slot] = count & 0xFFFFFFFF, count >> 32
    return Histogram(counts=jnp.asarray(counts), amax=jnp.float32(amax))


@pytest.mark.parametrize("counts", [(2**32 - 1, 1), (2**32 - 1, 2**32 - 1), (2**16 - 1, 2**48 + 1), (10**12, 10**15)])
def test_counts_carry_between_limbs(counts):
    a, b = counts
    for slot in (NUM_BINS - 1, NUM_BINS, NUM_BINS + 1):
        h = merge_jit(with_count(a, slot, 1.9999), with_count(b, slot, 1.9999)).to_numpy()
        assert [*h.counts, h.zeros, h.nonfinite][slot] == a + b
    doubled = merge_jit(with_count(a, NUM_BINS - 1, 1.9999), with_count(b, NUM_BINS - 2, 3.9999)).to_numpy()
    assert (doubled.counts[NUM_BINS // 2 - 1], doubled.counts[NUM_BINS - 2]) == (a, b)


def test_doubling_carries_between_limbs():
    counts = jnp.full((2, NUM_BINS + 2), 2**32 - 1, jnp.uint32).at[1].set(0).at[:, NUM_BINS + 1].set(0)
    full = Histogram(counts=counts, amax=jnp.float32(1.5))
    h = merge_jit(full, of([2.0**30])).to_numpy()
    assert h.counts[0] == NUM_BINS * (2**32 - 1)
    assert h.counts.sum() == NUM_BINS * (2**32 - 1) + 1
    assert h.zeros == 2**32 - 1


def test_observe_counts_on_from_a_full_limb():
    h = of(np.full(SIZE, 1.5)).to_numpy()
    bin_ = int(np.flatnonzero(h.counts)[0])
    assert (
        observe_jit(with_count(2**32 - 1, bin_, 1.5), jnp.full(SIZE, 1.5)).to_numpy().counts[bin_] == 2**32 - 1 + SIZE
    )


def test_vmap_merges_many_tensors_at_once():
    rng = np.random.default_rng(0)
    a, b = (np.float32(rng.standard_normal((5, SIZE)) * 2.0 ** rng.integers(-8, 8, (5, 1))) for _ in "ab")
    merged = cheap.jit(jax.vmap(lambda a, b: merge(from_samples(a), from_samples(b))))(a, b)
    for i in range(5):
        check_against_numpy(jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], merged), np.concatenate([a[i], b[i]]))


@settings(max_examples=30)
@given(st.lists(st.lists(floats, max_size=SIZE), min_size=4, max_size=4))
def test_psum_is_the_merge_of_all(parts):
    """Along a mapped axis of one device; tests/calibration/test_distributed.py has eight."""
    padded = np.stack([np.pad(np.float32(part), (0, SIZE - len(part))) for part in parts])
    summed = jax.tree.map(np.asarray, psum_jit(padded))
    expected = functools.reduce(observe_jit, padded, empty())
    for i in range(4):
        assert equal(jax.tree.map(lambda leaf, i=i: leaf[i], summed), expected)


def test_psum_carries_between_limbs():
    counts = [2**32 - 1, 1, 2**48 - 1, 10**12]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(with_count(n, NUM_BINS - 1, 1.9999) for n in counts))
    summed = cheap.jit(jax.vmap(lambda h: psum(h, "devices"), axis_name="devices"))(stacked)
    assert jax.tree.map(lambda leaf: np.asarray(leaf)[0], summed).to_numpy().counts[NUM_BINS - 1] == sum(counts)
