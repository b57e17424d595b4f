"""What only an NVIDIA GPU can show: `pytest -m gpu`. Everything here is also checked without one, interpreted or
lowered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def on_a_gpu():
    if jax.default_backend() != "gpu":
        pytest.fail("-m gpu was chosen, but JAX has no GPU here")


@pytest.mark.parametrize("x_dtype", ["int8", "uint8"])
@pytest.mark.parametrize("out_dtype", ["int8", "uint8", "float32"])
@pytest.mark.parametrize("shape", [(1, 64, 64), (7, 13, 21), (16, 4096, 4096), (300, 129, 515)])
def test_matmul_equals_its_reference(x_dtype, out_dtype, shape):
    m, n, k = shape
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(*((-127, 128) if x_dtype == "int8" else (0, 256)), (m, k)).astype(x_dtype))
    w = jnp.asarray(rng.integers(-127, 128, (n, k)).astype(np.int8))
    multiplier = jnp.asarray(rng.uniform(0.5, 2, n).astype(np.float32) / np.float32(60 * np.sqrt(k)))
    bias = jnp.asarray(rng.normal(size=n).astype(np.float32))
    low, high = {"int8": (-127, 127), "uint8": (0, 255)}.get(out_dtype, (-np.inf, np.inf))
    bounds = jnp.full(n, low, jnp.float32), jnp.full(n, high, jnp.float32)
    residual = jnp.asarray(rng.integers(-127, 128, (m, n)).astype(np.int8))
    args = (x, w, multiplier, bias, *bounds, residual, jnp.float32(0.37))
    ours = jax.jit(lambda *a: pallas_kernels.matmul(*a, out_dtype=out_dtype))(*args)
    with jax.default_device(jax.devices("cpu")[0]):
        theirs = pallas_kernels.matmul_reference(*jax.device_put(args, jax.devices("cpu")[0]), out_dtype=out_dtype)
    np.testing.assert_array_equal(ours, theirs)


def test_a_network_gives_the_bits_of_the_oracle(small_cnn):
    qmodel, cpu = small_cnn.qmodel, jax.devices("cpu")[0]
    with jax.default_device(cpu):
        oracle = qmodel.plan.evaluate(jax.device_put(qmodel.params, cpu), (jax.device_put(small_cnn.x, cpu),))
    np.testing.assert_array_equal(qmodel(small_cnn.x), oracle)
