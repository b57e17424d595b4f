"""Interpreted kernels: compiled cheaply, as what is compiled for one draw runs once, and drawn by the thousand.

XLA takes most of a second to optimize what interprets a kernel, and a few milliseconds to run it. Unoptimized it
computes the same: integers are exact, and each operation on floats is rounded by itself.

For the slow tests, XLA_FLAGS=--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters (as far as jax 0.11) takes
a third of what is left. Other tests need the emitters that users get: no process of the whole suite may have it.
"""

import functools

import jax
from hypothesis import given, seed, settings

CHUNKS = range(20)  # of the thousand draws: an interrupted run says how far it came
_DRAWS = 50

jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
)


def check_draws(chunk, check, **strategies):
    """Calls check(**drawn) for one of `CHUNKS`."""
    options = settings(max_examples=_DRAWS, deadline=None, database=None)
    seed(chunk)(options(given(**strategies)(check)))()
    jax.clear_caches()
