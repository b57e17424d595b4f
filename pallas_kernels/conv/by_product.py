"""Pointwise convolution (one tap, no padding, no groups): the matrix product of the pixels that the strides leave.

With strides, XLA copies those pixels first.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
from jax import lax

from pallas_kernels import estimate
from pallas_kernels.conv.window import Geometry
from pallas_kernels.epilogue import Epilogue
from pallas_kernels.matmul import Config, matmul
from pallas_kernels.matmul import candidates as matmul_candidates
from pallas_kernels.matmul import cycles as matmul_cycles


def refuses(config: Config, geometry: Geometry) -> str | None:
    """Why the tactic does not go with the geometry, or None."""
    return None if geometry.is_pointwise else f"{config} is of a matrix product, which this convolution is not"


def candidates(
    x: Any, w: Any, epilogue: Epilogue | None, geometry: Geometry, *, out_dtype: jax.typing.DTypeLike
) -> tuple[Config, ...]:
    """Tactics worth timing, the default first; none where it is no product."""
    if not geometry.is_pointwise:
        return ()
    return matmul_candidates(*_types(x, w, epilogue, geometry), out_dtype=out_dtype)


def cycles(config: Config, x: Any, w: Any, epilogue: Epilogue | None, geometry: Geometry) -> float:
    """Estimated cycles of the busiest multiprocessor, those of the copy of the pixels included."""
    operands = _types(x, w, epilogue, geometry)
    is_copied = set(geometry.window.strides) != {1}
    return matmul_cycles(config, *operands) + (estimate.copy(math.prod(operands[0].shape)) if is_copied else 0.0)


def run(
    x: jax.Array,
    w: jax.Array,
    epilogue: Epilogue | None,
    geometry: Geometry,
    *,
    out_dtype: jax.typing.DTypeLike,
    offset: jax.Array | None = None,
    config: Config,
    interpret: bool = False,
) -> jax.Array:
    """`conv` of non-empty arrays, as a matrix product."""
    operands = _operands(x, w, epilogue, geometry=geometry)
    y = matmul(*operands, out_dtype=out_dtype, offset=offset, config=config, interpret=interpret)
    return y.reshape(geometry.out_shape)


def _types(x: Any, w: Any, epilogue: Epilogue | None, geometry: Geometry) -> Any:
    return jax.eval_shape(functools.partial(_operands, geometry=geometry), x, w, epilogue)


def _operands(
    x: jax.Array, w: jax.Array, epilogue: Epilogue | None, *, geometry: Geometry
) -> tuple[jax.Array, jax.Array, Epilogue | None]:
    rows, features, depth = geometry.rows, geometry.features, geometry.depth
    pixels = lax.slice(x, (0,) * x.ndim, x.shape, (1, *geometry.window.strides, 1))
    if epilogue is not None and epilogue.residual is not None:
        epilogue = dataclasses.replace(epilogue, residual=epilogue.residual.reshape(rows, features))
    return pixels.reshape(rows, depth), w.reshape(features, depth), epilogue
