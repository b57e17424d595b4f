"""conv: int8 convolution with the epilogue fused in. One definition (`reference`), several kernels beside it."""

import dataclasses
from typing import Any

import jax
from jax import lax

from pallas_kernels import compat, shift
from pallas_kernels.conv import config as tactics
from pallas_kernels.conv.by_channel import conv_by_channel
from pallas_kernels.conv.by_dot4 import conv_by_dot4
from pallas_kernels.conv.by_mma import conv_by_mma
from pallas_kernels.conv.config import ConvChannelConfig, ConvDot4Config, ConvMmaConfig
from pallas_kernels.conv.reference import conv_reference, supports
from pallas_kernels.conv.window import Geometry, Window
from pallas_kernels.epilogue import Epilogue, require
from pallas_kernels.matmul import Config as MatmulConfig
from pallas_kernels.matmul import candidates as matmul_candidates
from pallas_kernels.matmul import matmul

__all__ = [
    "Config",
    "ConvChannelConfig",
    "ConvDot4Config",
    "ConvMmaConfig",
    "Window",
    "candidates",
    "conv",
    "conv_reference",
    "default_config",
    "supports",
]

Config = ConvMmaConfig | ConvChannelConfig | ConvDot4Config | MatmulConfig


def conv(
    x: jax.Array,
    w: jax.Array,
    epilogue: Epilogue | None = None,
    *,
    window: Window,
    out_dtype: jax.typing.DTypeLike,
    offset: jax.Array | None = None,
    config: Config | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Returns the epilogue of the convolution of x with w, as (N, spatial..., O) in `out_dtype`; no kernel is flipped.

    The convolution is exact, in int32; the rest is `epilogue.finish`. Equal to `conv_reference` in every bit, for every
    config. What lies outside of x is 0, in uint8, too.

    Args:
      x: int8, in [-127, 127], or uint8 (N, spatial..., C), any number of spatial axes from 1.
      w: int8, in [-127, 127] (O, kernel..., C / groups).
      epilogue: its operands, or None for the accumulator itself.
      window: strides, padding, dilations, groups.
      out_dtype: int8, uint8, float32 or bfloat16; int32 without an epilogue.
      offset: int32 (O,), `shift.offset` of w over all axes but the first: read where x is uint8, and computed in every
        call unless given.
      config: tactic, whose class is that of the kernel; None takes `default_config`.
      interpret: run on any machine, slowly.

    Raises:
      UnsupportedShapeError: for other shapes or dtypes, and for a config that does not go with them.
    """
    require(supports(x, w, epilogue, window=window, out_dtype=out_dtype))
    geometry = Geometry.of(x, w, window)
    shift.check(offset, w, (geometry.features,))
    if 0 in (*x.shape, geometry.rows, geometry.features):  # no grid, or no loads: there is only an epilogue
        return conv_reference(x, w, epilogue, window=window, out_dtype=out_dtype)
    config = config or default_config(x, w, epilogue, window=window, out_dtype=out_dtype)
    require(_refuses(config, geometry))
    if isinstance(config, ConvMmaConfig) and not interpret:
        require(compat.refuses_shared(config, config.shared_bytes))
    if isinstance(config, ConvMmaConfig):
        return conv_by_mma(
            x, w, epilogue, geometry, out_dtype=out_dtype, offset=offset, config=config, interpret=interpret
        )
    if isinstance(config, ConvChannelConfig):
        return conv_by_channel(x, w, epilogue, geometry, out_dtype=out_dtype, config=config, interpret=interpret)
    if isinstance(config, ConvDot4Config):
        return conv_by_dot4(x, w, epilogue, geometry, out_dtype=out_dtype, config=config, interpret=interpret)
    operands = _product(x, w, epilogue, geometry)
    y = matmul(*operands, out_dtype=out_dtype, offset=offset, config=config, interpret=interpret)
    return y.reshape(geometry.out_shape)


def default_config(
    x: Any, w: Any, epilogue: Epilogue | None = None, *, window: Window, out_dtype: jax.typing.DTypeLike
) -> Config:
    """Heuristic tactic for these on the GPU in use; valid for all that `supports` takes."""
    return candidates(x, w, epilogue, window=window, out_dtype=out_dtype)[0]


def candidates(
    x: Any, w: Any, epilogue: Epilogue | None = None, *, window: Window, out_dtype: jax.typing.DTypeLike
) -> tuple[Config, ...]:
    """Tactics worth timing for these on the GPU in use: distinct, all valid, the default first.

    Raises:
      UnsupportedShapeError: where `supports` gives a reason.
    """
    require(supports(x, w, epilogue, window=window, out_dtype=out_dtype))
    geometry = Geometry.of(x, w, window)
    has_residual = epilogue is not None and epilogue.residual is not None
    as_conv = tactics.candidates(geometry, has_residual=has_residual)
    if not geometry.is_pointwise:
        return as_conv
    product = jax.eval_shape(lambda x, w, epilogue: _product(x, w, epilogue, geometry), x, w, epilogue)
    as_product = matmul_candidates(*product, out_dtype=out_dtype)
    # With strides, a convolution saves the copy of the pixels that the product reads.
    return as_product if set(window.strides) == {1} else (*as_product, *as_conv[:4])


def _product(
    x: jax.Array, w: jax.Array, epilogue: Epilogue | None, geometry: Geometry
) -> tuple[jax.Array, jax.Array, Epilogue | None]:
    """The arguments of the matrix product that a pointwise convolution is."""
    rows, features, depth = geometry.rows, geometry.features, geometry.depth
    pixels = lax.slice(x, (0,) * x.ndim, x.shape, (1, *geometry.window.strides, 1))
    if epilogue is not None and epilogue.residual is not None:
        epilogue = dataclasses.replace(epilogue, residual=epilogue.residual.reshape(rows, features))
    return pixels.reshape(rows, depth), w.reshape(features, depth), epilogue


def _refuses(config: Config, geometry: Geometry) -> str | None:
    if isinstance(config, ConvMmaConfig | ConvChannelConfig | ConvDot4Config):
        return tactics.refuses(config, geometry)
    return None if geometry.is_pointwise else f"{config} is of a matrix product, which this convolution is not"
