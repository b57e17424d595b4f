"""The JAX primitives that a plan can hold: each by a portable name, its parameters as plain data, and the `jax.lax`
function that rebinds it at any batch size, under any transformation and in any supported JAX version.

A row of `TABLE` is (primitive, name, parameters to data, function of arrays and data). Dispatch is on the primitive
object, because names change between JAX versions. To let plans hold one more primitive, add its row to `_ROWS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.extend.core import primitives as jp

Data = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """`read` takes an equation to its parameters as plain data, which has the names `attrs`; `apply` takes arrays and
    that data to the result(s). The primitive is None where this JAX does not have it, but a plan from another JAX may
    hold its name."""

    primitive: Primitive | None
    name: str
    attrs: tuple[str, ...]
    read: Callable[[Any], Data]
    apply: Callable[..., Any]


def _plain(value: Any) -> Any:
    """Dimension numbers, dtypes, enumerations and the like as nested tuples, strings and ints."""
    if isinstance(value, tuple | list):
        return tuple(_plain(item) for item in value)
    if isinstance(value, lax.Precision):
        return value.name
    if isinstance(value, lax.GatherScatterMode):
        return str(value.name)
    if isinstance(value, lax.RoundingMethod | lax.FftType):
        return int(value)
    if isinstance(value, np.dtype | type):
        return np.dtype(value).name
    if isinstance(value, np.integer):
        return int(value)
    return value


def _keep(*names: str) -> Callable[[Any], Data]:
    return lambda eqn: {name: _plain(eqn.params[name]) for name in names}


def _row(primitive: Primitive, apply: Callable[..., Any], *names: str, name: str = "") -> Row:
    """A row that keeps the named parameters and hands them to `apply` by keyword."""
    return Row(primitive, name or primitive.name, names, _keep(*names), apply)


def precision_of(value: Any) -> Any:
    """The `lax.Precision` of both operands from its plain form, names or None."""
    return tuple(lax.Precision[name] for name in value) if isinstance(value, tuple) else value


def _conv(x: jax.Array, w: jax.Array, *, dimension_numbers: Any, precision: Any, **attrs: Any) -> jax.Array:
    numbers = lax.ConvDimensionNumbers(*dimension_numbers)
    return lax.conv_general_dilated(x, w, dimension_numbers=numbers, precision=precision_of(precision), **attrs)


def _dot(x: jax.Array, w: jax.Array, *, precision: Any, **attrs: Any) -> jax.Array:
    return lax.dot_general(x, w, precision=precision_of(precision), **attrs)


def _fields(fields: tuple[str, ...], *others: str) -> Callable[[Any], Data]:
    """Reads gather's and scatter's parameters, whose dimension numbers are objects with those fields."""

    def read(eqn: Any) -> Data:
        numbers = eqn.params["dimension_numbers"]
        return {"dimension_numbers": {name: _plain(getattr(numbers, name)) for name in fields}} | _keep(*others)(eqn)

    return read


_BATCHING = ("operand_batching_dims",)
_GATHER = ("offset_dims", "collapsed_slice_dims", "start_index_map", *_BATCHING, "start_indices_batching_dims")
_SCATTER = (
    "update_window_dims",
    "inserted_window_dims",
    "scatter_dims_to_operand_dims",
    *_BATCHING,
    "scatter_indices_batching_dims",
)
_INDEXED = ("indices_are_sorted", "unique_indices", "mode")


def _gather(x: jax.Array, indices: jax.Array, *, dimension_numbers: Data, mode: str, **attrs: Any) -> jax.Array:
    numbers = lax.GatherDimensionNumbers(**dimension_numbers)
    return lax.gather(x, indices, numbers, mode=lax.GatherScatterMode[mode], **attrs)


def _scatter(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(*arrays: jax.Array, dimension_numbers: Data, mode: str, **attrs: Any) -> jax.Array:
        numbers = lax.ScatterDimensionNumbers(**dimension_numbers)
        return function(*arrays, numbers, mode=lax.GatherScatterMode[mode], **attrs)

    return apply


def _window(combine: Callable[..., Any], identity: Callable[[np.dtype], Any]) -> Callable[..., Any]:
    """reduce_window of a known combination; its padding is the combination's identity, which never wins."""
    return lambda x, **attrs: lax.reduce_window(x, np.array(identity(x.dtype), x.dtype), combine, **attrs)


def _lowest(dtype: np.dtype) -> Any:
    return jnp.iinfo(dtype).min if jnp.issubdtype(dtype, jnp.integer) else -np.inf


def _highest(dtype: np.dtype) -> Any:
    return jnp.iinfo(dtype).max if jnp.issubdtype(dtype, jnp.integer) else np.inf


def _clamped(starts: tuple[jax.Array, ...]) -> list[jax.Array]:
    """The primitives clamp what lies below zero, which `jax.lax` takes for places from the end."""
    return [jnp.maximum(start, 0) for start in starts]


_SCAN = ("length", "reverse", "unroll")
_WHILE = ("cond_nconsts", "body_nconsts")


def _scan(*args: jax.Array, body: Callable[..., Any], num_consts: int, num_carry: int, **attrs: Any) -> list[jax.Array]:
    consts, carry, xs = args[:num_consts], args[num_consts : num_consts + num_carry], args[num_consts + num_carry :]

    def step(carry: Any, x: Any) -> Any:
        results = body(*consts, *carry, *x)
        return tuple(results[:num_carry]), tuple(results[num_carry:])

    carry, ys = lax.scan(step, carry, xs, **attrs)
    return [*carry, *ys]


def _read_scan(eqn: Any) -> Data:
    """What of the operands is scanned over has one axis more than the body sees; what of the results is stacked, one
    more than the body gives. (JAX versions spell the numbers of constants and carries differently.)"""
    body = eqn.params["jaxpr"]

    def same_rank(outer: Any, inner: Any) -> int:
        return sum(len(a.aval.shape) == len(b.aval.shape) for a, b in zip(outer, inner, strict=True))

    num_carry = same_rank(eqn.outvars, body.jaxpr.outvars)
    num_consts = same_rank(eqn.invars, body.jaxpr.invars) - num_carry
    counts = {"num_consts": num_consts, "num_carry": num_carry}
    return {"body": body} | counts | _keep(*_SCAN)(eqn)


def _while(
    *args: jax.Array, cond: Callable[..., Any], body: Callable[..., Any], cond_nconsts: int, body_nconsts: int
) -> Any:
    cond_consts, rest = args[:cond_nconsts], args[cond_nconsts:]
    body_consts, init = rest[:body_nconsts], rest[body_nconsts:]
    return lax.while_loop(
        lambda carry: cond(*cond_consts, *carry)[0], lambda carry: tuple(body(*body_consts, *carry)), tuple(init)
    )


def _read_while(eqn: Any) -> Data:
    bodies = {"cond": eqn.params["cond_jaxpr"], "body": eqn.params["body_jaxpr"]}
    return bodies | _keep(*_WHILE)(eqn)


def _cond(index: jax.Array, *args: jax.Array, branches: Any) -> Any:
    return lax.switch(index.astype(jnp.int32), [lambda *a, f=f: tuple(f(*a)) for f in branches], *args)


_UNARY = """abs acos acosh asin asinh atan atanh cbrt ceil clz cos cosh digamma erf erf_inv erfc exp exp2 expm1 floor
is_finite lgamma log log1p logistic neg population_count rsqrt sign sin sinh sqrt square tan tanh stop_gradient
bessel_i0e bessel_i1e conj imag real"""
_BINARY = """add atan2 complex div eq ge gt le lt max min mul ne nextafter pow rem sub shift_left shift_right_arithmetic
shift_right_logical igamma igammac polygamma zeta"""
WINDOW = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")

_ROWS = (
    *(_row(getattr(jp, f"{name}_p"), getattr(lax, name)) for name in (_UNARY + " " + _BINARY).split()),
    _row(jp.add_jaxvals_p, lax.add),
    _row(jp.and_p, lax.bitwise_and),
    _row(jp.or_p, lax.bitwise_or),
    _row(jp.xor_p, lax.bitwise_xor),
    _row(jp.not_p, lax.bitwise_not),
    *(_row(p, lambda x, **_: x) for p in (jp.copy_p, jp.name_p, jp.sharding_constraint_p)),
    _row(jp.device_put_p, lambda *xs: list(xs)),
    _row(lax.optimization_barrier_p, lambda *xs: list(lax.optimization_barrier(xs))),
    Row(getattr(jp, "log2_p", None), "log2", (), _keep(), jnp.log2),
    Row(getattr(jp, "one_minus_square_p", None), "one_minus_square", (), _keep(), lambda x: 1 - x * x),
    _row(jp.regularized_incomplete_beta_p, lax.betainc),
    _row(
        jp.fft_p,
        lambda x, fft_type, fft_lengths: lax.fft(x, lax.FftType(fft_type), fft_lengths),
        "fft_type",
        "fft_lengths",
    ),
    _row(jp.clamp_p, lax.clamp),
    _row(jp.select_n_p, lax.select_n),
    _row(jp.integer_pow_p, lax.integer_pow, "y"),
    _row(jp.round_p, lambda x, rounding_method: lax.round(x, lax.RoundingMethod(rounding_method)), "rounding_method"),
    _row(jp.reduce_precision_p, lax.reduce_precision, "exponent_bits", "mantissa_bits"),
    _row(jp.convert_element_type_p, lambda x, new_dtype: lax.convert_element_type(x, new_dtype), "new_dtype"),
    _row(jp.bitcast_convert_type_p, lax.bitcast_convert_type, "new_dtype"),
    _row(jp.reshape_p, lambda x, new_sizes: lax.reshape(x, new_sizes), "new_sizes"),
    _row(jp.transpose_p, lax.transpose, "permutation"),
    _row(jp.squeeze_p, lax.squeeze, "dimensions"),
    _row(jp.broadcast_in_dim_p, lax.broadcast_in_dim, "shape", "broadcast_dimensions"),
    _row(jp.slice_p, lax.slice, "start_indices", "limit_indices", "strides"),
    _row(jp.pad_p, lax.pad, "padding_config"),
    _row(jp.concatenate_p, lambda *xs, dimension: lax.concatenate(xs, dimension), "dimension"),
    _row(jp.rev_p, lax.rev, "dimensions"),
    _row(lax.tile_p, lax.tile, "reps"),
    _row(lax.split_p, lax.split, "sizes", "axis"),
    _row(lax.stack_p, lambda *xs, axis: lax.stack(xs, axis), "axis"),
    _row(lax.unstack_p, lambda x, axis: list(lax.unstack(x, axis)), "axis"),
    _row(
        jp.iota_p,
        lambda dtype, shape, dimension: lax.broadcasted_iota(dtype, shape, dimension),
        "dtype",
        "shape",
        "dimension",
    ),
    _row(jp.dynamic_slice_p, lambda x, *i, slice_sizes: lax.dynamic_slice(x, _clamped(i), slice_sizes), "slice_sizes"),
    _row(jp.dynamic_update_slice_p, lambda x, y, *i: lax.dynamic_update_slice(x, y, _clamped(i))),
    Row(
        jp.gather_p,
        "gather",
        ("dimension_numbers", "slice_sizes", *_INDEXED, "fill_value"),
        _fields(_GATHER, "slice_sizes", *_INDEXED, "fill_value"),
        _gather,
    ),
    *(
        Row(primitive, name, ("dimension_numbers", *_INDEXED), _fields(_SCATTER, *_INDEXED), _scatter(function))
        for primitive, name, function in (
            (jp.scatter_p, "scatter", lax.scatter),
            (jp.scatter_add_p, "scatter_add", lax.scatter_add),
            (lax.scatter_sub_p, "scatter_sub", lax.scatter_sub),
            (jp.scatter_mul_p, "scatter_mul", lax.scatter_mul),
            (jp.scatter_min_p, "scatter_min", lax.scatter_min),
            (jp.scatter_max_p, "scatter_max", lax.scatter_max),
        )
    ),
    *(
        _row(getattr(jp, f"reduce_{name}_p"), getattr(lax, f"reduce_{name}"), "axes")
        for name in ("sum", "max", "min", "prod", "and", "or", "xor")
    ),
    *(
        _row(
            primitive,
            lambda x, axes, index_dtype, function=function: function(x, axes[0], index_dtype),
            "axes",
            "index_dtype",
        )
        for primitive, function in ((jp.argmax_p, lax.argmax), (jp.argmin_p, lax.argmin))
    ),
    *(
        _row(getattr(jp, f"{name}_p"), getattr(lax, name), "axis", "reverse")
        for name in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
    ),
    _row(
        jp.sort_p,
        lambda *xs, dimension, is_stable, num_keys: lax.sort(xs, dimension, is_stable, num_keys),
        "dimension",
        "is_stable",
        "num_keys",
    ),
    _row(jp.top_k_p, lax.top_k, "k"),
    _row(jp.reduce_window_sum_p, _window(lax.add, lambda dtype: 0), *WINDOW),
    _row(jp.reduce_window_max_p, _window(lax.max, _lowest), *WINDOW),
    _row(jp.reduce_window_min_p, _window(lax.min, _highest), *WINDOW),
    _row(jp.dot_general_p, _dot, "dimension_numbers", "precision", "preferred_element_type"),
    _row(
        jp.conv_general_dilated_p,
        _conv,
        "window_strides",
        "padding",
        "lhs_dilation",
        "rhs_dilation",
        "dimension_numbers",
        "feature_group_count",
        "batch_group_count",
        "precision",
        "preferred_element_type",
    ),
    Row(jp.scan_p, "scan", ("body", "num_consts", "num_carry", *_SCAN), _read_scan, _scan),
    Row(jp.while_p, "while", ("cond", "body", *_WHILE), _read_while, _while),
    Row(jp.cond_p, "cond", ("branches",), lambda eqn: {"branches": tuple(eqn.params["branches"])}, _cond),
)

# Those whose result at a place hangs on the operands there alone.
ELEMENTWISE = frozenset(
    f"{_UNARY} {_BINARY} add_any and or xor not copy name sharding_constraint device_put optimization_barrier log2 "
    "one_minus_square clamp select_n integer_pow round reduce_precision convert_element_type "
    "bitcast_convert_type".split()
)

TABLE: dict[Primitive, Row] = {row.primitive: row for row in _ROWS if row.primitive is not None}
BY_NAME: dict[str, Row] = {row.name: row for row in _ROWS}

# Primitives that only call another jaxpr: the trace goes through them as if they were not there.
CALLS = frozenset(
    {
        jp.jit_p,
        jp.custom_jvp_call_p,
        jp.custom_vjp_call_p,
        jp.remat_p,
        jp.closed_call_p,
        jp.call_p,
    }
)

# Primitives that draw random numbers: at inference they mean that dropout is still on.
RANDOM = frozenset(
    {
        jp.random_bits_p,
        jp.random_gamma_p,
        jp.rng_bit_generator_p,
        jp.rng_uniform_p,
        jp.threefry2x32_p,
    }
)
