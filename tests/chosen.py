"""Quantized models with other choices than calibration makes."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from jaxq import passes
from jaxq.graph.node import QType
from jaxq.graph.verify import verify
from jaxq.passes.choices import Choices
from jaxq.qmodel import Origin, QuantizedModel, model_of
from jaxq.refine.channels import groups
from jaxq.refine.state import State
from jaxq.report import rows


def state_of(qmodel: QuantizedModel) -> State:
    """What refinement starts from."""
    origin = qmodel.origin
    return State(origin.graph, origin.placement, origin.choices, origin.config)


def model_from(state: State, qmodel: QuantizedModel) -> QuantizedModel:
    """The quantized model of a state that was made from that of `qmodel`."""
    graph, placement, choices, config = state.graph, state.placement, state.choices, state.config
    int8 = verify(passes.quantize(graph, placement, choices, config), "quantized")
    plan = replace(qmodel.plan, graph=int8, summary=replace(qmodel.plan.summary, nodes=rows(int8)))
    return model_of(plan, int8.params, Origin(graph, placement, choices, config))


def by_channel(state: State, rng: np.random.Generator, spread: float = 8.0) -> Choices:
    """Scales by channel that differ by up to that factor both ways, for all values that may have them."""

    def drawn(qtype: QType, channels: int) -> QType:
        factors = np.exp(rng.uniform(-np.log(spread), np.log(spread), channels))
        return replace(qtype, scale=np.asarray(qtype.scale * factors))

    channels = {group.name: group.sources[0].aval.shape[-1] for group, _ in groups(state)}
    qtypes: Mapping[str, QType] = state.choices.qtypes
    return replace(
        state.choices,
        qtypes={name: drawn(q, channels[name]) if name in channels else q for name, q in qtypes.items()},
    )
