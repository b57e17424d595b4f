"""Pallas kernels for int8 inference on NVIDIA GPUs, each beside the jnp reference that it equals in every bit.

Arrays in, arrays out; imports nothing but jax and numpy.
"""

from pallas_kernels import borders, compat, shift
from pallas_kernels.borders import BorderConfig, dequantize, dequantize_reference, quantize, quantize_reference
from pallas_kernels.conv import ConvChannelConfig, ConvDot4Config, ConvMmaConfig, Window, conv, conv_reference
from pallas_kernels.conv import candidates as conv_candidates
from pallas_kernels.conv import default_config as conv_default_config
from pallas_kernels.conv import supports as conv_supports
from pallas_kernels.dispatch import by_platform, on_cuda
from pallas_kernels.dot4 import dot4, pack4
from pallas_kernels.epilogue import Epilogue
from pallas_kernels.errors import UnsupportedShapeError
from pallas_kernels.matmul import (
    Config,
    Dot4Config,
    MmaConfig,
    Tcgen05Config,
    WgmmaConfig,
    candidates,
    default_config,
    matmul,
    matmul_reference,
    supports,
)

__all__ = [
    "BorderConfig",
    "Config",
    "ConvChannelConfig",
    "ConvDot4Config",
    "ConvMmaConfig",
    "Dot4Config",
    "Epilogue",
    "MmaConfig",
    "Tcgen05Config",
    "UnsupportedShapeError",
    "WgmmaConfig",
    "Window",
    "borders",
    "by_platform",
    "candidates",
    "compat",
    "conv",
    "conv_candidates",
    "conv_default_config",
    "conv_reference",
    "conv_supports",
    "default_config",
    "dequantize",
    "dequantize_reference",
    "dot4",
    "matmul",
    "matmul_reference",
    "on_cuda",
    "pack4",
    "quantize",
    "quantize_reference",
    "shift",
    "supports",
]


def __dir__() -> list[str]:
    return __all__
