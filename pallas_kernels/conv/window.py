"""The geometry of a convolution: what its window is, and which output pixel reads which input pixel."""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Window:
    """How the kernel moves over the input; one number, or pair, for each spatial axis.

    Attributes:
      strides: steps of the kernel, in input pixels.
      padding: zeros before and behind the (dilated) input; negative ones cut it.
      dilation: distance of the kernel's taps, in input pixels.
      input_dilation: distance of the input's pixels; more than 1 is a transposed convolution.
      groups: input and output channels are cut into so many parts, each convolved on its own.
    """

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    input_dilation: tuple[int, ...]
    groups: int = 1


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A window over an input x (N, spatial..., C) with weights (O, kernel..., C / groups)."""

    window: Window
    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]

    @classmethod
    def of(cls, x: Any, w: Any, window: Window) -> "Geometry":
        return cls(window, tuple(x.shape), tuple(w.shape))

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.w_shape[1:-1]

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def depth(self) -> int:
        """Input channels of a group."""
        return self.w_shape[-1]

    @property
    def features(self) -> int:
        """Output channels of all groups."""
        return self.w_shape[0]

    @property
    def padded(self) -> tuple[int, ...]:
        """Spatial sizes of the input with its dilation and padding; below 0 where more is cut than there is."""
        sizes = zip(self.x_shape[1:-1], self.window.input_dilation, self.window.padding, strict=True)
        return tuple(max(0, (size - 1) * step + 1) + lo + hi for size, step, (lo, hi) in sizes)

    @property
    def out(self) -> tuple[int, ...]:
        """Spatial sizes of the output."""
        axes = zip(self.padded, self.kernel, self.window.dilation, self.window.strides, strict=True)
        return tuple(max(0, (size - (taps - 1) * step - 1) // stride + 1) for size, taps, step, stride in axes)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.x_shape[0], *self.out, self.features)

    @property
    def rows(self) -> int:
        """Output pixels of the whole batch."""
        return math.prod(self.out_shape[:-1])

    @property
    def is_pointwise(self) -> bool:
        """Whether it is a matrix product of the pixels that the strides leave."""
        window = self.window
        dense = window.groups == 1 and not any(map(any, window.padding)) and set(window.input_dilation) <= {1}
        return dense and self.taps == 1
