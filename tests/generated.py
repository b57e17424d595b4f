"""Networks that hypothesis draws: what Flax users write, small enough to run hundreds of them.

A network is a list of steps, each a function of (value, parameters) that was drawn with the shape of its input in hand.
`networks()` draws a `Network`; its weights come from a seed, so that shrinking leaves them alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "clip": lambda x: jnp.clip(x, -0.5, 0.75),
    "leaky_relu": jax.nn.leaky_relu,
    "hard_swish": jax.nn.hard_swish,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "hard_sigmoid": jax.nn.hard_sigmoid,
}


@dataclass(frozen=True)
class Network:
    """`fun(params, x)`, with an example x (batch, spatial..., channels) and a readable list of what it does."""

    fun: Callable[[Any, Any], Any]
    params: dict[str, np.ndarray]
    x: np.ndarray
    steps: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Network(x {self.x.shape}: {'; '.join(self.steps)})"


@st.composite
def networks(draw: st.DrawFn, max_layers: int = 6) -> Network:
    """Chains of one to `max_layers` layers on one or two spatial axes (or none), with branches between them."""
    rank = draw(st.sampled_from([0, 1, 2, 2, 2]))
    builder = _Builder(draw, np.random.default_rng(draw(st.integers(0, 2**16))))
    width = draw(_WIDTHS)
    shape = (*(draw(st.integers(3, 6)) for _ in range(rank)), width)
    x = builder.rng.normal(size=(3, *shape)).astype(np.float32)
    body, shape = builder.chain(shape, draw(st.integers(1, max_layers)), depth=0)
    head, _ = builder.dense(shape) if draw(st.booleans()) else (lambda p, x: x, shape)  # what stands before may be int8
    return Network(lambda p, x: head(p, body(p, x)), builder.params, x, tuple(builder.steps))


_WIDTHS = st.sampled_from([1, 2, 3, 4, 5, 8])
Layer = Callable[[Any, Any], Any]
Shape = tuple[int, ...]


class _Builder:
    """Draws layers one by one. A method takes the shape of its input without the batch and returns (layer, shape)."""

    def __init__(self, draw: st.DrawFn, rng: np.random.Generator) -> None:
        self.draw, self.rng = draw, rng
        self.params: dict[str, np.ndarray] = {}
        self.steps: list[str] = []

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def weight(self, *shape: int, scale: float = 1.0, offset: float = 0.0) -> str:
        name = f"layer{len(self.params)}/w"
        self.params[name] = (self.rng.normal(size=shape) * scale + offset).astype(np.float32)
        return name

    def done(self, shape: Shape, layer: Layer, says: str) -> tuple[Layer, Shape]:
        """The layer and the shape that it makes, which JAX knows best."""
        self.steps.append(says)
        out = jax.eval_shape(layer, self.params, jax.ShapeDtypeStruct((3, *shape), jnp.float32))
        return layer, out.shape[1:]

    def chain(self, shape: Shape, length: int, depth: int) -> tuple[Layer, Shape]:
        layers = []
        for _ in range(length):
            kinds = [
                self.block,
                self.block,
                self.block,
                self.dense,
                self.dense,
                self.norm,
                self.activation,
                self.activation,
                self.movement,
                self.movement,
            ]
            if len(shape) > 1:
                kinds += [self.conv, self.conv, self.conv, self.conv, self.pool, self.pool, self.mean]
            if depth < 2:
                kinds += [self.residual, self.concat, self.total]
            kind = self.draw(st.sampled_from(kinds))
            nested = kind in (self.residual, self.concat, self.total)
            layer, shape = kind(shape, depth) if nested else kind(shape)  # type: ignore[operator]
            layers.append(layer)

        def run(p: Any, x: Any) -> Any:
            for layer in layers:
                x = layer(p, x)
            return x

        return run, shape

    def block(self, shape: Shape) -> tuple[Layer, Shape]:
        """A conv or dense layer, a norm and an activation, in an order of those that people write."""
        kinds = {"w": self.conv if len(shape) > 1 else self.dense, "n": self.norm, "a": self.activation}
        layers = []
        for letter in self.pick("wna", "nwa", "naw", "waw"):
            layer, shape = kinds[letter](shape)
            layers.append(layer)
        first, second, third = layers
        return (lambda p, x: third(p, second(p, first(p, x)))), shape

    def conv(self, shape: Shape) -> tuple[Layer, Shape]:
        rank, channels = len(shape) - 1, shape[-1]
        groups = self.pick(1, 1, 1, channels, next((g for g in (2, 3, 5) if channels % g == 0), 1))
        features = groups * self.pick(1, 1, 2) if groups > 1 else self.draw(_WIDTHS)
        kernel = tuple(self.pick(1, 1, 3, 3, 5, 2) for _ in range(rank))
        dilation = self.pick(1, 1, 1, 2)
        reach = [(k - 1) * dilation for k in kernel]
        padding = self.pick("SAME", "SAME", "VALID", "asymmetric")
        if padding == "VALID" and any(r >= size for r, size in zip(reach, shape, strict=False)):
            padding = "SAME"
        pads: Any = padding if padding != "asymmetric" else [(r, self.pick(0, 1)) for r in reach]
        name, bias = self.weight(*kernel, channels // groups, features, scale=0.5), self.pick(True, False)
        shift = self.weight(features) if bias else None
        space = "DHW"[3 - rank :]
        numbers = (f"N{space}C", f"{space}IO", f"N{space}C")
        transposed = groups == 1 and dilation == 1 and padding == "SAME" and self.pick(False, False, True)
        strides = (self.pick(1, 1, 2),) * rank

        def run(p: Any, x: Any) -> Any:
            if transposed:
                y = lax.conv_transpose(x, p[name], strides, "SAME", dimension_numbers=numbers)
            else:
                y = lax.conv_general_dilated(
                    x,
                    p[name],
                    strides,
                    pads,
                    rhs_dilation=(dilation,) * rank,
                    dimension_numbers=numbers,
                    feature_group_count=groups,
                )
            return y if shift is None else y + p[shift]

        return self.done(
            shape,
            run,
            f"conv{'_transpose' if transposed else ''} {kernel}, {channels} to {features}, strides {strides}, {pads}, "
            f"dilation {dilation}, groups {groups}, bias {bias}",
        )

    def dense(self, shape: Shape) -> tuple[Layer, Shape]:
        features = self.draw(_WIDTHS)
        name, shift = self.weight(shape[-1], features, scale=0.5), self.weight(features)
        spelling = self.pick("x @ w + b", "einsum", "no bias", "w.T")

        def run(p: Any, x: Any) -> Any:
            if spelling == "einsum":
                return jnp.einsum("...i,io->...o", x, p[name]) + p[shift]
            if spelling == "w.T":
                return jnp.moveaxis(jnp.tensordot(p[name].T, x, ((1,), (x.ndim - 1,))), 0, -1) + p[shift]
            return x @ p[name] + p[shift] if spelling != "no bias" else x @ p[name]

        return self.done(shape, run, f"dense {spelling}, {shape[-1]} to {features}")

    def norm(self, shape: Shape) -> tuple[Layer, Shape]:
        width = shape[-1]
        mean, scale, bias = self.weight(width), self.weight(width, offset=1.0, scale=0.3), self.weight(width)
        var = self.weight(width)
        self.params[var] = np.abs(self.params[var]) + np.float32(0.1)
        spelling = self.pick("flax", "rsqrt", "frozen", "div", "scale only", "c - x")

        def run(p: Any, x: Any) -> Any:
            deviation = jnp.sqrt(p[var] + 1e-3)
            if spelling == "flax":
                return (x - p[mean]) * (lax.rsqrt(p[var] + 1e-3) * p[scale]) + p[bias]
            if spelling == "rsqrt":
                return (x - p[mean]) * lax.rsqrt(p[var] + 1e-3) * p[scale] + p[bias]
            if spelling == "frozen":
                return x * (p[scale] / deviation) + (p[bias] - p[mean] * p[scale] / deviation)
            if spelling == "div":
                return p[scale] * ((x - p[mean]) / deviation) + p[bias]
            return p[scale] * x if spelling == "scale only" else p[bias] - x

        return self.done(shape, run, f"norm {spelling}")

    def activation(self, shape: Shape) -> tuple[Layer, Shape]:
        name = self.pick("relu", *sorted(ACTIVATIONS), "relu6", "clip", "relu")
        return self.done(shape, lambda p, x: ACTIVATIONS[name](x), name)

    def pool(self, shape: Shape) -> tuple[Layer, Shape]:
        window = tuple(self.pick(*range(1, min(3, size) + 1)) for size in shape[:-1])
        strides = (self.pick(1, 2),) * len(window)
        padding, kind = self.pick("SAME", "VALID"), self.pick("max", "avg", "avg without padding")
        size, step = (1, *window, 1), (1, *strides, 1)

        def run(p: Any, x: Any) -> Any:
            if kind == "max":
                return lax.reduce_window(x, -jnp.inf, lax.max, size, step, padding)
            total = lax.reduce_window(x, 0.0, lax.add, size, step, padding)
            if kind == "avg":
                return total / np.float32(np.prod(window))
            return total / lax.reduce_window(jnp.ones_like(x), 0.0, lax.add, size, step, padding)

        return self.done(shape, run, f"{kind} pool {window}, strides {strides}, {padding}")

    def mean(self, shape: Shape) -> tuple[Layer, Shape]:
        axes, keep = tuple(range(1, len(shape))), self.pick(True, False)
        return self.done(shape, lambda p, x: jnp.mean(x, axes, keepdims=keep), f"global mean, keepdims {keep}")

    def movement(self, shape: Shape) -> tuple[Layer, Shape]:
        kind = self.pick("flatten", "transpose", "slice", "pad", "flip", "heads")
        axis = self.draw(st.integers(1, len(shape)))

        def run(p: Any, x: Any) -> Any:
            if kind == "flatten":
                return x.reshape(x.shape[0], -1) if np.prod(x.shape[1:]) <= 128 else x
            if kind == "transpose":
                return jnp.swapaxes(x, 1, x.ndim - 1)
            if kind == "slice":
                return lax.slice_in_dim(x, 0, -(-x.shape[axis] // 2), axis=axis)
            if kind == "pad":
                return jnp.pad(x, [(1, 0) if i == axis else (0, 0) for i in range(x.ndim)])
            if kind == "heads":
                return x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2) if x.shape[-1] % 2 == 0 and x.ndim < 4 else x
            return jnp.flip(x, axis)

        return self.done(shape, run, f"{kind} (axis {axis})")

    def residual(self, shape: Shape, depth: int) -> tuple[Layer, Shape]:
        """x + f(x), f closed by a dense layer that makes x's shape again."""
        body, inner = self.chain(shape, self.pick(1, 2), depth + 1)
        if inner[:-1] != shape[:-1]:
            body, inner = self.dense(shape)
        if inner != shape:
            close, width = self.weight(inner[-1], shape[-1], scale=0.5), body
            body = lambda p, x: width(p, x) @ p[close]  # noqa: E731
        act = ACTIVATIONS[self.draw(st.sampled_from(["relu", "tanh", "relu6"]))]
        return self.done(shape, lambda p, x: act(x + body(p, x)), "residual of those, activation")

    def branches(self, shape: Shape, depth: int) -> tuple[list[Layer], list[Shape]]:
        drawn = [self.chain(shape, self.pick(1, 2), depth + 1) for _ in range(self.pick(2, 3))]
        return [layer for layer, _ in drawn], [out for _, out in drawn]

    def concat(self, shape: Shape, depth: int) -> tuple[Layer, Shape]:
        """Branches of one input side by side; those that changed the spatial shape are left out of the result."""
        layers, shapes = self.branches(shape, depth)
        kept = [layer for layer, out in zip(layers, shapes, strict=True) if out[:-1] == shapes[0][:-1]]
        says = f"concat of {len(kept)} branches"
        return self.done(shape, lambda p, x: jnp.concatenate([layer(p, x) for layer in kept], -1), says)

    def total(self, shape: Shape, depth: int) -> tuple[Layer, Shape]:
        """The sum of parallel dense layers: they merge."""
        width = self.draw(_WIDTHS)
        names = [self.weight(shape[-1], width, scale=0.5) for _ in range(self.pick(2, 3))]
        return self.done(shape, lambda p, x: sum(jax.nn.relu(x @ p[name]) for name in names), f"sum of {len(names)}")
