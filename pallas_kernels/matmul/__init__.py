"""matmul: int8 matrix product with the epilogue fused in. One definition (`reference`), several kernels beside it."""

import jax
import jax.numpy as jnp

from pallas_kernels.epilogue import Epilogue, require
from pallas_kernels.errors import UnsupportedShapeError
from pallas_kernels.matmul import reference
from pallas_kernels.matmul.by_dot4 import matmul_by_dot4
from pallas_kernels.matmul.config import Config, candidates, default_config
from pallas_kernels.matmul.reference import matmul_reference

__all__ = ["Config", "candidates", "default_config", "matmul", "matmul_reference", "supports"]


def supports(
    x: object, w: object, epilogue: Epilogue | None = None, *, out_dtype: jax.typing.DTypeLike = jnp.int8
) -> str | None:
    """Why no kernel takes these arrays (anything with shape and dtype), or None where `matmul` does."""
    reason = reference.supports(x, w, epilogue, out_dtype=out_dtype)
    if reason is None and len(x.shape) != 2:
        return "batches have no kernel yet"
    if reason is None and reference.is_split(x, w):
        return "K split has no kernel yet"
    return reason


def matmul(
    x: jax.Array,
    w: jax.Array,
    epilogue: Epilogue | None = None,
    *,
    out_dtype: jax.typing.DTypeLike,
    config: Config | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Returns the epilogue of x @ w.T, as (..., M, N) in `out_dtype`.

    The product is exact, in int32 (K beyond its bound: see `reference.PART`); the rest is `epilogue.finish`. Equal to
    `matmul_reference` in every bit, for every config.

    Args:
      x: int8, in [-127, 127], or uint8 (..., M, K).
      w: int8, in [-127, 127], or uint8 (..., N, K), the same leading axes.
      epilogue: its operands, or None for the accumulator itself.
      out_dtype: int8, uint8, float32 or bfloat16; int32 without an epilogue.
      config: tactic; None takes `default_config(M, N, K)`.
      interpret: run on any machine, slowly.

    Raises:
      UnsupportedShapeError: for other shapes or dtypes.
    """
    require(supports(x, w, epilogue, out_dtype=out_dtype))
    (m, k), n = x.shape, w.shape[0]
    if 0 in (m, n, k):  # no grid, or no loads: there is only an epilogue
        return matmul_reference(x, w, epilogue, out_dtype=out_dtype)
    config = config or default_config(m, n, k)
    return matmul_by_dot4(x, w, epilogue, out_dtype=out_dtype, config=config, interpret=interpret)
