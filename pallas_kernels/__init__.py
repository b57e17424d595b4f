"""Pallas kernels for int8 inference on NVIDIA GPUs, each beside the jnp reference that it equals in every bit.

Arrays in, arrays out; imports nothing but jax and numpy.
"""

from pallas_kernels import borders, compat, shift
from pallas_kernels.borders import BorderConfig, dequantize, dequantize_reference, quantize, quantize_reference
from pallas_kernels.dispatch import on_cuda
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
    "Dot4Config",
    "Epilogue",
    "MmaConfig",
    "Tcgen05Config",
    "UnsupportedShapeError",
    "WgmmaConfig",
    "borders",
    "candidates",
    "compat",
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
