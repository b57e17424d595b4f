"""What only an NVIDIA GPU can show: `pytest -m gpu`. Everything here is also checked without one, interpreted or
lowered."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from jax import export
from jax.sharding import Mesh, PartitionSpec

import jaxq

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def on_a_gpu():
    if jax.default_backend() != "gpu":
        pytest.fail("-m gpu was chosen, but JAX has no GPU here")


def oracle(qmodel, x):
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        return qmodel.plan.evaluate(jax.device_put(qmodel.params, cpu), (jax.device_put(x, cpu),))


def test_a_network_gives_the_bits_of_the_oracle(small_cnn):
    np.testing.assert_array_equal(small_cnn.qmodel(small_cnn.x), oracle(small_cnn.qmodel, small_cnn.x))


def test_depthwise_convolutions():
    model, x = networks.MobileCNN(), networks.images(3, 13, 11, 3)
    qmodel = jaxq.quantize(model, networks.variables(model, x), [x])
    np.testing.assert_array_equal(qmodel(x), oracle(qmodel, x))


def test_transforms(small_cnn):
    qmodel, x = small_cnn.qmodel, jnp.asarray(small_cnn.x)
    expected = qmodel(x)
    stacked = x.reshape(2, -1, *x.shape[1:])
    np.testing.assert_array_equal(jax.jit(jax.vmap(qmodel))(stacked).reshape(expected.shape), expected)
    batch = PartitionSpec("batch")
    mesh = Mesh(np.array(jax.devices()[:1]), ("batch",))
    sharded = jax.shard_map(qmodel, mesh=mesh, in_specs=batch, out_specs=batch)
    np.testing.assert_array_equal(jax.jit(sharded)(x), expected)


@pytest.mark.parametrize("platforms", [("cuda",), ("cpu", "cuda")])
def test_export(small_cnn, platforms):
    qmodel, x = small_cnn.qmodel, small_cnn.x
    names = ("__gpu$xla.gpu.triton", "mosaic_gpu_v2", "jaxq_region")
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in names]
    exported = export.export(jax.jit(qmodel), platforms=platforms, disabled_checks=checks)(x)
    np.testing.assert_array_equal(exported.call(x), qmodel(x))


def test_tactics_of_a_tuned_network(small_cnn, monkeypatch, tmp_path):
    """Kernels with other configs than the default, and XLA, were timed, and whatever was chosen gives the same bits."""
    monkeypatch.setenv("JAXQ_CACHE_DIR", str(tmp_path))
    model, variables, x = small_cnn.model, small_cnn.variables, small_cnn.x
    qmodel = jaxq.quantize(model, variables, [x], tune="fast")
    timings = qmodel.summary().tuning.timings
    assert sum(" by pallas " in what for what in timings) > sum(what.endswith(" by xla") for what in timings) > 0
    np.testing.assert_array_equal(qmodel(x), oracle(qmodel, x))
