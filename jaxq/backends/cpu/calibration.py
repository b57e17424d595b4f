"""The kernels of calibration as calls of the CPU library, each on all of XLA's threads."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxq import numerics
from jaxq.backends.cpu import library
from jaxq.calibration.histogram import NUM_SLOTS, Histogram


def count(x: jax.Array) -> Histogram:
    """`calibration.histogram.from_samples`."""
    results = (jax.ShapeDtypeStruct((2, NUM_SLOTS), jnp.uint32), jax.ShapeDtypeStruct((), jnp.float32))
    counts, amax = jax.ffi.ffi_call(library.HISTOGRAM, results)(x.astype(jnp.float32))
    return Histogram(counts=counts, amax=amax)


def trials(x: jax.Array, scales: jax.Array, dtype: str) -> jax.Array:
    """`calibration.trials.trials`."""
    result = jax.ShapeDtypeStruct((1 + scales.size, *x.shape), jnp.float32)
    lo, hi = map(np.float32, numerics.BOUNDS[dtype])
    return jax.ffi.ffi_call(library.TRIALS, result)(x.astype(jnp.float32), scales, lo=lo, hi=hi)


def trial_errors(y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`calibration.trials.trial_errors`."""
    results = (jax.ShapeDtypeStruct(y.shape[1:], jnp.float32), jax.ShapeDtypeStruct(y.shape[:1], jnp.float32))
    exact, errors = jax.ffi.ffi_call(library.TRIAL_ERRORS, results)(y)
    return exact, errors
