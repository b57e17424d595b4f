import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pallas_kernels import dot4, pack4


@pytest.mark.parametrize("b_dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("a_dtype", [np.int8, np.uint8])
def test_equals_int64(a_dtype, b_dtype):
    rng = np.random.default_rng(0)
    bounds = [(np.iinfo(dtype).min, np.iinfo(dtype).max) for dtype in (a_dtype, b_dtype)]
    a, b = (
        rng.integers(lo, hi + 1, (1000, 4)).astype(dtype)
        for (lo, hi), dtype in zip(bounds, (a_dtype, b_dtype), strict=True)
    )
    corners = [(x, y) for x in (*bounds[0], 0, 1, 127) for y in (*bounds[1], 0, 1, 127)]
    a[: len(corners)], b[: len(corners)] = np.array(corners)[:, :1], np.array(corners)[:, 1:]
    acc = rng.integers(-(2**30), 2**30, 1000).astype(np.int32)

    def run(a, b, acc):
        packed = (lax.squeeze(pack4(v), [1]) for v in (a, b))
        return dot4(*packed, acc, signed=a_dtype == np.int8, b_signed=b_dtype == np.int8, interpret=True)

    expected = acc + np.sum(a.astype(np.int64) * b.astype(np.int64), axis=1)
    np.testing.assert_array_equal(run(a, b, acc), expected)
    np.testing.assert_array_equal(jax.jit(run)(a, b, acc), expected)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("k", [0, 1, 3, 4, 5, 8])
def test_pack4_pads_with_zeros(dtype, k):
    x = np.random.default_rng(k).integers(1, 100, (3, k)).astype(dtype)
    packed = pack4(jnp.asarray(x))
    assert packed.dtype == jnp.int32
    assert packed.shape == (3, -(-k // 4))
    expected = np.pad(x, [(0, 0), (0, -k % 4)])
    np.testing.assert_array_equal(np.asarray(packed).view(dtype).reshape(expected.shape), expected)
