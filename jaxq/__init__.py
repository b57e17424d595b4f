"""jaxq quantizes JAX models: a Flax model and calibration batches in, the same function in int8 out."""

from jaxq.api import QuantizedModel, load, quantize
from jaxq.config import LayerRule, QuantConfig
from jaxq.errors import CalibrationError, JaxqError, PlanError, TraceError, UnsupportedError
from jaxq.version import __version__

__all__ = [
    "CalibrationError",
    "JaxqError",
    "LayerRule",
    "PlanError",
    "QuantConfig",
    "QuantizedModel",
    "TraceError",
    "UnsupportedError",
    "__version__",
    "load",
    "quantize",
]
