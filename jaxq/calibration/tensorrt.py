"""Thresholds in the text format of TensorRT's calibration caches.

A first line names TensorRT's version and the calibrator, for example `TRT-8601-EntropyCalibration2`; then a line for
each tensor, `name: 3c010204`, the bytes of its scale as a big-endian float32 in hex, scale = threshold / 127.
TensorRT has no uint8 activations, hence 127 for every tensor.

Source: the caches that TensorRT's `IInt8Calibrator.write_calibration_cache` is handed.
"""

import math
import re
import struct
from collections.abc import Mapping

from jaxq.errors import CalibrationError

_LEVELS = 127
_LINE = re.compile(r"\s*(?P<name>\S|\S.*\S)\s*:\s*(?P<digits>[0-9a-fA-F]{8})\s*")
_HEADER = "TRT-8601-EntropyCalibration2"
_SMALLEST, _LARGEST = 2.0**-149, 3.4028234663852886e38  # of a float32


def to_text(thresholds: Mapping[str, float]) -> str:
    """The cache that holds {tensor name: threshold}.

    Raises:
      CalibrationError: a name that a line cannot hold, or a threshold that is no positive float32.
    """
    lines = [_HEADER]
    for name, threshold in thresholds.items():
        if name != name.strip() or name.splitlines() != [name]:
            raise CalibrationError(f"TensorRT cache: {name!r} does not fit on a line; rename the layer")
        if not _SMALLEST <= threshold / _LEVELS <= _LARGEST:
            raise CalibrationError(f"TensorRT cache: the threshold of {name!r} is {threshold}, not a positive float32")
        lines.append(f"{name}: {struct.pack('>f', threshold / _LEVELS).hex()}")
    return "\n".join(lines) + "\n"


def from_text(text: str) -> dict[str, float]:
    """{tensor name: threshold} of a cache, TensorRT's or one that `to_text` wrote.

    A tensor that TensorRT left without a scale, which it writes as zero, is left out.

    Raises:
      CalibrationError: the text is no such cache; the message names the line.
    """
    if not isinstance(text, str):
        raise CalibrationError(f"TensorRT cache: takes text, not {type(text).__name__}; decode bytes as UTF-8")
    header, *lines = text.splitlines() or [""]
    if not header.startswith("TRT-"):
        raise CalibrationError(f"TensorRT cache, line 1: begins with {header[:40]!r}, not with 'TRT-' and a version")
    thresholds = {}
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise CalibrationError(f"TensorRT cache, line {number}: {line[:80]!r} is not 'name: eight hex digits'")
        name, digits = found["name"], found["digits"]
        (scale,) = struct.unpack(">f", bytes.fromhex(digits))
        if not math.isfinite(scale) or scale < 0:
            raise CalibrationError(f"TensorRT cache, line {number}: the scale of {name!r} is {scale}")
        if name in thresholds:
            raise CalibrationError(f"TensorRT cache, line {number}: {name!r} has a scale already")
        if scale > 0:
            thresholds[name] = scale * _LEVELS
    return thresholds
