"""What is timed: matrix products, decoding, the convolutions of ResNet-50; each beside what it is compared with.

A case is a kernel of ours and its baselines, all functions of the same drawn operands in forms of their own. Baselines
compute bias, shortcut and ReLU too, and read and write what a network in their precision does: XLA's int8 convolutions,
which take no uint8, int8.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels import shift
from pallas_kernels.conv import Window, conv, conv_reference
from pallas_kernels.conv import candidates as conv_candidates
from pallas_kernels.epilogue import Epilogue
from pallas_kernels.matmul import candidates, matmul, matmul_reference

Shapes = tuple[tuple[int, ...], ...]
Layers = tuple[tuple[int, int, int, int, int, int, str], ...]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
      name: "matmul 4096x4096x4096".
      types: of the kernel's operands (x, w, epilogue) and, of a convolution, the offset: a network makes it once.
      kernel: the function of them; picklable, with `config` and `interpret`.
      reference: what it equals in every bit.
      baselines: name to the function of the same operands, in the form that `as_float` gives where it is a float's.
      candidates: the kernel's tactics.
      bounds: of the outputs, which the epilogue cuts off.
      operations: multiplications and additions.
      count: how often the layer stands in its network.
    """

    name: str
    group: str
    types: tuple[Any, ...]
    kernel: functools.partial[Any]
    reference: functools.partial[Any]
    baselines: Mapping[str, Callable[..., Any]]
    candidates: Callable[[], tuple[Any, ...]] = field(repr=False)
    operations: int
    bounds: tuple[int, int] = (0, 127)
    count: int = 1

    @property
    def bytes(self) -> int:
        """The least that moves through memory: every operand once, and the output."""
        out = jax.eval_shape(self.reference, *self.types)
        return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves((self.types, out)))


def timed(tiny: bool = False) -> tuple[Case, ...]:
    """All cases, those first whose figures count most; `tiny` ones in the same order, for a machine without a GPU."""
    gemms: Shapes = ((4096,) * 3, (8192,) * 3, (512, 4096, 4096), (128, 11008, 4096))
    decodes: Shapes = tuple((m, n, 4096) for m in (1, 8, 16) for n in (4096, 11008))
    attentions: Shapes = ((96, 512, 512, 64), (96, 512, 64, 512))
    layers: dict[int, Layers] = dict.fromkeys((32, 128), RESNET_50)
    if tiny:
        gemms, decodes, attentions = ((33, 40, 70),), ((1, 24, 64),), ((2, 5, 9, 8),)
        layers = {1: ((7, 3, 8, 7, 2, 1, "relu"), (5, 8, 8, 3, 1, 1, "nothing"), (5, 8, 16, 1, 1, 2, "add relu"))}
    small, *large = layers
    return (
        *(_matmul("gemm", *shape) for shape in gemms[:1]),
        *(_matmul("decode", *shape) for shape in decodes[:1]),
        *(_conv(small, *layer) for layer in layers[small]),
        *(_matmul("gemm", *shape) for shape in gemms[1:]),
        *(_matmul("decode", *shape) for shape in decodes[1:]),
        *(_conv(batch, *layer) for batch in large for layer in layers[batch]),
        *(_matmul("attention", *shape) for shape in attentions),
    )


# Size of the square input, channels in and out, kernel, stride (version 1.5: in the 3x3), how often, what follows.
# What is behind a ReLU is uint8: the input of every layer, and the shortcut that a block's last layer adds.
RESNET_50: Layers = (
    (224, 3, 64, 7, 2, 1, "relu"),
    (56, 64, 64, 1, 1, 1, "relu"),
    (56, 64, 64, 3, 1, 3, "relu"),
    (56, 64, 256, 1, 1, 3, "add relu"),
    (56, 64, 256, 1, 1, 1, "nothing"),
    (56, 256, 64, 1, 1, 2, "relu"),
    (56, 256, 128, 1, 1, 1, "relu"),
    (56, 128, 128, 3, 2, 1, "relu"),
    (28, 128, 512, 1, 1, 4, "add relu"),
    (56, 256, 512, 1, 2, 1, "nothing"),
    (28, 512, 128, 1, 1, 3, "relu"),
    (28, 128, 128, 3, 1, 3, "relu"),
    (28, 512, 256, 1, 1, 1, "relu"),
    (28, 256, 256, 3, 2, 1, "relu"),
    (14, 256, 1024, 1, 1, 6, "add relu"),
    (28, 512, 1024, 1, 2, 1, "nothing"),
    (14, 1024, 256, 1, 1, 5, "relu"),
    (14, 256, 256, 3, 1, 5, "relu"),
    (14, 1024, 512, 1, 1, 1, "relu"),
    (14, 512, 512, 3, 2, 1, "relu"),
    (7, 512, 2048, 1, 1, 3, "add relu"),
    (14, 1024, 2048, 1, 2, 1, "nothing"),
    (7, 2048, 512, 1, 1, 2, "relu"),
    (7, 512, 512, 3, 1, 2, "relu"),
)


def draw(types: Any, bounds: tuple[int, int], seed: int) -> Any:
    """Random operands of those types on the default device: bytes over all of their range, and an epilogue that gives
    outputs over all of theirs, about half of them cut off by ReLU."""
    x, w, epilogue, *offset = types
    rng = np.random.default_rng(seed)
    depth, channels = math.prod(w.shape[1:]) if len(w.shape) > 3 else w.shape[-1], epilogue.multiplier.shape
    spread = 73 / (73 * 73 * math.sqrt(max(depth, 1)))  # the deviation of bytes is 73: that of y is so, too
    w_array, residual = jnp.asarray(_bytes(rng, w)), epilogue.residual
    return (
        jnp.asarray(_bytes(rng, x)),
        w_array,
        Epilogue(
            multiplier=jnp.asarray(rng.uniform(0.5 * spread, 1.5 * spread, channels), jnp.float32),
            bias=jnp.asarray(rng.normal(0, 30, channels), jnp.float32),
            lo=jnp.full(channels, bounds[0], jnp.float32),
            hi=jnp.full(channels, bounds[1], jnp.float32),
            residual=None if residual is None else jnp.asarray(_bytes(rng, residual)),
            residual_multiplier=None if residual is None else jnp.float32(0.5),
        ),
        *(shift.offset(w_array, range(1, w_array.ndim)) for _ in offset),
    )


def _bytes(rng: np.random.Generator, kind: Any) -> np.ndarray:
    """Drawn on the host, from one pool of 16 MB: to draw all of a large array takes longer than all that is timed."""
    pool = _pool(kind.dtype.name)
    start = int(rng.integers(len(pool)))
    return np.resize(np.roll(pool, -start), kind.shape)


@functools.cache
def _pool(dtype: str) -> np.ndarray:
    bounds = (0, 256) if dtype == "uint8" else (-127, 128)
    return np.random.default_rng(0).integers(*bounds, 2**24, np.int16).astype(dtype)


def as_float(operands: Any, dtype: Any) -> Any:
    """The operands as a network in that float dtype has them: x, w, the bias and, where there is one, the residual."""
    x, w, epilogue, *_ = operands
    residual = [] if epilogue.residual is None else [epilogue.residual]
    x, w, *residual = ((v.astype(dtype) / 127).astype(dtype) for v in (x, w, *residual))
    return x, w, epilogue.bias.astype(dtype), *residual


def as_int8(operands: Any) -> Any:
    """The operands as a network has them that knows no uint8: of its bytes, the lowest bit is lost."""
    return jax.tree.map(lambda v: (v >> 1).astype(jnp.int8) if v.dtype == jnp.uint8 else v, operands[:3])


# ------------------------------------------------------------------------------------------------------------- matmul


def _epilogue_types(channels: int) -> Epilogue:
    return Epilogue(*[jax.ShapeDtypeStruct((channels,), jnp.float32)] * 4)


def _matmul(group: str, *shape: int) -> Case:
    """Of x (..., M, K) and w (..., N, K), given (..., M, N, K)."""
    *batch, m, n, k = shape
    x, w = (jax.ShapeDtypeStruct((*batch, rows, k), jnp.int8) for rows in (m, n))
    types = (x, w, _epilogue_types(n))
    reference = functools.partial(matmul_reference, out_dtype=jnp.int8)
    return Case(
        f"matmul {'x'.join(map(str, shape))}",
        group,
        types,
        functools.partial(matmul, out_dtype=jnp.int8),
        reference,
        {
            "XLA int8": reference,
            "bf16": _float_matmul,
            "f32": _float_matmul,
        },
        functools.partial(candidates, *types, out_dtype=jnp.int8),
        2 * math.prod(batch) * m * n * k,
    )


def _float_matmul(x: jax.Array, w: jax.Array, bias: jax.Array) -> jax.Array:
    batch = tuple(range(x.ndim - 2))
    y = lax.dot_general(x, w, (((x.ndim - 1,), (w.ndim - 1,)), (batch, batch)), preferred_element_type=x.dtype)
    return jnp.maximum(y + bias, 0)


# --------------------------------------------------------------------------------------------------------------- conv


def _conv(batch: int, *layer: Any) -> Case:
    size, channels, features, kernel, stride, count, behind = layer
    window = Window((stride,) * 2, ((kernel // 2,) * 2,) * 2, (1, 1), (1, 1))
    out, relu = -(-size // stride), behind != "nothing"
    out_dtype, epilogue = jnp.uint8 if relu else jnp.int8, _epilogue_types(features)
    if behind == "add relu":
        residual = jax.ShapeDtypeStruct((batch, out, out, features), jnp.uint8)
        factor = jax.ShapeDtypeStruct((), jnp.float32)
        epilogue = dataclasses.replace(epilogue, residual=residual, residual_multiplier=factor)
    x = jax.ShapeDtypeStruct((batch, size, size, channels), jnp.uint8)
    w = jax.ShapeDtypeStruct((features, kernel, kernel, channels), jnp.int8)
    name = f"conv {batch}x{size}x{size}x{channels} {kernel}x{kernel}/{stride} {features}"
    given = {"window": window, "out_dtype": out_dtype}
    return Case(
        name + {"relu": "", "add relu": " + shortcut", "nothing": " linear"}[behind],
        f"ResNet-50 at {batch}",
        (x, w, epilogue, jax.ShapeDtypeStruct((features,), jnp.int32)),
        functools.partial(_conv_kernel, **given),
        functools.partial(_conv_reference, **given),
        {
            "XLA int8": functools.partial(_int8_conv, window=window),
            "bf16": functools.partial(_float_conv, window=window, relu=relu),
            "f32": functools.partial(_float_conv, window=window, relu=relu),
        },
        functools.partial(conv_candidates, x, w, epilogue, **given),
        2 * batch * out * out * features * kernel * kernel * channels,
        (0, 255) if relu else (-127, 127),
        count,
    )


def _conv_kernel(x: jax.Array, w: jax.Array, epilogue: Epilogue, offset: jax.Array, **given: Any) -> jax.Array:
    return conv(x, w, epilogue, offset=offset, **given)


def _conv_reference(x: jax.Array, w: jax.Array, epilogue: Epilogue, offset: jax.Array, **given: Any) -> jax.Array:
    del offset
    return conv_reference(x, w, epilogue, **given)


def _xla_conv(x: jax.Array, w: jax.Array, window: Window, dtype: Any) -> jax.Array:
    return lax.conv_general_dilated(
        x, w, window.strides, window.padding, dimension_numbers=("NHWC", "OHWI", "NHWC"), preferred_element_type=dtype
    )


def _int8_conv(x: jax.Array, w: jax.Array, epilogue: Epilogue, *, window: Window) -> jax.Array:
    """cuDNN's, the only int8 convolution that XLA has for a GPU: its sums leave it as float32 (exact below 2**24)."""
    y = _xla_conv(x, w, window, jnp.int32).astype(jnp.float32) * epilogue.multiplier + epilogue.bias
    if epilogue.residual is not None:
        y = y + epilogue.residual.astype(jnp.float32) * epilogue.residual_multiplier
    y = jnp.clip(y, epilogue.lo, jnp.minimum(epilogue.hi, 127))
    return lax.round(y, lax.RoundingMethod.TO_NEAREST_EVEN).astype(jnp.int8)


def _float_conv(
    x: jax.Array, w: jax.Array, bias: jax.Array, residual: jax.Array | None = None, *, window: Window, relu: bool
) -> jax.Array:
    y = _xla_conv(x, w, window, x.dtype) + bias
    y = y if residual is None else y + residual
    return jnp.maximum(y, 0) if relu else y
