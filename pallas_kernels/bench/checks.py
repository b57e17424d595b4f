"""What is checked: every kernel on shapes that fit no tile, on random and on saturating bytes, in poisoned memory."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import borders
from pallas_kernels.conv import Window, conv, conv_reference
from pallas_kernels.conv import candidates as conv_candidates
from pallas_kernels.conv.window import Geometry
from pallas_kernels.epilogue import Epilogue
from pallas_kernels.matmul import MmaConfig, Tcgen05Config, WgmmaConfig, kernels, matmul, matmul_reference, tma

BOUNDS: dict[str, tuple[float, float]] = {
    "int8": (-127, 127),
    "uint8": (0, 255),
    "float32": (-math.inf, math.inf),
    "bfloat16": (-math.inf, math.inf),
}
MASKS = np.array([np.finfo(np.float32).min, -np.inf], np.float32)
POISONS = (0x5A, 0xA5)  # no element is right by chance under both


@dataclass(frozen=True)
class Check:
    """A kernel and its reference, picklable functions of the same operands."""

    name: str
    kernel: functools.partial[Any]
    reference: functools.partial[Any]
    operands: Callable[[], tuple[Any, ...]]


def checks(tiny: bool = False) -> tuple[Check, ...]:
    """All checks; `tiny` ones for a machine without a GPU: every kernel that takes a product on the GPU in use, however
    slow it is there, and every kernel among a convolution's candidates."""
    return (*_matmuls(tiny), *_convs(tiny), *_borders(tiny))


def poisoned(function: Callable[..., Any]) -> Any:
    """The jitted function of a poison and the operands: the poison, an array of the output's type, is donated, so that
    XLA puts the output into its memory."""
    return jax.jit(lambda poison, *operands: function(*operands), donate_argnums=0, keep_unused=True)


def difference(run: Callable[..., Any], operands: tuple[Any, ...], expected: np.ndarray | jax.Array) -> str | None:
    """How the bits of a function made by `poisoned` differ from the expected; or None."""
    for pattern in POISONS:
        poison = jnp.asarray(np.full(expected.nbytes, pattern, np.uint8).view(expected.dtype).reshape(expected.shape))
        poison = poison.copy()  # on a CPU it may be numpy's memory, which cannot be donated
        address = poison.unsafe_buffer_pointer()
        out = run(poison, *operands)
        if out.unsafe_buffer_pointer() != address:
            return "the output is not where the poison was"
        wrong = int(_differing(out, expected))
        if wrong:
            return f"{wrong} of {out.size} elements differ"
    return None


def _differing(ours: Any, theirs: Any) -> Any:
    xp: Any = jnp if isinstance(theirs, jax.Array) else np
    kind = f"uint{8 * theirs.dtype.itemsize}"
    return xp.sum(xp.asarray(ours).view(kind) != theirs.view(kind), dtype=xp.int32)


def on_cpu(function: Callable[..., Any], operands: Any) -> np.ndarray:
    """The function's result, computed on the host."""
    host = jax.devices("cpu")[0]
    with jax.default_device(host):
        return np.asarray(jax.jit(function)(*jax.device_put(operands, host)))


# ------------------------------------------------------------------------------------------------------ what is drawn


@dataclass(frozen=True)
class Form:
    """Dtypes of the operands and the output, what the epilogue holds; `full`: all bytes of the largest magnitude."""

    x: str = "int8"
    w: str = "int8"
    out: str = "int8"
    residual: str | None = None
    table: bool = False
    full: bool = False

    def __str__(self) -> str:
        residual = f" + {self.residual}" if self.residual else ""
        return f"{self.x} {self.w}{residual} to {self.out}{' table' * self.table}{' full' * self.full}"


FORMS = (
    Form(),
    Form("uint8", out="uint8", residual="int8"),
    Form(out="float32", residual="float32"),
    Form("uint8", out="bfloat16", residual="bfloat16"),
    Form(residual="uint8", table=True),
    Form(out="int32"),
)
# Products of two activations have bytes of either sign on both sides; a convolution's weights are signed.
PRODUCTS = (*FORMS, Form("uint8", "uint8"), Form("int8", "uint8", out="float32"))
FULL = (Form(full=True), Form("uint8", full=True))


def _operands(
    seed: int, form: Form, x: tuple[int, ...], w: tuple[int, ...], out: tuple[int, ...]
) -> tuple[jax.Array, jax.Array, Epilogue | None]:
    rng = np.random.default_rng(seed)
    depth = math.prod(w[1:]) if len(w) > 3 else w[-1]
    x_array, w_array = (jnp.asarray(_bytes(rng, *of, form.full)) for of in ((form.x, x), (form.w, w)))
    return x_array, w_array, None if form.out == "int32" else _epilogue(rng, form, depth, out)


def _bytes(rng: np.random.Generator, dtype: str, shape: tuple[int, ...], full: bool) -> np.ndarray:
    lo, hi = BOUNDS[dtype]
    if full:
        return np.full(shape, hi if dtype == "uint8" else lo, dtype)
    return rng.integers(int(lo), int(hi) + 1, shape).astype(dtype)


def _epilogue(rng: np.random.Generator, form: Form, depth: int, shape: tuple[int, ...]) -> Epilogue:
    """Outputs fill the range of their dtype and partly saturate; some channels have a ReLU."""
    channels = shape[-1]
    lo, hi = BOUNDS["int8" if form.table else form.out]
    table = residual = None
    if form.table:
        table = jnp.asarray(rng.integers(0, 127, 256).astype(np.float32)).astype(form.out)
    if form.residual is not None:
        drawn = rng.integers(0, 127, shape).astype(np.float32)
        if jnp.issubdtype(form.residual, jnp.floating):  # as a mask has them: their products are not finite
            drawn = np.where(rng.random(shape) < 0.1, rng.choice(MASKS, shape), drawn)
        residual = jnp.asarray(drawn.astype(np.float32)).astype(form.residual)
    return Epilogue(
        multiplier=jnp.asarray((rng.uniform(0.2, 2, channels) / (60 * np.sqrt(depth + 1))).astype(np.float32)),
        bias=jnp.asarray(rng.normal(0, 30, channels).astype(np.float32)),
        lo=jnp.asarray(np.where(rng.random(channels) < 0.3, max(lo, 0), lo).astype(np.float32)),
        hi=jnp.full(channels, hi, jnp.float32),
        residual=residual,
        residual_multiplier=None if residual is None else jnp.float32(1.37),
        table=table,
    )


def _kinds(configs: Sequence[Any]) -> tuple[Any, ...]:
    """The first config of every class: each class is a kernel of its own."""
    return tuple({type(config): config for config in reversed(configs)}.values())


# -------------------------------------------------------------------------------------------------------------- kernels

MATMULS = ((1, 64, 64), (7, 13, 21), (300, 129, 515), (129, 258, 1040), (3, 65, 33, 70))  # (..., M, N, K)
# What the TMA takes: edges that cut tiles in M, N and K, a last block of a cluster without a row of its own, and more
# tiles than all blocks have at first, so that slots are used again and barriers turn several times.
TMA_MATMULS = ((5, 136, 32), (72, 96, 416), (200, 160, 192), (264, 64, 64), (3, 8, 32, 48), (600, 8, 32, 96))
TMA_CONFIGS = (
    WgmmaConfig(64, 64, 2),
    WgmmaConfig(128, 64, 2, cluster=2),
    WgmmaConfig(256, 64, 2),
    Tcgen05Config(64, 2),
    Tcgen05Config(256, 2),
)
# More tiles than a persistent grid has programs.
WALKED, WALKING = (3, 300, 129, 70), MmaConfig(16, 16, 64, residents=1)
# x, features, kernel, strides, padding, dilation, groups
CONVS: tuple[tuple[Any, ...], ...] = (
    ((2, 9, 11, 5), 7, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((2, 15, 13, 3), 40, (7, 7), (2, 2), ((3, 3), (3, 3)), (1, 1), 1),
    ((1, 8, 10, 70), 33, (3, 2), (2, 1), ((0, 2), (3, 1)), (1, 2), 1),
    ((3, 7, 7, 32), 65, (1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), 1),
    ((2, 9, 8, 36), 36, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 36),
    ((2, 9, 8, 20), 40, (5, 5), (2, 2), ((2, 2), (2, 2)), (1, 1), 20),
    ((2, 9, 8, 64), 96, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 2),
    ((2, 9, 8, 12), 18, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 3),
    ((2, 30, 20), 24, (4,), (2,), ((1, 2),), (1,), 1),
)
BORDERS = (((3, 5, 7), ()), ((33, 257), (257,)), ((2, 1000, 3), (3,)))  # x, factor


def _matmuls(tiny: bool) -> Iterator[Check]:
    wide = ((5, 70, 4099), (70, 80, 4096))
    cases = [*itertools.product(MATMULS, PRODUCTS), *itertools.product(wide, FULL)]
    cases.append(((2, 9, 140_000), FORMS[1]))  # beyond what int32 holds: K is split
    if tiny:
        cases = [(MATMULS[1], FORMS[1]), (MATMULS[1], FULL[1])]
    for seed, (shape, form) in enumerate(cases):
        operands = _product(seed, shape, form)
        types = jax.eval_shape(operands)
        for kind, kernel in kernels(*types, out_dtype=form.out).items():
            config = kernel.candidates(*types, out_dtype=form.out)[0]
            yield _matmul(shape, form, operands, config, kind.__name__)
    for seed, form in enumerate(() if tiny else FORMS):
        operands = _product(seed, WALKED, form)
        if MmaConfig in kernels(*jax.eval_shape(operands), out_dtype=form.out):
            yield _matmul(WALKED, form, operands, WALKING, str(WALKING))
    for seed, (shape, form) in enumerate(() if tiny else itertools.product(TMA_MATMULS, FORMS)):
        operands = _product(seed, shape, form)
        types = jax.eval_shape(operands)
        for kind, kernel in kernels(*types, out_dtype=form.out).items():
            given = [config for config in TMA_CONFIGS if isinstance(config, kind)]
            fitting = [c for c in given if tma.shared_bytes(c, types[2], form.out) <= tma.SHARED_BYTES]
            best = kernel.candidates(*types, out_dtype=form.out)[:1] if given else ()
            for config in dict.fromkeys((*fitting, *best)):
                yield _matmul(shape, form, operands, config, str(config))


def _product(seed: int, shape: tuple[int, ...], form: Form) -> functools.partial[Any]:
    *batch, m, n, k = shape
    return functools.partial(_operands, seed, form, (*batch, m, k), (*batch, n, k), (*batch, m, n))


def _matmul(shape: tuple[int, ...], form: Form, operands: functools.partial[Any], config: Any, by: str) -> Check:
    return Check(
        f"matmul {'x'.join(map(str, shape))} {form} by {by}",
        functools.partial(matmul, out_dtype=form.out, config=config),
        functools.partial(matmul_reference, out_dtype=form.out),
        operands,
    )


def _convs(tiny: bool) -> Iterator[Check]:
    cases = [*itertools.product(CONVS, FORMS[:5]), *itertools.product(CONVS[:2], FULL)]
    if tiny:
        cases = [(CONVS[0], FORMS[1]), (CONVS[4], FORMS[2])]
    for seed, ((x, features, kernel, strides, padding, dilation, groups), form) in enumerate(cases):
        w = (features, *kernel, x[-1] // groups)
        window = Window(strides, padding, dilation, (1,) * len(kernel), groups)
        arrays = jax.ShapeDtypeStruct(x, form.x), jax.ShapeDtypeStruct(w, form.w)
        operands = functools.partial(_operands, seed, form, x, w, Geometry.of(*arrays, window).out_shape)
        reference = functools.partial(conv_reference, window=window, out_dtype=form.out)
        for config in _kinds(conv_candidates(*jax.eval_shape(operands), window=window, out_dtype=form.out)):
            function = functools.partial(conv, window=window, out_dtype=form.out, config=config)
            strided = "x".join(map(str, strides))
            name = (
                f"conv {'x'.join(map(str, x))} {'x'.join(map(str, kernel))}/{strided} {features} in {groups} "
                f"{form} by {type(config).__name__}"
            )
            yield Check(name, function, reference, operands)


def _borders(tiny: bool) -> Iterator[Check]:
    cases = [*itertools.product(BORDERS, borders.FLOATS, ("int8", "uint8"))]
    for seed, ((shape, channels), floating, integer) in enumerate(cases[1::7] if tiny else cases):
        words = f"{'x'.join(map(str, shape))} {'by channel' if channels else ''}"
        for name, source, target in (("quantize", floating, integer), ("dequantize", integer, floating)):
            yield Check(
                f"{name} {words} {source} to {target}",
                functools.partial(getattr(borders, name), dtype=target),
                functools.partial(getattr(borders, f"{name}_reference"), dtype=target),
                functools.partial(_border, seed, shape, channels, source),
            )


def _border(seed: int, shape: tuple[int, ...], channels: tuple[int, ...], dtype: str) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    factor = jnp.asarray(rng.uniform(0.5, 2, channels), jnp.float32)
    if dtype in BOUNDS and dtype.endswith("int8"):
        return jnp.asarray(rng.integers(0, 256, shape).astype(np.uint8).view(dtype)), factor
    x = np.where(rng.random(shape) < 0.05, np.nan, np.round(rng.normal(0, 150, shape)) / 2)  # ties among them
    return jnp.asarray(x.astype(np.float32)).astype(dtype), factor
