"""The calibration iterator: read once, every item checked against the first, errors that name the batch."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxq.errors import CalibrationError
from jaxq.models import shown


@dataclass(frozen=True)
class Signature:
    """The arguments of one batch: their pytree structure, and the shape and dtype of every leaf."""

    tree: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments, with `jax.ShapeDtypeStruct` for arrays."""
        return jax.tree.unflatten(self.tree, self.leaves)


@dataclass
class Batches:
    """Items of positional arguments. `example` is the first; iterating gives every item, that one included, once.

    A tuple is the function's positional arguments; anything else (an array, a dict) is its one argument.

    Raises:
      CalibrationError: `source` is no iterable of batches, or is empty, or an item differs from the first in structure,
        in dtype or in any size but that of its batch axis, or holds NaN or Inf or what float32 does not.
    """

    source: Any
    example: tuple[Any, ...] = field(init=False)
    total: int | None = field(init=False)

    def __post_init__(self) -> None:
        source = self.source
        what = f"a {type(source).__name__}"
        if source is None:
            raise CalibrationError("batches: missing; hand in an iterable of calibration batches")
        if isinstance(source, Mapping | str | bytes) or hasattr(source, "dtype"):
            raise CalibrationError(
                f"batches: takes an iterable of batches, not {what}; one batch goes into a list: [batch]"
            )
        if not isinstance(source, Iterable):
            raise CalibrationError(f"batches: takes an iterable of calibration batches, not {what}")
        self.total = _length(source)
        self._rest = iter(source)
        try:
            first = next(self._rest)
        except StopIteration:
            raise CalibrationError("batches: the iterator is empty; a generator that was read before is") from None
        self.example = self._item(first, 0)

    @property
    def signature(self) -> Signature:
        """That of the first batch."""
        leaves, tree = jax.tree.flatten(self.example)
        dtypes = [jax.dtypes.canonicalize_dtype(leaf.dtype) for leaf in leaves]
        shapes = [jax.ShapeDtypeStruct(leaf.shape, dtype) for leaf, dtype in zip(leaves, dtypes, strict=True)]
        return Signature(tree, tuple(shapes))

    def __iter__(self) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """(index, arguments) of every batch."""
        yield 0, self.example
        for index, item in enumerate(self._rest, start=1):
            args = self._item(item, index)
            self._compare(args, index)
            yield index, args

    def _item(self, item: Any, index: int) -> tuple[Any, ...]:
        args = item if isinstance(item, tuple) else (item,)
        for path, leaf in jax.tree_util.tree_flatten_with_path(args)[0]:
            array = np.asarray(leaf)
            where = _where(path, index)
            if not (jax.numpy.issubdtype(array.dtype, np.number) or array.dtype == bool):
                raise CalibrationError(f"{where}: holds {array.dtype} values, not an array of numbers")
            if jax.numpy.issubdtype(array.dtype, np.floating):
                with np.errstate(over="ignore"):  # float64 beyond float32 becomes Inf
                    finite = np.isfinite(array.astype(np.float32))
                bad = int(array.size - np.count_nonzero(finite))
                if bad:
                    raise CalibrationError(f"{where}: {bad} of its {array.size} values are NaN or Inf in float32")
        return jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf), args)

    def _compare(self, args: tuple[Any, ...], index: int) -> None:
        ours: Any = jax.tree.structure(args)
        theirs: Any = jax.tree.structure(self.example)
        if ours != theirs:
            raise CalibrationError(f"batch {index}: is {shown(ours)}, batch 0 was {shown(theirs)}")
        leaves = jax.tree_util.tree_flatten_with_path(args)[0]
        for (path, leaf), first in zip(leaves, jax.tree.leaves(self.example), strict=True):
            if leaf.ndim != first.ndim or leaf.shape[1:] != first.shape[1:]:
                raise CalibrationError(
                    f"{_where(path, index)}: has shape {leaf.shape}, batch 0 had {first.shape}; only the leading "
                    "axis, the batch, may differ"
                )
            if leaf.dtype != first.dtype:
                raise CalibrationError(f"{_where(path, index)}: has dtype {leaf.dtype}, batch 0 had {first.dtype}")


def _length(source: Any) -> int | None:
    try:
        return len(source)
    except TypeError:  # a generator, or a data loader of unknown length
        return None


def _where(path: Any, index: int) -> str:
    position, *inner = path
    name = f"argument {getattr(position, 'idx', position)}"
    return f"batch {index}, {name}{''.join(map(str, inner))}"
