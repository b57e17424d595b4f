"""matmul: int8 matrix product with the epilogue fused in. One definition (`reference`), several kernels beside it.

A kernel is a module with `supports`, `candidates`, `cycles` and `run`; the type of a config says which kernel it is of.
A new one is a row in the table.
"""

import dataclasses
import math
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import compat, estimate, shift, table
from pallas_kernels.epilogue import Epilogue, require
from pallas_kernels.matmul import by_dot4, by_mma, by_tcgen05, by_wgmma
from pallas_kernels.matmul.by_tcgen05 import Tcgen05Config
from pallas_kernels.matmul.config import Dot4Config, MmaConfig
from pallas_kernels.matmul.reference import matmul_reference
from pallas_kernels.matmul.wgmma_config import WgmmaConfig

__all__ = [
    "Config",
    "Dot4Config",
    "MmaConfig",
    "Tcgen05Config",
    "WgmmaConfig",
    "candidates",
    "cycles",
    "default_config",
    "kernels",
    "matmul",
    "matmul_reference",
    "supports",
]

Config = Dot4Config | MmaConfig | WgmmaConfig | Tcgen05Config

# The kernel that is the fastest for many rows last.
_KERNELS: table.Table = {
    Dot4Config: (by_dot4, table.EVERY),
    MmaConfig: (by_mma, compat.INT8_DOT),
    WgmmaConfig: (by_wgmma, range(90, 91)),
    Tcgen05Config: (by_tcgen05, range(100, 101)),
}
_FEW_ROWS = 8  # so far dp4a keeps up with the memory
_DOT4_ROWS = 16  # beyond that dp4a is far behind the tensor cores


def supports(x: Any, w: Any, epilogue: Epilogue | None = None, *, out_dtype: jax.typing.DTypeLike) -> str | None:
    """Why no kernel takes these (anything with shape and dtype), or None where `matmul` does."""
    return by_dot4.supports(x, w, epilogue, out_dtype=out_dtype)


def kernels(
    x: Any, w: Any, epilogue: Epilogue | None = None, *, out_dtype: jax.typing.DTypeLike
) -> dict[type, ModuleType]:
    """{config type: kernel} of all that take these on the GPU in use, the fastest for many rows first."""
    return {
        kind: module
        for kind, module in reversed(table.able(_KERNELS).items())
        if module.supports(x, w, epilogue, out_dtype=out_dtype) is None
    }


def default_config(x: Any, w: Any, epilogue: Epilogue | None = None, *, out_dtype: jax.typing.DTypeLike) -> Config:
    """Heuristic tactic for these on the GPU in use (`compat.compute_capability`), the first of `candidates`."""
    return candidates(x, w, epilogue, out_dtype=out_dtype)[0]


def candidates(
    x: Any, w: Any, epilogue: Epilogue | None = None, *, out_dtype: jax.typing.DTypeLike
) -> tuple[Config, ...]:
    """Tactics worth timing for these on the GPU in use: distinct, all valid, the default first.

    Raises:
      UnsupportedShapeError: where `supports` gives a reason.
    """
    require(supports(x, w, epilogue, out_dtype=out_dtype))
    able, rows = kernels(x, w, epilogue, out_dtype=out_dtype), x.shape[-2]
    if len(able) > 1 and rows > _DOT4_ROWS:
        able = {kind: module for kind, module in able.items() if kind is not Dot4Config}
    tactics = {kind: module.candidates(x, w, epilogue, out_dtype=out_dtype) for kind, module in able.items()}
    dot4_is_first = rows <= _FEW_ROWS or (rows <= _DOT4_ROWS and _is_unsigned(x, w))

    def rank(kind: type) -> float:
        if kind is Dot4Config:
            return 0 if dot4_is_first else math.inf
        return cycles(tactics[kind][0], x, w, epilogue)

    return tuple(config for kind in sorted(tactics, key=rank) for config in tactics[kind])


def cycles(config: Config, x: Any, w: Any, epilogue: Epilogue | None = None) -> float:
    """Estimated cycles of the busiest multiprocessor, those of what XLA does to x included."""
    kernel, _ = _KERNELS[type(config)]
    return max(kernel.cycles(config, x, w, epilogue), estimate.memory(math.prod(x.shape) + math.prod(w.shape)))


def matmul(
    x: jax.Array,
    w: jax.Array,
    epilogue: Epilogue | None = None,
    *,
    out_dtype: jax.typing.DTypeLike,
    offset: jax.Array | None = None,
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
      offset: int32 (..., N), `shift.offset(w, -1)` of an int8 w: read where x is uint8, and computed in every call
        unless given.
      config: tactic, whose type chooses the kernel; None takes `default_config`.
      interpret: run on any machine, slowly.

    Raises:
      UnsupportedShapeError: for other shapes or dtypes, or a config whose kernel does not take them or the GPU in use.
    """
    require(supports(x, w, epilogue, out_dtype=out_dtype))
    (*batch, m, k), n = x.shape, w.shape[-2]
    shift.check(offset, w, (*batch, n))
    if 0 in (*x.shape, n):  # no grid, or no loads: there is only an epilogue
        return matmul_reference(x, w, epilogue, out_dtype=out_dtype)
    config = config or default_config(x, w, epilogue, out_dtype=out_dtype)
    module = table.kernel_of(config, _KERNELS, interpret=interpret)
    require(module.supports(x, w, epilogue, out_dtype=out_dtype))
    batches = math.prod(batch)
    x, w = x.reshape(batches, m, k), w.reshape(batches, n, k)
    if epilogue is not None:
        residual = None if epilogue.residual is None else epilogue.residual.reshape(batches, m, n)
        row_scale = None if epilogue.row_scale is None else epilogue.row_scale.reshape(batches, m)
        epilogue = dataclasses.replace(epilogue, residual=residual, row_scale=row_scale)
    if offset is not None:
        offset = offset.reshape(batches, n)
    out: jax.Array = module.run(x, w, epilogue, out_dtype=out_dtype, offset=offset, config=config, interpret=interpret)
    return out.reshape(*batch, m, n)


def _is_unsigned(x: Any, w: Any) -> bool:
    return jnp.uint8 in (jnp.dtype(x.dtype), jnp.dtype(w.dtype))
