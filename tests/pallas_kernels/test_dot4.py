import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pallas_kernels import dot4, pack4


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_equals_int64(dtype):
    info = np.iinfo(dtype)
    rng = np.random.default_rng(0)
    a = rng.integers(info.min, info.max + 1, (1000, 4)).astype(dtype)
    b = rng.integers(-128, 128, (1000, 4)).astype(np.int8)
    corners = [(x, y) for x in (info.min, 0, 1, info.max) for y in (-128, -127, -1, 0, 1, 127)]
    a[: len(corners)], b[: len(corners)] = np.array(corners)[:, :1], np.array(corners)[:, 1:]
    acc = rng.integers(-(2**30), 2**30, 1000).astype(np.int32)

    def run(a, b, acc):
        packed = (lax.squeeze(pack4(v), [1]) for v in (a, b))
        return dot4(*packed, acc, signed=dtype == np.int8, interpret=True)

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
