"""Interpreted kernels, drawn by the thousand.

XLA takes most of a second to optimize what interprets a kernel, and a few milliseconds to run it: `cheap.jit`.
With the newest JAX, XLA_FLAGS=--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters (as far as 0.11) halves
what is left. Other tests need the emitters that users get: no process of the whole suite may have it.
"""

import jax
from hypothesis import given, seed, settings

CHUNKS = range(20)  # of the thousand draws: an interrupted run says how far it came
_DRAWS = 50


def check_draws(chunk, check, **strategies):
    """Calls check(**drawn) for one of `CHUNKS`."""
    options = settings(max_examples=_DRAWS, deadline=None, database=None)
    seed(chunk)(options(given(**strategies)(check)))()
    jax.clear_caches()
