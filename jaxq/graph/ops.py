"""The ops that are jaxq's own, with the operands and attributes of each; and what an attribute may be, of any op.

A file is read by this table: behind it no backend meets an attribute that is missing, or of another kind.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax import lax
from jax.export import Exported

from jaxq.graph.node import Dim, Graph, Node
from jaxq.graph.primitives import BY_NAME, WINDOW
from jaxq.numerics import GROUP_STEP


@dataclass(frozen=True)
class Op:
    """`roles`: the operands that it needs, by name; others may stand beside them. `attrs`: its attributes, all."""

    roles: tuple[str, ...] = ()
    attrs: tuple[str, ...] = ()


_BOUNDS = ("lo", "hi")
_GEOMETRY = ("strides", "padding", "lhs_dilation", "rhs_dilation", "groups")

OPS: dict[str, Op] = {
    "input": Op(),
    "const": Op(attrs=("value",)),
    "param": Op(attrs=("value",)),
    "item": Op(attrs=("index",)),
    "opaque": Op(attrs=("primitive", "params")),
    "stablehlo": Op(attrs=("word", "exported")),
    "conv": Op(("x", "weight"), (*_GEOMETRY, "precision", *_BOUNDS)),
    "dot": Op(("x", "weight"), ("precision", *_BOUNDS)),
    "matmul": Op(("x", "y"), ("precision", *_BOUNDS)),
    "product": Op(("x", "y"), _BOUNDS),
    "sum": Op(("x",), ("axes", *_BOUNDS)),
    "window_sum": Op(("x",), ("window", *_BOUNDS)),
    "affine": Op(("x",), _BOUNDS),
    "elementwise": Op(("x",), ("body", "word", "steepness", "least")),
    "table": Op(("x", "table"), ("word",)),
    "softmax": Op(("x",)),
    "layer_norm": Op(("x",), ("epsilon", "center")),
    "weight_only_dot": Op(("x", "weight", "scale"), ("precision", "bits", "group_size", *_BOUNDS)),
    "quantize": Op(("x", "multiplier")),
    "dequantize": Op(("x", "scale")),
    "row_scale": Op(("x",)),
    "quantize_rows": Op(("x", "row_scale")),
}
EPILOGUE = ("multiplier", "bias", "lo", "hi")  # operands of an accumulating op in int8


def wrong_attribute(node: Node) -> str | None:
    """What is wrong with the attributes of a node whose op is known, or None."""
    names = OPS[node.op].attrs if node.op in OPS else BY_NAME[node.op].attrs
    if odd := node.attrs.keys() ^ set(names):
        name = min(map(str, odd))
        return f"has an attribute {name!r} that is none of its op" if name in node.attrs else f"lacks {name!r}"
    return next((f"has {name}={node.attrs[name]!r}" for name in names if not _KINDS[name](node.attrs[name])), None)


# ------------------------------------------------------------------------------------------------ kinds of attributes

_Kind = Callable[[Any], bool]


def _integer(value: Any) -> bool:
    return isinstance(value, int | Dim) and not isinstance(value, bool)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _number(value: Any) -> bool:
    """One that float32 holds; infinite ones, too."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and (np.isinf(value) or abs(value) <= float(np.finfo(np.float32).max))


def _finite(value: Any) -> bool:
    return _number(value) and np.isfinite(value)


def _scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, np.generic | np.ndarray) and value.ndim == 0)


def _word(value: Any) -> bool:
    return isinstance(value, str)


def _dtype(value: Any) -> bool:
    try:
        return _word(value) and np.dtype(value).name == value
    except TypeError:
        return False


def _precision(value: Any) -> bool:
    of_both = isinstance(value, tuple) and len(value) == 2 and all(name in lax.Precision.__members__ for name in value)
    return of_both or isinstance(value, lax.DotAlgorithm | lax.DotAlgorithmPreset)


def _bits(value: Any) -> bool:
    return _integer(value) and value in (4, 8)


def _group_size(value: Any) -> bool:
    return isinstance(value, int) and value > 0 and value % GROUP_STEP == 0


def _optional(kind: _Kind) -> _Kind:
    return lambda value: value is None or kind(value)


def _either(*kinds: _Kind) -> _Kind:
    return lambda value: any(kind(value) for kind in kinds)


def _tuple(kind: _Kind, length: int | None = None) -> _Kind:
    return lambda value: isinstance(value, tuple) and length in (None, len(value)) and all(map(kind, value))


def _mapping(kind: _Kind) -> _Kind:
    return lambda value: isinstance(value, Mapping) and all(map(_word, value)) and all(map(kind, value.values()))


def _instance(kind: type) -> _Kind:
    return lambda value: isinstance(value, kind)


def _anything(value: Any) -> bool:
    return True


_integers = _tuple(_integer)
_pairs = _tuple(_tuple(_integer, 2))
_graph = _instance(Graph)

_KINDS: dict[str, _Kind] = {
    **dict.fromkeys(("index", "axis", "dimension", "k", "num_keys", "y"), _integer),
    **dict.fromkeys(("exponent_bits", "mantissa_bits", "rounding_method", "fft_type"), _integer),
    **dict.fromkeys(("groups", "feature_group_count", "batch_group_count"), _integer),
    **dict.fromkeys(("length", "num_consts", "num_carry", "cond_nconsts", "body_nconsts"), _integer),
    **dict.fromkeys(("axes", "permutation", "dimensions", "broadcast_dimensions", "shape", "new_sizes"), _integers),
    **dict.fromkeys(("start_indices", "limit_indices", "reps", "sizes", "slice_sizes", "fft_lengths"), _integers),
    **dict.fromkeys(("window_strides", "lhs_dilation", "rhs_dilation"), _integers),
    **dict.fromkeys(("window_dimensions", "base_dilation", "window_dilation"), _integers),
    "strides": _optional(_integers),
    "padding": _pairs,
    "padding_config": _tuple(_tuple(_integer, 3)),
    "window": lambda value: (
        _mapping(_anything)(value) and value.keys() == {*WINDOW} and all(_KINDS[name](value[name]) for name in WINDOW)
    ),
    # A conv's three, a dot_general's two pairs, or those of gather and scatter by name.
    "dimension_numbers": _either(_tuple(_integers, 3), _tuple(_tuple(_integers, 2), 2), _mapping(_integers)),
    **dict.fromkeys(("reverse", "is_stable", "indices_are_sorted", "unique_indices", "center"), _flag),
    "unroll": _either(_flag, _integer),
    **dict.fromkeys(("lo", "hi", "steepness", "least"), _number),
    "epsilon": _finite,
    "bits": _bits,
    "group_size": _group_size,
    "fill_value": _optional(_scalar),
    **dict.fromkeys(("word", "mode"), _word),
    **dict.fromkeys(("dtype", "new_dtype", "index_dtype"), _dtype),
    "preferred_element_type": _optional(_dtype),
    "precision": _optional(_precision),
    **dict.fromkeys(("body", "cond"), _graph),
    "branches": _tuple(_graph),
    "value": _anything,
    "exported": _instance(Exported),
    "primitive": _anything,
    "params": _anything,
}
