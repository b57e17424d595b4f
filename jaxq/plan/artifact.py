"""The `.jaxq` file: a safetensors file whose metadata hold the plan as JSON. Data only; nothing in it is ever run.

    metadata["jaxq"]      a line with the SHA-256 of the rest; then the header: schema, versions, signature, graph,
                          summary, SHA-256 of every array
    tensors               the parameters by name, and what else the graph holds of arrays, as "#0", "#1", ...

A safetensors file states the extent of every array beforehand, so that a damaged one is found before it is read.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from jaxq.errors import PlanError
from jaxq.plan import codec
from jaxq.plan.plan import Plan

SCHEMA = 1


def save(path: str | PathLike[str], plan: Plan, params: Mapping[str, Any]) -> None:
    """Writes the file beside its final place and moves it there, so that a reader sees the old file or the new one."""
    arrays = {name: np.asarray(value) for name, value in params.items()}
    header = codec.encode_plan(plan, arrays) | {"schema": SCHEMA}
    header["sha256"] = {name: _digest(array.tobytes()) for name, array in sorted(arrays.items())}
    text = json.dumps(header, separators=(",", ":"), allow_nan=False)
    data = safetensors.numpy.save(
        {name: np.asarray(array, order="C") for name, array in arrays.items()},
        metadata={"jaxq": f"{_digest(text.encode())}\n{text}"},
    )
    try:
        _write(Path(path), data)
    except OSError as error:
        raise PlanError(f"{path}: cannot be written: {error.strerror}") from error


def _write(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load(path: str | PathLike[str]) -> tuple[Plan, dict[str, np.ndarray]]:
    """The plan and its parameters.

    Raises:
      PlanError: the file is missing, truncated, foreign, damaged, or from a newer jaxq; the message says which part.
    """
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if "jaxq" not in metadata:
                raise PlanError(f"{path}: is a safetensors file, but no jaxq plan")
            header = _header(path, metadata["jaxq"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error}") from error
    except safetensors.SafetensorError as error:
        raise PlanError(f"{path}: is no jaxq plan, or is truncated or damaged: {error}") from error
    digests = header.get("sha256")
    for name in sorted({*arrays, *(digests if isinstance(digests, dict) else ())}):
        stated = digests.get(name) if isinstance(digests, dict) else None
        if name not in arrays or _digest(arrays[name].tobytes()) != stated:
            raise PlanError(f"{path}: array {name!r} is missing or damaged; save the plan again")
    try:
        return codec.decode_plan(header, arrays)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise PlanError(f"{path}: the plan does not decode: {type(error).__name__}: {error}") from error


def _header(path: Path, stated: str) -> dict[str, Any]:
    digest, _, text = stated.partition("\n")
    if _digest(text.encode()) != digest:
        raise PlanError(f"{path}: the header is damaged; save the plan again")
    try:
        header = json.loads(text)
        schema = header["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PlanError(f"{path}: the header is no plan: {error}") from error
    if schema != SCHEMA:
        raise PlanError(
            f"{path}: has schema {schema}, this jaxq reads {SCHEMA}; install the jaxq that wrote it or a newer one"
        )
    return header


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
