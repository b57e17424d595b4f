"""quantize, dequantize, epilogue: the only rounding code in jaxq.

    real = scale * (q - zero_point)
    q = convert(round_half_even(clip(real / scale + zero_point)))

int8 lies in [-127, 127], uint8 in [0, 255]; NaN becomes 0. Only uint8 values that can be negative, and int8 values
that tables read, have a zero point other than 0. The constants below hold it: as sums are of raw integers, bias[c]
contains -multiplier[c] * zero_point * sum(w[c]), the like for the residual, and the zero point of the output, by which
the bounds are moved too.

The epilogue of every accumulating op, in float32 and in this order:

    y = acc * multiplier[c]                                 multiplier = scale_in * scale_weight[c] / scale_out
    y = y + bias[c]                                         bias in units of scale_out
    y = y + residual * residual_multiplier                  residual_multiplier = scale_residual / scale_out
    y = clip(y, lo[c], hi[c])                               the activation's bounds, cut to the output dtype's range
    out = convert(round_half_even(y))                       for an integer output; a float output is y itself
    out = table[convert(round_half_even(y))]                where a table follows: y is then in the scale of its input

Rows with scales of their own, which a dot computes from the float rows (..., K) that it reads ("per token"):

    x = x * factor[k]                                       where scale_in is one of each channel: 1 / scale_in[k]
    row_scale = clip(max(|x|), smallest, largest) * (1 / 127)       of the row; NaN counts as 0
    q = convert(round_half_even(clip(x * (1 / row_scale)))) int8, as above

A row of zeros has the smallest scale, one with an infinite value the largest: both scales and their inverses are normal
numbers. real = scale_in * row_scale * q, with 1 for scale_in where there is no factor, and the epilogue begins

    y = (acc * multiplier[c]) * row_scale

A weight-only dot takes float activations: w[n, k] = level[n, k] * scale[n, k // group_size], in float32, and sums in
float32 in any order. Levels of 4 bits lie two to a byte, that of the even input in its low half.

Each product is rounded before it is added. Compilers contract a * b + c to a fused multiply-add, which skips that
rounding; a clamp at the largest finite float on the product keeps the two apart and changes no finite value.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BOUNDS = {"int8": (-127.0, 127.0), "uint8": (0.0, 255.0)}
LARGEST = float(np.finfo(np.float32).max)


def max_terms(largest: int) -> int:
    """How many terms of at most that magnitude an int32 accumulator holds: 133,144 products of int8 and int8 weights,
    66,311 of uint8 and int8 weights."""
    return (2**31 - 1) // largest


def largest_level(dtype: str) -> int:
    """The largest integer level of a quantized dtype: scale = threshold / largest_level."""
    return int(BOUNDS[dtype][1])


def zero_point(offset: float, scale: float) -> int:
    """The integer that stands for the value 0 where the integer 0 stands for the value `offset`."""
    return round(-offset / scale)


def _rounded(product: jax.Array) -> jax.Array:
    return jnp.clip(product, jnp.float32(-LARGEST), jnp.float32(LARGEST))


def _to_integer(y: jax.Array, dtype: str) -> jax.Array:
    """Round half to even and convert; `y` is already within the bounds of `dtype`."""
    return lax.round(y, lax.RoundingMethod.TO_NEAREST_EVEN).astype(dtype)


def quantize(x: jax.Array, multiplier: jax.Array, zero_point: jax.Array | None = None, *, dtype: str) -> jax.Array:
    """Float `x` to int8 or uint8; `multiplier` is 1 / scale in float32, a scalar or one per last-axis channel;
    `zero_point` a whole float32."""
    y = x.astype(jnp.float32)
    y = jnp.where(jnp.isnan(y), jnp.float32(0), y) * multiplier
    if zero_point is not None:
        y = _rounded(y) + zero_point
    lo, hi = BOUNDS[dtype]
    return _to_integer(jnp.clip(y, jnp.float32(lo), jnp.float32(hi)), dtype)


def row_scale(x: jax.Array, factor: jax.Array | None = None) -> jax.Array:
    """The scale of each row of float `x` (..., K) in int8: float32 (..., 1). `factor` is float32 (K,), K not 0."""
    magnitude = jnp.abs(_factored(x, factor))
    amax = jnp.max(jnp.where(jnp.isnan(magnitude), jnp.float32(0), magnitude), axis=-1, keepdims=True)
    # A division by 127 some compilers would make a product, rounded otherwise, of their own accord.
    return jnp.clip(amax, jnp.float32(SMALLEST_AMAX), jnp.float32(LARGEST)) * jnp.float32(1 / largest_level("int8"))


def quantize_rows(x: jax.Array, scale: jax.Array, factor: jax.Array | None = None) -> jax.Array:
    """Float `x` (..., K) to int8 by its rows' scales, float32 (..., 1), and the `factor` that these were made with."""
    return quantize(_factored(x, factor), 1 / scale, dtype="int8")


def _factored(x: jax.Array, factor: jax.Array | None) -> jax.Array:
    y = x.astype(jnp.float32)
    return y if factor is None else y * factor


def dequantize(q: jax.Array, scale: jax.Array, zero_point: jax.Array | None = None, *, dtype: np.dtype) -> jax.Array:
    """int8 or uint8 `q` to the float `dtype`: scale * (q - zero_point), computed in float32."""
    y = q.astype(jnp.float32)
    return ((y if zero_point is None else y - zero_point) * scale).astype(dtype)


@jax.custom_jvp
def _round_straight_through(y: jax.Array) -> jax.Array:
    return lax.round(y, lax.RoundingMethod.TO_NEAREST_EVEN)


@_round_straight_through.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return _round_straight_through(*primals), tangents[0]


def to_levels(
    x: jax.Array, scale: jax.Array, zero_point: jax.Array | None = None, *, lowest: float, highest: float
) -> jax.Array:
    """The integers in [lowest, highest] that stand for float `x`, as float32. `scale` is a scalar or broadcasts to x.
    Rounding passes gradients through, clipping none."""
    y = x.astype(jnp.float32) * (1 / scale)
    if zero_point is not None:
        y = y + zero_point
    return _round_straight_through(jnp.clip(y, jnp.float32(lowest), jnp.float32(highest)))


def fake_quantize(
    x: jax.Array, scale: jax.Array, zero_point: jax.Array | None = None, *, lowest: float, highest: float
) -> jax.Array:
    """Float `x` rounded to the numbers that integers in [lowest, highest] stand for: dequantize(quantize(x)), in float.

    Rounding passes gradients through; what is clipped passes none to x, and to the scale those of its bound (LSQ,
    arXiv 1902.08153).
    """
    q = to_levels(x, scale, zero_point, lowest=lowest, highest=highest)
    return ((q if zero_point is None else q - zero_point) * scale).astype(x.dtype)


def fake_quantize_rows(x: jax.Array, channels: jax.Array | None = None) -> jax.Array:
    """Float `x` (..., K) rounded to what its rows in int8 stand for, each with its scale; it is divided by `channels`,
    float32 (K,), before."""
    y = x if channels is None else x.astype(jnp.float32) * (1 / channels)
    lowest, highest = BOUNDS["int8"]
    rounded = fake_quantize(y, row_scale(y), lowest=lowest, highest=highest)
    return rounded if channels is None else (rounded * channels).astype(x.dtype)


def lookup(q: jax.Array, table: jax.Array) -> jax.Array:
    """The entry of `table` (256,) for every int8 or uint8 `q`: entry i is that of the integer whose byte is i."""
    index = lax.bitcast_convert_type(q, jnp.uint8).astype(jnp.int32)
    return table.at[index].get(mode="promise_in_bounds")


def levels(dtype: str) -> np.ndarray:
    """The integer that each byte is in the dtype, int32 (256,): the order of a table's entries."""
    return np.arange(256, dtype=np.uint8).view(dtype).astype(np.int32)


def epilogue(
    acc: jax.Array,
    multiplier: jax.Array,
    bias: jax.Array,
    lo: jax.Array,
    hi: jax.Array,
    residual: jax.Array | None = None,
    residual_multiplier: jax.Array | None = None,
    table: jax.Array | None = None,
    row_scale: jax.Array | None = None,
    *,
    dtype: np.dtype,
) -> jax.Array:
    """The int32 accumulator `(..., C)` to the output dtype; see the module's docstring for the arithmetic.

    `multiplier`, `bias`, `lo`, `hi` are float32 `(C,)`; `residual` broadcasts to the accumulator's shape and is int8,
    uint8 or float; `residual_multiplier` is a float32 scalar; `table` is of `dtype` (256,), looked up by int8;
    `row_scale` is float32 `(..., 1)`.
    """
    y = _rounded(acc.astype(jnp.float32) * multiplier)
    if row_scale is not None:
        y = _rounded(y * row_scale)
    y = y + bias
    if residual is not None and residual_multiplier is not None:
        y = y + _rounded(residual.astype(jnp.float32) * residual_multiplier)
    y = jnp.clip(y, lo, hi)
    if table is not None:
        return lookup(_to_integer(y, "int8"), table)
    dtype = np.dtype(dtype)
    return _to_integer(y, dtype.name) if dtype.name in BOUNDS else y.astype(dtype)


def weight_levels(bits: int, in_groups: bool = False) -> tuple[int, int]:
    """The least and the largest level of a weight: of 8 bits -127 and 127; of 4 bits -7 and 7, or in groups, whose
    scale may be negative, -8 and 7."""
    largest = 2 ** (bits - 1) - 1
    return -largest - (bits == 4 and in_groups), largest


def quantize_weight(
    weight: np.ndarray, *, method: str = "amax", per_channel: bool = True, bits: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """A float weight whose last axis is the output channel to (int8 weight, float64 scale per output channel).

    scale[c] = t / 127, or t / 7 for weights of 4 bits, which lie in [-7, 7]; with a positive floor, so that a dead
    channel (folded batch norms leave some) has a finite scale.
    By "amax" t is the largest magnitude in the channel, and nothing is clipped; by "mse" it is the fraction of that,
    0.30 to 1 by 0.02, which makes the squared error of the channel's weights least (ties go to the larger). Unless
    `per_channel`, the channels share one t, that of all weights.
    """
    columns = np.asarray(weight, np.float64).reshape(-1, weight.shape[-1])
    bounds = weight_levels(bits)
    scale = _scale(columns if per_channel else columns.reshape(-1, 1), method, bounds)
    scale = np.broadcast_to(scale, weight.shape[-1:]).copy()
    return nearest_levels(weight, scale, bounds).astype(np.int8), scale


def _scale(columns: np.ndarray, method: str, bounds: tuple[int, int]) -> np.ndarray:
    """A float64 scale for each column, whose largest weights are at the least level of `bounds`."""
    amax = np.maximum(np.max(np.abs(columns), axis=0, initial=0.0), SMALLEST_AMAX)
    threshold = amax if method == "amax" else amax * _best_fraction(columns, amax, bounds)
    return threshold / -bounds[0]


def nearest_levels(weight: np.ndarray, scale: np.ndarray | np.floating, bounds: tuple[int, int]) -> np.ndarray:
    """The level nearest to each weight within the bounds, in its dtype; halves go to even."""
    return np.clip(np.rint(weight / scale), *bounds)


def _best_fraction(columns: np.ndarray, amax: np.ndarray, bounds: tuple[int, int]) -> np.ndarray:
    """For each column the fraction of `amax` at which clipping its weights and rounding them errs least."""
    relative = (columns / amax).astype(np.float32)  # float32: it only chooses
    best, least = np.ones(len(amax)), np.full(len(amax), np.inf)
    for fraction in np.linspace(1.0, 0.3, 36):
        scale = np.float32(fraction / -bounds[0])
        error = nearest_levels(relative, scale, bounds) * scale - relative
        summed = np.einsum("kc,kc->c", error, error)
        best, least = np.where(summed < least, fraction, best), np.minimum(summed, least)
    return best


# Group sizes are multiples of it.
GROUP_STEP = 16


def quantize_groups(
    weight: np.ndarray, *, group_size: int, method: str = "amax", bits: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """A float weight (N, K) to (int8 levels (N, K), float32 scale (N, groups)): every `group_size` inputs, and the
    fewer that may be left at the end, have a scale for each output channel, found as `quantize_weight` does.

    Of 4 bits there is a level more below 0 than above it. A group's scale has the sign by which its largest weight lies
    below: by "amax", w = -8 * scale.
    """
    channels, depth = weight.shape
    count = -(-depth // group_size)
    padded = np.pad(weight, ((0, 0), (0, count * group_size - depth)))
    columns = padded.astype(np.float64).reshape(channels * count, group_size).T
    bounds = weight_levels(bits, in_groups=True)
    sign = np.ones(columns.shape[1])
    if bounds[0] + bounds[1]:
        sign[columns.max(axis=0, initial=0.0) > -columns.min(axis=0, initial=0.0)] = -1
    scale = sign * _scale(columns * sign, method, bounds)
    levels = nearest_levels(columns, scale, bounds).astype(np.int8)
    return levels.T.reshape(channels, -1)[:, :depth], scale.astype(np.float32).reshape(channels, count)


def dequantize_groups(levels: jax.Array, scale: jax.Array, group_size: int) -> jax.Array:
    """The float32 weight (N, K) of int8 levels (N, K) and their scale (N, groups)."""
    return levels.astype(jnp.float32) * jnp.repeat(scale, group_size, axis=1)[:, : levels.shape[1]]


def pack_int4(levels: np.ndarray) -> np.ndarray:
    """Levels (N, K) of 4 bits as uint8 (N, ceil(K / 2)); half a byte that is left is 0."""
    nibbles = np.pad(levels, ((0, 0), (0, levels.shape[1] % 2))).view(np.uint8) & 15
    return nibbles[:, 0::2] | nibbles[:, 1::2] << 4


def int4_halves(packed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The levels of the even inputs and those of the odd ones, int8, of what `pack_int4` gave."""
    byte = lax.bitcast_convert_type(packed, jnp.int8)
    return byte << 4 >> 4, byte >> 4


def unpack_int4(packed: jax.Array, depth: int) -> jax.Array:
    """The int8 levels (N, depth) of what `pack_int4` gave."""
    return jnp.stack(int4_halves(packed), axis=-1).reshape(packed.shape[0], -1)[:, :depth]


# Below this a weight, or a row of an activation, contributes nothing to any float32 sum that a network forms, and its
# scale stays far above the subnormal numbers, which some devices flush to zero.
SMALLEST_AMAX = 1e-20
