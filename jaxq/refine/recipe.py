"""The steps of refinement in order, each kept only if the results on the examples held back err less by it.

The mean error of a layer weighs more than all else in a deep network: where biases are corrected, they are again after
each step, before it is judged, but for those that fit the means, too. Scales by channel that the config asks for are
kept whatever they bring.
"""

import sys
import time
from collections.abc import Callable, Sequence

from tqdm import tqdm

from jaxq.refine import attention, biases, channels, gptq, outliers, polish, weights
from jaxq.refine.gain import Gain
from jaxq.refine.state import Samples, State

# A step is kept if the error falls at least to this part: what gains less gained by chance.
_WORTH = 0.9

# What fits the layers' results, their means among them, as the layers before make them by now.
_FIT_MEANS = ("gptq", "polish")

_STEPS: dict[str, Callable[[State, Samples], State]] = {
    "attention": attention.refine,
    "channels": channels.refine,
    "outliers": outliers.refine,
    "weights": weights.refine,
    "biases": biases.refine,
    "gptq": gptq.refine,
    "polish": polish.refine,
}


def run(state: State, samples: Samples, steps: Sequence[str]) -> tuple[State, tuple[Gain, ...]]:
    """The refined state, and what each step brought; it is written to stderr, too.

    Args:
      steps: of `config.STEPS`.
    """
    gains: list[Gain] = []
    before = samples.error(state)
    with tqdm(total=len(steps), desc="refining", unit="step", disable=None) as bar:
        for name in steps:
            start = time.perf_counter()
            corrected = {gain.step for gain in gains if gain.kept}
            changed = _STEPS[name](state, samples)
            if "biases" in corrected and changed is not state and name not in _FIT_MEANS:
                changed = biases.refine(changed, samples)
            after = before if changed is state else samples.error(changed)
            kept = after < _WORTH * before or (name == "channels" and state.config.wants_channels)
            gain = Gain(name, before, after, time.perf_counter() - start, kept, changed.layers)
            gains.append(gain)
            tqdm.write(f"recipe: {gain}", file=sys.stderr)
            if gain.kept:
                state, before = changed.with_layers({}), after
            bar.update()
    return state, tuple(gains)
