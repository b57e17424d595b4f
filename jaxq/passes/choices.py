"""What the integers of an int8 graph stand for: all that is chosen from data before `lower` computes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from jaxq.graph.node import QType


@dataclass(frozen=True, eq=False)
class Choices:
    """What was chosen for a placed float graph.

    Attributes:
      qtypes: {scale group: what its integers stand for}. The scale is a float, or float64 (C,), one for each channel.
      rows: {value that dots read by row: float64 (C,), what its channels are divided by before each row is given its
        scale}, where that is not 1.
      weights: {conv or dot: (int8 weight in the op's layout, float64 scale of each output channel)}, or of a
        weight-only dot (int8 levels (N, K), float32 scale (N, groups)), where they were refined; the others are
        quantized as the config says.
      biases: {conv or dot: float64 (C,)}, real numbers that are added to the bias.
    """

    qtypes: Mapping[str, QType]
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)
    weights: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    biases: Mapping[str, np.ndarray] = field(default_factory=dict)
