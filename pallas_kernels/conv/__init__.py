"""conv: int8 convolution with the epilogue fused in. One definition (`reference`), several kernels beside it.

A kernel is a module with `refuses`, `candidates`, `cycles` and `run`; the type of a config says which kernel it is of.
A new one is a row in the table.
"""

from typing import Any, get_args

import jax

from pallas_kernels import compat, shift, table
from pallas_kernels.conv import by_channel, by_dot4, by_mma, by_product
from pallas_kernels.conv.config import ConvChannelConfig, ConvDot4Config, ConvMmaConfig, has_narrow_groups
from pallas_kernels.conv.reference import conv_reference, supports
from pallas_kernels.conv.window import Geometry, Window
from pallas_kernels.epilogue import Epilogue, require
from pallas_kernels.matmul import Config as MatmulConfig

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
    "has_narrow_groups",
    "supports",
]

Config = ConvMmaConfig | ConvChannelConfig | ConvDot4Config | MatmulConfig

_KERNELS: table.Table = {
    **dict.fromkeys(get_args(MatmulConfig), (by_product, table.EVERY)),
    ConvMmaConfig: (by_mma, compat.INT8_DOT),
    ConvDot4Config: (by_dot4, table.EVERY),
    ConvChannelConfig: (by_channel, table.EVERY),
}
_LAST = by_dot4, by_channel  # on the CUDA cores, for what no other kernel has a tactic for, in this order


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
    kernel = table.kernel_of(config, _KERNELS, interpret=interpret)
    require(kernel.refuses(config, geometry))
    out: jax.Array = kernel.run(
        x, w, epilogue, geometry, out_dtype=out_dtype, offset=offset, config=config, interpret=interpret
    )
    return out


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
    kernels = dict.fromkeys(table.able(_KERNELS).values())
    found = {kernel: kernel.candidates(x, w, epilogue, geometry, out_dtype=out_dtype) for kernel in kernels}
    first = [kernel for kernel in found if found[kernel] and kernel not in _LAST]
    if not first:
        return next(found[kernel] for kernel in _LAST if found[kernel])
    first.sort(key=lambda kernel: kernel.cycles(found[kernel][0], x, w, epilogue, geometry))
    return tuple(config for kernel in first for config in found[kernel])
