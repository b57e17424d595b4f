"""The shared library of the CPU kernels: finds and loads it, registers it with XLA, chooses its instruction set.

It stands beside this file where `pip install` found a C++ compiler. Two environment variables, read once, change that:

    JAXQ_CPU_LIBRARY=/path/to/_jaxq_cpu.so   another build of it; `none` for a run without
    JAXQ_CPU_ISA=avx2                        another instruction set than the best that the machine has
"""

import ctypes
import functools
import importlib.util
import logging
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path

import jax
import jaxlib

from jaxq.errors import JaxqError

TARGET = "jaxq_region"
_LIBRARY, _ISA = "JAXQ_CPU_LIBRARY", "JAXQ_CPU_ISA"
_MODULE = "jaxq.backends.cpu._jaxq_cpu"
_EXPORTS = {
    "jaxq_ffi_api_major": (ctypes.c_int, ()),
    "jaxq_ffi_api_minor": (ctypes.c_int, ()),
    "jaxq_isa": (ctypes.c_char_p, ()),
    "jaxq_isas": (ctypes.c_char_p, ()),
    "jaxq_set_isa": (ctypes.c_int, (ctypes.c_char_p,)),
    "jaxq_peak": (ctypes.c_double, (ctypes.c_char_p, ctypes.c_int)),
}
_lock = threading.Lock()


@dataclass(frozen=True)
class _Loaded:
    """What became of loading: the library, or why there is none, or the error of whoever uses it."""

    library: ctypes.CDLL | None = None
    reason: str | None = None
    error: str | None = None


def available() -> str | None:
    """None where the kernels are usable, else the reason why not.

    Raises:
      JaxqError: an environment variable asks for what there is not.
    """
    loaded = load()
    if loaded.error is not None:
        raise JaxqError(loaded.error)
    return loaded.reason


def isa() -> str:
    """The instruction set in use: amx, avx512, avxvnni, avx2, neon or generic.

    Raises:
      JaxqError: there is no library, or an environment variable asks for what there is not.
    """
    return _usable().jaxq_isa().decode()


def isas() -> tuple[str, ...]:
    """The instruction sets that the machine has, best first.

    Raises:
      JaxqError: as `isa`.
    """
    return tuple(_usable().jaxq_isas().decode().split(","))


def peak(threads: int | None = None) -> dict[str, float]:
    """{instruction set: int8 GOP/s of its dot instructions on that many threads}, measured now; a multiply-add is two.

    Args:
      threads: as many as this process may use CPUs, unless given.

    Raises:
      JaxqError: as `isa`.
    """
    library = _usable()
    threads = threads or cpus()
    measured = {name: library.jaxq_peak(name.encode(), threads) for name in isas()}
    return {name: rate for name, rate in measured.items() if rate > 0}


def tell_if_missing() -> None:
    """Where a network is compiled for this CPU without the kernels: one line in the log says so, once a process.

    Raises:
      JaxqError: an environment variable asks for what there is not.
    """
    reason = available()
    if reason is not None and jax.default_backend() == "cpu":
        with _lock:
            _tell(reason)


@functools.cache
def _tell(reason: str) -> None:
    logging.getLogger("jaxq").warning(
        "int8 runs through XLA, several times slower than jaxq's kernels for the CPU (the numbers are the same): %s",
        reason,
    )


def load() -> _Loaded:
    """Loads the library and registers its handlers, in the first call of the process; raises nothing."""
    with _lock:
        return _load()


@functools.cache
def _load() -> _Loaded:
    path = os.environ.get(_LIBRARY)
    if path == "none":
        return _Loaded(reason=f"{_LIBRARY}=none leaves them out")
    if path and not Path(path).is_file():
        return _Loaded(error=f"{_LIBRARY}={path}: there is no such file; unset it, or name a build of _jaxq_cpu.so")
    path = path or _beside()
    if path is None:
        return _Loaded(
            reason="this installation was made without them. Install a C++ compiler (on Debian: apt-get install g++), "
            "then install jaxq again with pip's --force-reinstall --no-deps --no-cache-dir"
        )
    try:
        library = ctypes.CDLL(os.path.abspath(path))
        for name, (restype, argtypes) in _EXPORTS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = restype, argtypes
        handler = getattr(library, TARGET)
    except (OSError, AttributeError) as error:
        why = f"{path} cannot be loaded: {error}"
        return _Loaded(error=f"{_LIBRARY}: {why}") if os.environ.get(_LIBRARY) else _Loaded(reason=why)
    if (reason := _too_new(library)) is not None:
        return _Loaded(reason=reason)
    wanted = os.environ.get(_ISA)
    if wanted and library.jaxq_set_isa(wanted.encode()):
        return _Loaded(error=f"{_ISA}={wanted}: this machine has {library.jaxq_isas().decode().replace(',', ', ')}")
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(handler), platform="cpu")
    return _Loaded(library=library)


def _beside() -> str | None:
    """The path of the library of this package; in an editable install it stands in another folder."""
    spec = importlib.util.find_spec(_MODULE)
    return None if spec is None else spec.origin


def _too_new(library: ctypes.CDLL) -> str | None:
    """Why this jaxlib does not take the library, or None. It takes handlers of its own FFI version and older ones; a
    newer one would stop its CPU backend from starting."""
    built = (library.jaxq_ffi_api_major(), library.jaxq_ffi_api_minor())
    running = _ffi_version()
    if running is None:
        return f"the FFI version of jaxlib {jaxlib.__version__} cannot be read"
    if built[0] == running[0] and built[1] <= running[1]:
        return None
    return (
        f"they are built for XLA's FFI {built[0]}.{built[1]}, and jaxlib {jaxlib.__version__} has "
        f"{running[0]}.{running[1]}. Upgrade " + ("jaxlib" if built > running else "jaxq")
    )


def _ffi_version() -> tuple[int, int] | None:
    """That of the running jaxlib, which tells it nowhere but in the header it ships."""
    try:
        text = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text(encoding="utf-8")
    except OSError:
        return None
    found = [re.search(rf"^#define XLA_FFI_API_{part} (\d+)$", text, re.MULTILINE) for part in ("MAJOR", "MINOR")]
    versions = [int(match.group(1)) for match in found if match is not None]
    return (versions[0], versions[1]) if len(versions) == 2 else None


def _usable() -> ctypes.CDLL:
    reason, library = available(), load().library
    if library is None:
        raise JaxqError(f"there are no kernels for the CPU: {reason}")
    return library


def cpus() -> int:
    """CPUs that this process may use, as many as XLA's pool has threads."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
