"""Quantization-aware training on eight devices: test_eight_devices.py runs this in a process that has as many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from networks import images

import jaxq

BATCH, ALL = PartitionSpec("batch"), PartitionSpec()


@pytest.fixture(scope="module")
def fake():
    params = {"a": images(6, 8), "b": images(8, 5, seed=1)}
    config = jaxq.QuantConfig(method="mse", weight_bits=4)
    return jaxq.fake_quantize(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, [images(16, 6)], config=config)


def test_the_gradients_of_the_parts_are_those_of_the_whole(fake):
    x, mesh = images(16, 6, seed=2), Mesh(np.array(jax.devices()), ("batch",))
    gradient = jax.grad(lambda variables, x: jnp.mean(fake(variables, x) ** 2))

    def of_a_part(variables, x):
        return jax.lax.pmean(gradient(jax.lax.pcast(variables, "batch", to="varying"), x), "batch")

    expected = jax.tree.leaves(jax.jit(gradient)(fake.variables, x))
    sharded = jax.jit(jax.shard_map(of_a_part, mesh=mesh, in_specs=(ALL, BATCH), out_specs=ALL))
    mapped = jax.pmap(lambda variables, x: jax.lax.pmean(gradient(variables, x), "batch"), "batch", in_axes=(None, 0))
    split = jax.device_put(x, NamedSharding(mesh, BATCH))
    for found in (
        sharded(fake.variables, x),
        jax.tree.map(lambda a: a[0], mapped(fake.variables, x.reshape(8, 2, 6))),
        jax.jit(gradient)(fake.variables, split),
    ):
        for a, b in zip(jax.tree.leaves(found), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
