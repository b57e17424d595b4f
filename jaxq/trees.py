"""Pytree structures as JSON: tuples, lists, dicts and None, the leaves numbered."""

from collections.abc import Mapping
from typing import Any

import jax

from jaxq.errors import UnsupportedError


def encode_tree(tree: Any, what: str) -> Any:
    """The structure as JSON.

    Raises:
      UnsupportedError: it holds another container; `what` says in the message what the structure is of.
    """

    def encode(value: Any) -> Any:
        if value is None or isinstance(value, int):
            return value
        if type(value) in (tuple, list):
            return {"$tuple" if type(value) is tuple else "$list": [encode(item) for item in value]}
        if isinstance(value, Mapping) and type(value).__name__ in ("dict", "FrozenDict"):
            return {"$dict": [[key, encode(value[key])] for key in value]}
        raise UnsupportedError(
            f"the {what} hold a {type(value).__name__}; a file takes tuples, lists, dicts and arrays"
        )

    return encode(jax.tree.unflatten(tree, range(tree.num_leaves)))


def decode_tree(data: Any) -> Any:
    """The structure that `encode_tree` wrote."""

    def decode(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, items),) = value.items()
        if kind == "$dict":
            return {key: decode(item) for key, item in items}
        children = [decode(item) for item in items]
        return tuple(children) if kind == "$tuple" else children

    return jax.tree.structure(decode(data))
