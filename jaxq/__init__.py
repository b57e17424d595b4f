"""jaxq quantizes JAX models: a Flax model and calibration batches in, the same function in int8 out."""

from jaxq.api import calibrate, fake_quantize, load, quantize
from jaxq.attribution import Sensitivity, sensitivity
from jaxq.calibration.result import Calibration
from jaxq.config import LayerRule, QuantConfig
from jaxq.errors import CalibrationError, JaxqError, PlanError, TraceError, UnsupportedError
from jaxq.qat import FakeQuantized
from jaxq.qmodel import QuantizedModel
from jaxq.version import __version__

__all__ = [
    "Calibration",
    "CalibrationError",
    "FakeQuantized",
    "JaxqError",
    "LayerRule",
    "PlanError",
    "QuantConfig",
    "QuantizedModel",
    "Sensitivity",
    "TraceError",
    "UnsupportedError",
    "__version__",
    "calibrate",
    "fake_quantize",
    "load",
    "quantize",
    "sensitivity",
]
