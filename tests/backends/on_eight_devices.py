"""Tests that need eight devices: test_sharded.py runs them in a process that has as many."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, PartitionSpec
from networks import images

import jaxq
from jaxq.backends import choose

BATCH = PartitionSpec("batch")


@pytest.fixture(scope="module")
def qmodel():
    rng = np.random.default_rng(0)
    params = {"conv": rng.normal(0, 0.3, (3, 3, 3, 8)), "dot": rng.normal(0, 0.3, (8, 5))}

    def function(params, x):
        y = jax.lax.conv_general_dilated(x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.nn.relu(y).mean((1, 2)) @ params["dot"]

    params = {name: value.astype(np.float32) for name, value in params.items()}
    return jaxq.quantize(function, params, [images(4, 6, 6, 3)])


def test_shards_give_the_bits_of_the_whole(qmodel):
    x, mesh = images(16, 6, 6, 3), Mesh(np.array(jax.devices()), ("batch",))
    sharded = jax.jit(jax.shard_map(qmodel, mesh=mesh, in_specs=BATCH, out_specs=BATCH))
    np.testing.assert_array_equal(sharded(x), qmodel(x))


def test_shards_run_kernels_on_gpus(qmodel):
    """Lowered for eight H100s, which this machine does not have."""
    h100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    mesh = AbstractMesh((8,), ("batch",), axis_types=(AxisType.Auto,), abstract_device=h100)

    def function(params, x):
        return qmodel.plan.evaluate(params, (x,), choose)

    sharded = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(PartitionSpec(), BATCH), out_specs=BATCH))
    x = jax.ShapeDtypeStruct((16, 6, 6, 3), np.float32)
    text = sharded.trace(qmodel.params, x).lower(lowering_platforms=("cuda",)).as_text()
    assert "xla.gpu.triton" in text
    assert "stablehlo.convolution" not in text and "stablehlo.dot_general" not in text
