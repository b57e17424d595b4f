import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from pallas_kernels import Config, UnsupportedShapeError, candidates, matmul, matmul_reference, supports

RANGES = {"int8": (-127, 127), "uint8": (0, 255), "float32": (-1e30, 1e30), "bfloat16": (-1e30, 1e30)}
OUT_DTYPES = (jnp.int8, jnp.uint8, jnp.float32, jnp.bfloat16)


def draw(m, n, k, *, x_dtype=np.int8, residual_dtype=None, out_dtype=jnp.int8, seed=0):
    """Random arguments of matmul whose outputs fill the range of out_dtype and partly saturate."""
    rng = np.random.default_rng(seed)

    def integers(dtype, shape):
        lo, hi = RANGES[np.dtype(dtype).name]
        return rng.integers(lo, hi + 1, shape).astype(dtype)

    lo, hi = RANGES[np.dtype(out_dtype).name]
    args = [
        integers(x_dtype, (m, k)),
        integers(np.int8, (n, k)),
        (rng.uniform(0.2, 2, n) / (60 * np.sqrt(k + 1))).astype(np.float32),
        rng.normal(0, 30, n).astype(np.float32),
        np.where(rng.random(n) < 0.3, max(lo, 0), lo).astype(np.float32),  # some channels with ReLU
        np.full(n, hi, np.float32),
    ]
    if residual_dtype is not None:
        residual = rng.normal(0, 50, (m, n)) if residual_dtype == np.float32 else integers(residual_dtype, (m, n))
        args += [residual.astype(residual_dtype), np.float32(rng.uniform(0.1, 1))]
    return [jnp.asarray(a) for a in args]


def numpy_matmul(x, w, multiplier, bias, lo, hi, residual=None, residual_multiplier=None, *, out_dtype):
    """Independent of the library: int64, then float32 with a rounding after each operation."""
    acc = x.astype(np.int64) @ w.astype(np.int64).T
    y = acc.astype(np.float32) * multiplier + bias
    if residual is not None:
        y = y + residual.astype(np.float32) * residual_multiplier
    y = np.clip(y, lo, hi)
    return (y if jnp.issubdtype(out_dtype, jnp.floating) else np.rint(y)).astype(out_dtype)


def assert_same_bits(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(*(a.view(f"u{a.itemsize}") for a in (actual, expected)))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    m=st.integers(0, 20),
    n=st.integers(0, 40),
    k=st.integers(0, 300),
    x_dtype=st.sampled_from([np.int8, np.uint8]),
    residual_dtype=st.sampled_from([None, np.int8, np.uint8, np.float32]),
    out_dtype=st.sampled_from(OUT_DTYPES),
    small_tiles=st.booleans(),
    saturate=st.booleans(),
    data=st.data(),
)
def test_kernel_equals_reference(m, n, k, x_dtype, residual_dtype, out_dtype, small_tiles, saturate, data):
    args = draw(m, n, k, x_dtype=x_dtype, residual_dtype=residual_dtype, out_dtype=out_dtype)
    if saturate:
        args[:2] = np.full((m, k), 255 if x_dtype == np.uint8 else -127, x_dtype), np.full((n, k), -127, np.int8)
    configs = (Config(2, 4, 8, 1), Config(4, 16, 64, 1)) if small_tiles else candidates(m, n, k)
    config = data.draw(st.sampled_from(configs))

    @jax.jit
    def both(*args):
        kernel = matmul(*args, out_dtype=out_dtype, config=config, interpret=True)
        return kernel, matmul_reference(*args, out_dtype=out_dtype)

    assert_same_bits(*both(*args))


@pytest.mark.parametrize("out_dtype", OUT_DTYPES)
@pytest.mark.parametrize(("x_dtype", "residual_dtype"), [(np.int8, None), (np.uint8, np.int8), (np.int8, np.float32)])
def test_reference_equals_numpy(x_dtype, residual_dtype, out_dtype):
    # More than a million outputs: XLA's contraction to a fused multiply-add would change a few of them by one.
    args = draw(1100, 1000, 16, x_dtype=x_dtype, residual_dtype=residual_dtype, out_dtype=out_dtype)
    expected = numpy_matmul(*map(np.asarray, args), out_dtype=out_dtype)
    assert_same_bits(matmul_reference(*args, out_dtype=out_dtype), expected)
    assert_same_bits(jax.jit(lambda *a: matmul_reference(*a, out_dtype=out_dtype))(*args), expected)


def test_inputs_of_these_tests_reveal_a_fused_multiply_add():
    x, w, multiplier, bias, lo, hi = map(np.asarray, draw(1100, 1000, 16, out_dtype=jnp.float32))
    expected = numpy_matmul(x, w, multiplier, bias, lo, hi, out_dtype=np.float32)
    acc = x.astype(np.int64) @ w.astype(np.int64).T
    fused = np.clip((acc * multiplier.astype(np.float64) + bias).astype(np.float32), lo, hi)
    assert np.mean(fused != expected) > 0.01


@pytest.mark.parametrize(("x_dtype", "k"), [(np.int8, 133_144), (np.uint8, 66_311)])
def test_longest_sum_that_int32_holds(x_dtype, k):
    x = jnp.full((1, k), RANGES[np.dtype(x_dtype).name][1], x_dtype)
    w = jnp.full((2, k), 127, jnp.int8) * jnp.array([[1], [-1]], jnp.int8)
    one, zero, bound = jnp.ones(2, jnp.float32), jnp.zeros(2, jnp.float32), jnp.full(2, 3e38, jnp.float32)
    expected = (np.asarray(x, np.int64) @ np.asarray(w, np.int64).T).astype(np.float32)
    config = Config(1, 2, 16384, 4)
    actual = matmul(x, w, one, zero, -bound, bound, out_dtype=jnp.float32, config=config, interpret=True)
    assert_same_bits(actual, expected)
    longer = jax.ShapeDtypeStruct((1, k + 1), x_dtype), jax.ShapeDtypeStruct((2, k + 1), np.int8)
    assert f"beyond {k}" in supports(*longer)


@pytest.mark.parametrize("shape", [(0, 5, 8), (3, 0, 8), (3, 5, 0), (0, 0, 0)])
def test_zero_sizes(shape):
    args = draw(*shape, residual_dtype=np.int8)
    expected = numpy_matmul(*map(np.asarray, args), out_dtype=np.int8)
    assert_same_bits(matmul(*args, out_dtype=jnp.int8), expected)  # without a GPU: no kernel is launched


def test_nan_becomes_zero_in_integers_and_stays_in_floats():
    args = draw(3, 5, 8, residual_dtype=np.float32)
    args[6] = args[6].at[1, 2].set(jnp.nan)
    for out_dtype in OUT_DTYPES:
        for out in (matmul(*args, out_dtype=out_dtype, interpret=True), matmul_reference(*args, out_dtype=out_dtype)):
            assert jnp.isnan(out[1, 2]) if jnp.issubdtype(out_dtype, jnp.floating) else out[1, 2] == 0


@pytest.mark.parametrize("batched_weights", [False, True])
def test_vmap(batched_weights):
    batch = [draw(5, 9, 22, residual_dtype=np.int8, seed=seed) for seed in range(3)]
    axes = [0, *[0 if batched_weights else None] * 5, 0, None]
    args = [batch[0][i] if axis is None else jnp.stack([a[i] for a in batch]) for i, axis in enumerate(axes)]
    actual, expected = (
        jax.jit(jax.vmap(lambda *a, f=f, kwargs=kwargs: f(*a, out_dtype=jnp.int8, **kwargs), axes))(*args)
        for f, kwargs in ((matmul, {"interpret": True, "config": Config(2, 4, 8, 1)}), (matmul_reference, {}))
    )
    assert_same_bits(actual, expected)


def test_platform_dependent_takes_the_reference_on_a_cpu():
    args = draw(5, 9, 22)

    @jax.jit
    def dispatch(*args):
        return lax.platform_dependent(
            *args,
            cuda=lambda *a: matmul(*a, out_dtype=jnp.int8),
            default=lambda *a: matmul_reference(*a, out_dtype=jnp.int8),
        )

    assert_same_bits(dispatch(*args), matmul_reference(*args, out_dtype=jnp.int8))


@pytest.mark.parametrize(
    ("position", "value", "reason"),
    [
        (0, jnp.zeros((2, 3, 8), jnp.int8), "matrices"),
        (0, jnp.zeros((3, 7), jnp.int8), "differ in K"),
        (0, jnp.zeros((3, 8), jnp.int16), "x must be int8 or uint8, not int16"),
        (1, jnp.zeros((5, 8), jnp.uint8), "w must be int8, not uint8"),
        (2, jnp.zeros(4, jnp.float32), "multiplier, bias, lo and hi"),
        (3, jnp.zeros(5, jnp.bfloat16), "multiplier, bias, lo and hi"),
        (6, jnp.zeros((5, 3), jnp.int8), "residual must be"),
        (6, jnp.zeros((3, 5), jnp.bfloat16), "residual must be"),
        (6, None, "given together"),
        (7, jnp.ones(5, jnp.float32), "float32 scalar"),
    ],
)
@pytest.mark.parametrize("function", [matmul, matmul_reference])
def test_errors_say_why(function, position, value, reason):
    args = draw(3, 5, 8, residual_dtype=np.int8)
    args[position] = value
    with pytest.raises(UnsupportedShapeError, match=reason):
        function(*args, out_dtype=jnp.int8)


def test_supports():
    x, w, *_ = draw(3, 5, 8)
    assert supports(x, w, out_dtype=jnp.bfloat16) is None
    assert "output must be one of" in supports(x, w, out_dtype=jnp.int32)
