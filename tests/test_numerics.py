import cheap
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxq import numerics

FLOATS = st.floats(-1e6, 1e6, width=32)


def numpy_epilogue(acc, multiplier, bias, lo, hi, residual=None, residual_multiplier=None, *, dtype):
    """The definition, one IEEE operation at a time."""
    y = acc.astype(np.float32) * multiplier
    y = y + bias
    if residual is not None:
        y = y + residual.astype(np.float32) * residual_multiplier
    y = np.minimum(np.maximum(y, lo), hi)
    return np.rint(y).astype(dtype) if np.dtype(dtype).kind in "iu" else y.astype(dtype)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "float32"])
@pytest.mark.parametrize("with_residual", [False, True])
def test_epilogue_equals_numpy_under_jit(dtype, with_residual):
    """Four million elements: a fused multiply-add would change about a quarter of the floats among them."""
    rng = np.random.default_rng(0)
    acc = rng.integers(-(2**24), 2**24, (1 << 16, 64)).astype(np.int32)
    vectors = [rng.normal(size=64).astype(np.float32) for _ in range(2)]
    multiplier, bias = vectors[0] * 1e-5, vectors[1] * 10
    lo, hi = (np.full(64, b, np.float32) for b in numerics.BOUNDS.get(dtype, (-np.inf, np.inf)))
    extra = ()
    if with_residual:
        extra = (rng.integers(-127, 128, acc.shape).astype(np.int8), np.float32(0.137))
    run = jax.jit(lambda *args: numerics.epilogue(*args, dtype=dtype))
    expected = numpy_epilogue(acc, multiplier, bias, lo, hi, *extra, dtype=dtype)
    np.testing.assert_array_equal(run(acc, multiplier, bias, lo, hi, *extra), expected)


def test_the_oracle_of_the_tests_contracts_nothing():
    a, b, c = np.random.default_rng(0).normal(size=(3, 100_000)).astype(np.float32)
    np.testing.assert_array_equal(cheap.jit(lambda a, b, c: a * b + c)(a, b, c), a * b + c)


def test_round_half_to_even_and_saturate():
    x = jnp.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9, np.nan, np.inf, -np.inf], jnp.float32)
    q = numerics.quantize(x, jnp.float32(1), dtype="int8")
    assert q.tolist() == [0, 2, 2, 0, -2, 127, -127, 0, 127, -127]
    q = numerics.quantize(x, jnp.float32(1), dtype="uint8")
    assert q.tolist() == [0, 2, 2, 0, 0, 255, 0, 0, 255, 0]


@given(st.lists(FLOATS, min_size=1, max_size=20), st.floats(2**-10, 2**10, width=32))
def test_quantize_is_off_by_half_a_step_at_most(values, scale):
    x = np.zeros(20, np.float32)
    x[: len(values)] = values
    q = numerics.quantize(jnp.asarray(x), jnp.float32(1 / scale), dtype="int8")
    back = numerics.dequantize(q, jnp.float32(scale), dtype=np.dtype(np.float32))
    inside = np.abs(x) <= 127 * scale
    assert np.all(np.abs(back - x)[inside] <= scale * 0.5001)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**31), st.sampled_from([(8, 127), (4, 7)]))
def test_weights_use_the_whole_range_and_are_off_by_half_a_step(rows, channels, seed, bits_and_largest):
    w = np.random.default_rng(seed).normal(size=(rows, channels)).astype(np.float32)
    bits, largest = bits_and_largest
    q, scale = numerics.quantize_weight(w, bits=bits)
    assert q.dtype == np.int8
    assert np.all(np.max(np.abs(q), axis=0) == largest)
    assert np.all(np.abs(q * scale - w) <= scale * 0.5001)


def test_dead_channels_have_a_positive_scale():
    w = np.array([[0.0, 1e-30, 1.0]], np.float32)
    q, scale = numerics.quantize_weight(w)
    assert np.all(scale > 0)
    assert q.tolist() == [[0, 0, 127]]


def squared_error(w, q, scale):
    return np.sum(np.square(q * scale - w), axis=0)


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**31), st.booleans(), st.sampled_from([8, 4]))
def test_weights_clipped_by_mse_err_no_more_than_unclipped_ones(rows, channels, seed, per_channel, bits):
    w = np.random.default_rng(seed).standard_t(2, size=(rows, channels)).astype(np.float32)
    exact, clipped = (
        numerics.quantize_weight(w, method=m, per_channel=per_channel, bits=bits) for m in ("amax", "mse")
    )
    errors = squared_error(w, *clipped), squared_error(w, *exact)
    if not per_channel:
        errors = tuple(map(np.sum, errors))
    assert np.all(errors[0] <= errors[1] * (1 + 1e-5))
    assert np.all(clipped[1] <= exact[1])


def test_mse_clips_a_lone_outlier():
    w = np.append(np.random.default_rng(0).normal(size=100_000), 8.0)[:, None]
    _, amax = numerics.quantize_weight(w)
    q, scale = numerics.quantize_weight(w, method="mse")
    assert 0.3 * amax < scale < 0.9 * amax
    assert q[-1] == 127


def test_weights_of_one_scale_share_it():
    w = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32)
    q, scale = numerics.quantize_weight(w, per_channel=False)
    assert scale.shape == (5,)
    assert np.all(scale == np.float64(np.max(np.abs(w))) / 127)
    assert np.max(np.abs(q)) == 127


@given(
    st.integers(1, 6),
    st.integers(1, 150),
    st.sampled_from([16, 32, 48, 128]),
    st.sampled_from([4, 8]),
    st.sampled_from(["amax", "mse"]),
    st.integers(0, 2**31),
)
def test_weights_in_groups_have_a_scale_each(channels, depth, size, bits, method, seed):
    """The last group is what is left. Each is quantized as if it were all there is."""
    w = np.random.default_rng(seed).standard_t(2, size=(channels, depth)).astype(np.float32)
    levels, scale = numerics.quantize_groups(w, group_size=size, method=method, bits=bits)
    assert levels.dtype == np.int8 and scale.dtype == np.float32
    assert levels.shape == w.shape and scale.shape == (channels, -(-depth // size))
    for start in range(0, depth, size):
        part = slice(start, start + size)
        expected, alone = numerics.quantize_groups(w[:, part], group_size=size, method=method, bits=bits)
        np.testing.assert_array_equal(levels[:, part], expected)
        np.testing.assert_array_equal(scale[:, start // size], alone[:, 0])
        if bits == 8:
            by_channel, of_channel = numerics.quantize_weight(w[:, part].T, method=method)
            np.testing.assert_array_equal(expected, by_channel.T)
            np.testing.assert_allclose(alone[:, 0], of_channel, rtol=1e-7)


@pytest.mark.parametrize(("bits", "lowest", "highest"), [(8, -127, 127), (4, -8, 7)])
def test_weights_in_groups_are_off_by_half_a_step(bits, lowest, highest):
    """Of 4 bits the largest weight of a group is -8 steps, whatever its sign; what is as large on the other side is
    clipped to 7."""
    w = np.random.default_rng(0).normal(size=(9, 100)).astype(np.float32)
    levels, scale = numerics.quantize_groups(w, group_size=48, bits=bits)
    assert numerics.weight_levels(bits, in_groups=True) == (lowest, highest)
    assert np.all((levels >= lowest) & (levels <= highest))
    back = np.asarray(numerics.dequantize_groups(levels, scale, 48))
    for start, step in zip((0, 48, 96), scale.T, strict=True):
        part = slice(start, start + 48)
        beyond = np.maximum(w[:, part] / step[:, None] - highest, 0)
        assert np.all(np.abs(back - w)[:, part] <= np.maximum(0.5001, 1.0001 * beyond) * np.abs(step[:, None]))
        np.testing.assert_allclose(np.abs(step * lowest), np.max(np.abs(w[:, part]), axis=1), rtol=1e-6)
    assert np.array_equal(np.unique(np.sign(scale)), [1] if bits == 8 else [-1, 1])


@given(st.sampled_from([1, 3]), st.sampled_from([1, 2, 7, 8]), st.integers(0, 2**31))
def test_int4_is_packed_and_unpacked(channels, depth, seed):
    levels = np.random.default_rng(seed).integers(-8, 8, (channels, depth)).astype(np.int8)
    packed = numerics.pack_int4(levels)
    assert packed.dtype == np.uint8 and packed.shape == (channels, -(-depth // 2))
    np.testing.assert_array_equal(numerics.unpack_int4(packed, depth), levels)
    even, odd = numerics.int4_halves(packed)
    np.testing.assert_array_equal(even, levels[:, 0::2])
    np.testing.assert_array_equal(odd[:, : depth // 2], levels[:, 1::2])


def test_accumulators_hold_the_stated_number_of_products():
    for largest, stated in ((127, 133_144), (255, 66_311)):
        count = numerics.max_terms(largest * 127)
        assert count == stated
        assert count * largest * 127 < 2**31 <= (count + 1) * largest * 127


def numpy_rows(x, factor):
    x = x if factor is None else x * factor
    amax = np.nanmax(np.abs(x), axis=-1, keepdims=True, initial=0, where=~np.isnan(x))
    scale = np.clip(amax, np.float32(1e-20), np.finfo(np.float32).max) * np.float32(1 / 127)
    return scale, np.clip(np.rint(np.nan_to_num(x * (np.float32(1) / scale), nan=0)), -127, 127).astype(np.int8)


@pytest.mark.parametrize("with_factor", [False, True])
def test_rows_and_their_scales_equal_numpy_under_jit(with_factor):
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(4096, 70)) * 10.0 ** rng.integers(-15, 30, (4096, 1))).astype(np.float32)
    x[0], x[1, 3], x[2, 4], x[3] = 0, np.nan, np.inf, np.nan
    factor = rng.uniform(0.1, 10, 70).astype(np.float32) if with_factor else None
    scale = jax.jit(numerics.row_scale)(x, factor)
    with np.errstate(over="ignore"):
        expected, q = numpy_rows(x, factor)
    np.testing.assert_array_equal(scale, expected)
    np.testing.assert_array_equal(jax.jit(numerics.quantize_rows)(x, scale, factor), q)
    assert np.max(np.abs(q[5:]), axis=-1).min() == 127  # each row's largest magnitude is the last level


def test_the_scale_of_a_row_is_applied_after_the_multiplier():
    rng = np.random.default_rng(2)
    acc = rng.integers(-(2**24), 2**24, (1 << 12, 64)).astype(np.int32)
    multiplier, bias = (rng.normal(size=64).astype(np.float32) for _ in range(2))
    row_scale = (10.0 ** rng.uniform(-6, 6, (1 << 12, 1))).astype(np.float32)
    wide = np.full(64, np.inf, np.float32)
    run = jax.jit(lambda *args, **given: numerics.epilogue(*args, **given, dtype=np.float32))
    expected = (acc.astype(np.float32) * multiplier) * row_scale + bias
    np.testing.assert_array_equal(run(acc, multiplier, bias, -wide, wide, row_scale=row_scale), expected)


@cheap.jit
def fake_gradients(x, scale, zero_point):
    """(values, derivatives by x, derivatives by the scale) of each x (N,)."""

    def fake(x, scale):
        return numerics.fake_quantize(x, scale, zero_point, lowest=0, highest=255)

    y, by = jax.vmap(jax.value_and_grad(fake, (0, 1)), (0, None))(x, scale)
    return y, *by


@given(st.integers(0, 2**32 - 1), st.floats(0.03125, 0.5, width=32), st.integers(0, 255))
def test_the_gradients_of_fake_quantize_are_those_of_its_formula(seed, scale, zero_point):
    """Straight through within the levels; by the scale those of LSQ, also of a clipped value and with a zero point."""
    x = np.random.default_rng(seed).uniform(-300 * scale, 300 * scale, 100).astype(np.float32)
    v = x * (1 / np.float32(scale)) + np.float32(zero_point)
    q, inside = np.rint(np.clip(v, 0, 255)), (v > 0) & (v < 255)
    y, by_x, by_scale = fake_gradients(x, np.float32(scale), np.float32(zero_point))
    np.testing.assert_allclose(y, (q - zero_point) * np.float32(scale), rtol=1e-6)
    np.testing.assert_allclose(by_x, np.where(inside, 1, 0), rtol=1e-6)
    np.testing.assert_allclose(by_scale, np.where(inside, q - v, q - zero_point), atol=2e-4)
