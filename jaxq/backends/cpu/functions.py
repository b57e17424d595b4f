"""Functions of one value that the kernels compute on floats (`src/function.h`), found by comparing values.

The bodies of functions have factors in them, and signs, which rewriting moved there from the layers around; the form
takes them up.
"""

import functools
import struct
from dataclasses import dataclass

import jax
import numpy as np

from jaxq.graph.node import Graph, Node
from jaxq.passes.elementwise import apply

_GRID = np.linspace(-12.0, 12.0, 1001, dtype=np.float32)
# How far the form may be from the function, relative to 1 + |x|: some roundings of float32.
_SAME = 2e-6


@dataclass(frozen=True)
class Form:
    """factor * f(input_factor * x). `kind` 0: f(x) = x * phi(x), phi the normal distribution's; 1: f(x) = x *
    sigmoid(linear * x + cubic * x^3)."""

    kind: int
    linear: float = 0.0
    cubic: float = 0.0
    factor: float = 1.0
    input_factor: float = 1.0

    def fields(self) -> list[int]:
        """Of a program: the kind, and the bits of the numbers."""
        numbers = (self.linear, self.cubic, self.factor, self.input_factor)
        return [self.kind, *struct.unpack("<4I", struct.pack("<4f", *numbers))]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """In float64, of factors 1."""
        if self.kind == 0:
            return np.asarray(jax.scipy.special.erfc(-x / np.sqrt(2)), np.float64) * x / 2
        return x / (1 + np.exp(-(self.linear * x + self.cubic * x**3)))


_FORMS = (
    Form(0),  # gelu
    Form(1, linear=2 * np.sqrt(2 / np.pi), cubic=2 * np.sqrt(2 / np.pi) * 0.044715),  # gelu by tanh
    Form(1, linear=1.0),  # silu
    Form(1, linear=1.702),  # quick_gelu
)


def form_of(node: Node) -> Form | None:
    """The form of an "elementwise" node's function, or None where it has none."""
    return _form(node.attrs["body"])


@functools.lru_cache(maxsize=512)
def _form(body: Graph) -> Form | None:
    if body.inputs[0].aval.dtype != np.float32:
        return None
    with jax.ensure_compile_time_eval():
        y = np.asarray(apply(body, _GRID), np.float64)
        for form in _FORMS:
            for sign in (1.0, -1.0):
                f = form(sign * _GRID.astype(np.float64))
                factor = float(np.sum(f * y) / np.sum(f * f))
                if np.all(np.abs(factor * f - y) <= _SAME * abs(factor) * (1 + np.abs(_GRID))):
                    return Form(form.kind, form.linear, form.cubic, factor, sign)
    return None
