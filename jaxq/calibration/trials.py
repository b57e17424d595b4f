"""What "auto" measures with: a value beside what candidate scales make of it, and how far the results lie apart."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxq import numerics


def trials(x: jax.Array, scales: jax.Array, dtype: str) -> jax.Array:
    """float32 (1 + n, *x.shape): x itself, then x quantized to `dtype` ("int8" or "uint8") by each of n float32 scales
    and dequantized."""

    def quantized(scale: jax.Array) -> jax.Array:
        q = numerics.quantize(x, 1 / scale, dtype=dtype)
        return numerics.dequantize(q, scale, dtype=np.dtype(np.float32))

    return jnp.concatenate([x.astype(jnp.float32)[None], jax.vmap(quantized)(scales)])


def trial_errors(y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of float32 results (1 + n, ...), the first of them exact: that one, and float32 (1 + n,), its norm and then of
    each other one the squared error over the squared norm. Not finite where that is not."""
    unit = jnp.maximum(jnp.max(jnp.abs(y[0]), initial=0), jnp.float32(1e-30))  # squares stay within float32
    power = jnp.sum(jnp.square(y[0] / unit))
    squares = jnp.sum(jnp.square((y[1:] - y[0]) / unit).reshape(y.shape[0] - 1, -1), axis=1)
    relative = jnp.where(squares == 0, jnp.float32(0), squares / power)
    return y[0], jnp.concatenate([(unit * jnp.sqrt(power))[None], relative])
