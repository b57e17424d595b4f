"""Tests that need eight devices: ../test_eight_devices.py runs them in a process that has as many."""

import functools

import cheap
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from networks import images

import jaxq
from jaxq.backends import choose
from pallas_kernels import (
    Dot4Config,
    Epilogue,
    MmaConfig,
    Tcgen05Config,
    WgmmaConfig,
    matmul,
    matmul_reference,
    on_cuda,
    quantize,
    quantize_reference,
)
from pallas_kernels.conv import Window, conv, conv_reference
from pallas_kernels.matmul import tma

BATCH, ALL = PartitionSpec("batch"), PartitionSpec()
HAS_MOSAIC = tma.supports(*[jax.ShapeDtypeStruct((8, 32), jnp.int8)] * 2, out_dtype=jnp.int32) is None
MOSAIC = [WgmmaConfig(64, 64, 2), Tcgen05Config(64, 2)] if HAS_MOSAIC else []


def h100s():
    """Eight of them, which this machine does not have."""
    h100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    return AbstractMesh((8,), ("batch",), axis_types=(AxisType.Auto,), abstract_device=h100)


def on_gpus(qmodel, x):
    """What the model with its batch sharded lowers to for them."""

    def function(params, x):
        return qmodel.plan.evaluate(params, (x,), choose)

    sharded = jax.jit(jax.shard_map(function, mesh=h100s(), in_specs=(ALL, BATCH), out_specs=BATCH))
    return sharded.trace(qmodel.params, x).lower(lowering_platforms=("cuda",)).as_text()


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
    split, expected = jax.device_put(x, NamedSharding(mesh, BATCH)), qmodel(x)
    for run in (jax.shard_map(qmodel, mesh=mesh, in_specs=BATCH, out_specs=BATCH), qmodel):
        found = jax.jit(run)(split)
        assert len(found.sharding.device_set) == 8
        np.testing.assert_array_equal(found, expected)


def test_where_the_parameters_lie(qmodel):
    """The call runs there; those of several devices stay as they are."""
    x = images(16, 6, 6, 3)
    expected = qmodel(x)
    moved = jax.device_put(qmodel, jax.devices()[3])(x)
    assert moved.sharding.device_set == {jax.devices()[3]}
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    spread = jax.device_put(qmodel, NamedSharding(mesh, ALL))(x)
    assert len(spread.sharding.device_set) == 8
    for found in (moved, spread):
        np.testing.assert_array_equal(found, expected)


def test_shards_run_kernels_on_gpus(qmodel):
    text = on_gpus(qmodel, jax.ShapeDtypeStruct((16, 6, 6, 3), np.float32))
    assert "xla.gpu.triton" in text
    assert "stablehlo.convolution" not in text and "stablehlo.dot_general" not in text


def test_shards_of_large_layers_run_kernels_on_gpus():
    rng = np.random.default_rng(0)
    params = [rng.normal(0, 0.1, shape).astype(np.float32) for shape in ((64, 1024), (1024, 1024))]
    qmodel = jaxq.quantize(lambda params, x: jax.nn.relu(x @ params[0]) @ params[1], params, [images(16, 64)])
    text = on_gpus(qmodel, jax.ShapeDtypeStruct((8192, 64), np.float32))
    assert ("mosaic_gpu" if HAS_MOSAIC else "xla.gpu.triton") in text
    assert "stablehlo.dot_general" not in text


def assert_channels_are_sharded(kernel, reference, *operands, last):
    """x whole on every device, the weights and the epilogue by output channels; `last`: the output's axis of these."""
    function, channels = on_cuda(kernel, reference), PartitionSpec(*[None] * last, "batch")
    specs = {"in_specs": (ALL, *[BATCH] * (len(operands) - 1)), "out_specs": channels}
    expected = cheap.jit(reference)(*operands)
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    np.testing.assert_array_equal(jax.jit(jax.shard_map(function, mesh=mesh, **specs))(*operands), expected)


def vectors(channels):
    rng = np.random.default_rng(0)
    return Epilogue(*np.float32(rng.normal(0, 1e-3, (3, channels))), np.full(channels, 9, np.float32))


def integers(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).integers(-127, 128, shape), jnp.int8)


@pytest.mark.parametrize("config", [Dot4Config(8, 8, 64), MmaConfig(64, 64, 64), *MOSAIC])
def test_channels_of_products_are_sharded(config):
    kernel = functools.partial(matmul, out_dtype=jnp.int8, config=config)
    reference = functools.partial(matmul_reference, out_dtype=jnp.int8)
    assert_channels_are_sharded(kernel, reference, integers(64, 64), integers(256, 64), vectors(256), last=1)


def test_channels_of_convolutions_are_sharded():
    window = Window((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1))
    ours, reference = (functools.partial(f, window=window, out_dtype=jnp.int8) for f in (conv, conv_reference))
    operands = integers(1, 4, 4, 32), integers(64, 3, 3, 32), vectors(64)
    assert_channels_are_sharded(ours, reference, *operands, last=3)


def test_channels_of_borders_are_sharded():
    ours, reference = (functools.partial(f, dtype="int8") for f in (quantize, quantize_reference))
    assert_channels_are_sharded(ours, reference, jnp.ones((4, 1)), jnp.arange(8.0), last=1)
