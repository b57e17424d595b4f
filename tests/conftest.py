"""What holds for every test: strict dtype promotion, deterministic hypothesis on CI."""

import gc
import os
from collections.abc import Iterator
from types import SimpleNamespace

import hypothesis
import jax
import networks
import pytest

import jaxq

# No dtype of ours is ever the accident of a promotion: mixing, say, int32 with float32 raises TypePromotionError.
jax.config.update("jax_numpy_dtype_promotion", "strict")

# JAX keeps hundreds of thousands of objects, each of which every full collection of garbage visits.
gc.set_threshold(200_000, 20, 50)

# JAX compiles at the first example of each shape: no deadline holds.
hypothesis.settings.register_profile("default", deadline=None, max_examples=40)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=40, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="module", autouse=True)
def fresh_caches() -> Iterator[None]:
    """What a module compiled is not kept for the next: JAX's caches would grow to gigabytes, and each collection of
    garbage with them."""
    yield
    jax.clear_caches()


@pytest.fixture
def standard_promotion() -> Iterator[None]:
    """For tests of models that need JAX's own default: `flax.linen.avg_pool` divides a float by a numpy integer."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session")
def small_cnn() -> SimpleNamespace:
    """The network of most tests, quantized once: model, variables, an input x, the batches and qmodel."""
    model, x = networks.SmallCNN(), networks.images(8, 12, 12, 3)
    variables = networks.variables(model, x)
    batches = [x, networks.images(5, 12, 12, 3, seed=1)]
    qmodel = jaxq.quantize(model, variables, iter(batches))
    return SimpleNamespace(model=model, variables=variables, x=x, batches=batches, qmodel=qmodel)
