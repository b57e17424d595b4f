"""matmul: int8 matrix product with the epilogue fused in. One definition (`reference`), several kernels beside it."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.epilogue import Epilogue, finish, require
from pallas_kernels.matmul import reference
from pallas_kernels.matmul.by_dot4 import matmul_by_dot4
from pallas_kernels.matmul.config import Config, candidates, default_config
from pallas_kernels.matmul.reference import matmul_reference

__all__ = ["Config", "candidates", "default_config", "matmul", "matmul_reference", "supports"]

_MAX_BATCH = 2**16 - 1  # programs along the third axis of a grid


def supports(
    x: Any, w: Any, epilogue: Epilogue | None = None, *, out_dtype: jax.typing.DTypeLike = jnp.int8
) -> str | None:
    """Why no kernel takes these arrays (anything with shape and dtype), or None where `matmul` does."""
    reason = reference.supports(x, w, epilogue, out_dtype=out_dtype)
    if reason is None and math.prod(x.shape[:-2]) > _MAX_BATCH:
        return f"{math.prod(x.shape[:-2])} matrices are beyond the grid of a kernel; it takes {_MAX_BATCH}"
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
    if 0 in (*x.shape, *w.shape):  # no grid, or no loads: there is only an epilogue
        return matmul_reference(x, w, epilogue, out_dtype=out_dtype)
    config = config or default_config(x.shape[-2], w.shape[-2], x.shape[-1])
    kernel = functools.partial(matmul_by_dot4, config=config, interpret=interpret)
    if reference.is_split(x, w):
        parts = functools.partial(_batched, functools.partial(kernel, out_dtype=jnp.int32), epilogue=None)
        return finish(reference.sum_of_parts(parts, x, w), epilogue, out_dtype)
    return _batched(functools.partial(kernel, out_dtype=out_dtype), x, w, epilogue)


def _batched(kernel: Any, x: jax.Array, w: jax.Array, epilogue: Epilogue | None) -> jax.Array:
    """The kernel of matrices over the leading axes, which become one axis of its grid."""
    batch = x.shape[:-2]
    if not batch:
        return kernel(x, w, epilogue)
    x, w = x.reshape(-1, *x.shape[-2:]), w.reshape(-1, *w.shape[-2:])
    axes = None
    if epilogue is not None:
        residual = epilogue.residual
        if residual is not None:
            epilogue = dataclasses.replace(epilogue, residual=residual.reshape(-1, *residual.shape[-2:]))
        axes = Epilogue(None, None, None, None, residual=None if residual is None else 0)
    y = jax.vmap(kernel, (0, 0, axes))(x, w, epilogue)
    return y.reshape(*batch, *y.shape[1:])
