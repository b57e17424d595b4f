"""The weights of a convolution or dot beside the levels that they are rounded to."""

from dataclasses import dataclass

import numpy as np

from jaxq import numerics
from jaxq.graph.node import Node
from jaxq.passes.lower import grouped_weight, quantized_weight, scaled_weight
from jaxq.refine.readers import qtype_read
from jaxq.refine.state import State


@dataclass(frozen=True, eq=False)
class Rounding:
    """The weights of a layer in units of their levels, as its scales are chosen.

    Attributes:
      position: the weights in levels, float32, in the op's layout, none beyond the bounds.
      bounds: the least and the largest level.
      unit: what one level is in real numbers, float32; it broadcasts to the weight.
      scale: of the integers, as `Choices.weights` holds it.
    """

    position: np.ndarray
    bounds: tuple[int, int]
    unit: np.ndarray
    scale: np.ndarray

    @staticmethod
    def of(state: State, node: Node, method: str | None = None) -> "Rounding":
        """By the scales chosen so far; where none were, as the config says, or by the method."""
        qtype = qtype_read(state, node)
        scale_x = 1.0 if qtype is None else qtype.scale
        how, weight = state.config.for_weights(node.name), np.asarray(node.operand("weight").value, np.float64)
        chosen = state.choices.weights.get(node.name)
        if node in state.placement.weight_only:
            scale = (chosen or grouped_weight(node, state.config, method))[1]
            unit = np.repeat(scale, how.group_size, axis=1)[:, : weight.shape[1]]
        else:
            scale = (chosen or quantized_weight(node, state.config, scale_x, method))[1]
            unit = (scale if node.op == "conv" else scale[:, None]) / scaled_weight(node, np.ones_like(weight), scale_x)
        bounds = numerics.weight_levels(how.weight_bits, in_groups=node in state.placement.weight_only)
        position = np.clip(weight / unit, *bounds)
        return Rounding(position.astype(np.float32), bounds, unit.astype(np.float32), scale)

    @property
    def floor(self) -> np.ndarray:
        """The lower of the two levels beside each weight, float32."""
        return np.minimum(np.floor(self.position), self.bounds[1] - 1)
