"""jaxq quantizes JAX models: a Flax model and calibration batches in, the same function in int8 out."""

__version__ = "0.1.0"


from jaxq.api import QuantizedModel, load, quantize
from jaxq.config import LayerRule, QuantConfig
from jaxq.errors import CalibrationError, JaxqError, PlanError, TraceError, UnsupportedError

__all__ = [
    "CalibrationError",
    "JaxqError",
    "LayerRule",
    "PlanError",
    "QuantConfig",
    "QuantizedModel",
    "TraceError",
    "UnsupportedError",
    "load",
    "quantize",
]
