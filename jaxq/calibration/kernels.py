"""What calibration computes with beside the network itself. A backend may have faster kernels of the same results."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from jaxq.calibration import histogram, trials
from jaxq.calibration.histogram import Histogram


@dataclass(frozen=True)
class Kernels:
    """`histogram.unchecked`, `trials.trials` and `trials.trial_errors`, or what gives the same; only the sums of the
    last may differ in their rounding."""

    count: Callable[[jax.Array], Histogram]
    trials: Callable[[jax.Array, jax.Array, str], jax.Array]
    trial_errors: Callable[[jax.Array], tuple[jax.Array, jax.Array]]


XLA = Kernels(histogram.unchecked, trials.trials, trials.trial_errors)
