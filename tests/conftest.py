"""What holds for every test: strict dtype promotion, deterministic hypothesis on CI."""

import os
from collections.abc import Iterator

import hypothesis
import jax
import pytest

# No dtype of ours is ever the accident of a promotion: mixing, say, int32 with float32 raises TypePromotionError.
jax.config.update("jax_numpy_dtype_promotion", "strict")

# JAX compiles at the first example of each shape: no deadline holds.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture
def standard_promotion() -> Iterator[None]:
    """For tests of models that need JAX's own default: `flax.linen.avg_pool` divides a float by a numpy integer."""
    with jax.numpy_dtype_promotion("standard"):
        yield
