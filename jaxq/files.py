"""The files that jaxq writes: arrays and a JSON header, data only, checked by SHA-256 and written atomically.

A file is a safetensors file. Its metadata hold, under the key of its kind, one line with the SHA-256 of the rest, then
the header as JSON: the schema, what the kind keeps there, and the SHA-256 of every array. A safetensors file states the
extent of every array beforehand, so that a damaged one is found before it is read.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from jaxq.errors import JaxqError

# What safetensors reads back into numpy.
_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("bfloat16", "float16", "float32", "float64", "complex64"),
)


@dataclass(frozen=True)
class FileKind:
    """What tells files apart: `key` in the metadata, `noun` in messages, the `schema` written, the `oldest` read, the
    `error`."""

    key: str
    noun: str
    schema: int
    error: type[JaxqError]
    oldest: int = 1

    def pack(self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
        """The file's bytes.

        Raises:
          `error`: an array of a dtype that a file cannot hold.
        """
        for name, array in arrays.items():
            if array.dtype.name not in _DTYPES:
                raise self.error(
                    f"{self.noun}: array {name!r} is {array.dtype}, which a file cannot hold; bfloat16 it can"
                )
        digests = {name: _digest(array.tobytes()) for name, array in sorted(arrays.items())}
        whole = {**header, "schema": self.schema, "sha256": digests}
        text = json.dumps(whole, separators=(",", ":"), allow_nan=False)
        return safetensors.numpy.save(
            {name: np.asarray(array, order="C") for name, array in arrays.items()},
            metadata={self.key: f"{_digest(text.encode())}\n{text}"},
        )

    def write(self, path: str | PathLike[str], header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Writes beside the final place and moves the file there, so that a reader sees the old file or the new one."""
        data = self.pack(header, arrays)
        try:
            replace(Path(path), data)
        except OSError as error:
            raise self.error(f"{path}: cannot be written: {error.strerror}") from error

    def read(self, path: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The header and the arrays.

        Raises:
          `error`: the file is missing, truncated, foreign, damaged, or of another schema; the message says which part.
        """
        try:
            with safetensors.safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                if self.key not in metadata:
                    raise self.error(f"{path}: is a safetensors file, but no jaxq {self.noun}")
                header = self._header(path, metadata[self.key])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except OSError as error:
            raise self.error(f"{path}: cannot be read: {error}") from error
        except AttributeError as error:
            raise self.error(f"{path}: holds an array of a dtype that numpy lacks: {error}") from error
        except safetensors.SafetensorError as error:
            raise self.error(f"{path}: is no jaxq {self.noun}, or is truncated or damaged: {error}") from error
        digests = header.get("sha256")
        for name in sorted({*arrays, *(digests if isinstance(digests, dict) else ())}):
            stated = digests.get(name) if isinstance(digests, dict) else None
            if name not in arrays or _digest(arrays[name].tobytes()) != stated:
                raise self.error(f"{path}: array {name!r} is missing or damaged; save the {self.noun} again")
        return header, arrays

    def _header(self, path: str | PathLike[str], stated: str) -> dict[str, Any]:
        digest, _, text = stated.partition("\n")
        if _digest(text.encode()) != digest:
            raise self.error(f"{path}: the header is damaged; save the {self.noun} again")
        try:
            header = json.loads(text)
            schema = header["schema"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self.error(f"{path}: the header is no {self.noun}: {error}") from error
        if schema not in range(self.oldest, self.schema + 1):
            raise self.error(
                f"{path}: has schema {schema}, this jaxq reads {self.schema}; install the jaxq that wrote it or a "
                "newer one"
            )
        return header


def replace(path: Path, data: bytes) -> None:
    """Writes the file beside its place and moves it there: a reader sees the old one or the new one."""
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


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
