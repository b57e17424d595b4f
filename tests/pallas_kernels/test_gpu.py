"""Every kernel on an NVIDIA GPU, into poisoned memory: `pytest -m gpu`. (The checks of `pallas_kernels.bench`.)"""

import functools

import jax
import pytest

from pallas_kernels.bench.checks import checks, difference, on_cpu, poisoned

CHECKS = {check.name: check for check in checks()}


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS)
def test_kernel_equals_its_reference(name):
    if jax.default_backend() != "gpu":
        pytest.fail("-m gpu was chosen, but JAX has no GPU here")
    check = CHECKS[name]
    operands = check.operands()
    assert difference(poisoned(functools.partial(check.kernel)), operands, on_cpu(check.reference, operands)) is None
