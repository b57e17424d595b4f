"""What hangs on the jax version or on the machine: nothing else in the project knows either.

Importing this silences, in the whole process, jax's warning that Triton-Pallas is deprecated.
"""

import contextlib
import functools
import re
import warnings
from collections.abc import Iterator
from typing import Any

import jax

_H100_CORES = 132
# Compute capabilities whose tensor cores multiply int8 in Triton: sm_103 has none for int8.
INT8_DOT = (*range(80, 101), 120, 121)
# Compute capabilities of the GPUs that may be cross-lowered for, by a word of their device kind.
_CAPABILITIES = {
    **dict.fromkeys(("T4",), 75),
    **dict.fromkeys(("A100", "A30"), 80),
    **dict.fromkeys(("A10", "A10G", "A40"), 86),
    **dict.fromkeys(("L4", "L40", "L40S"), 89),
    **dict.fromkeys(("H100", "H200", "GH200"), 90),
    **dict.fromkeys(("B200", "GB200"), 100),
    **dict.fromkeys(("B300", "GB300"), 103),
}
# Bytes of shared memory that a block may have, by the first compute capability that has them.
_SHARED = {120: 99 * 1024, 90: 227 * 1024, 86: 99 * 1024, 80: 163 * 1024, 0: 48 * 1024}
MOST_SHARED = max(_SHARED.values())


def _ignore_triton_deprecation() -> None:
    # jax >= 0.11 warns whenever a Triton kernel is lowered (deprecation id "jax-pallas-triton"). Lowering happens after
    # our functions have returned, when jit compiles the caller, so no context of ours can surround it.
    warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)


_ignore_triton_deprecation()


@contextlib.contextmanager
def gpu_target(device_kind: str = "NVIDIA H100 80GB HBM3", num_cores: int = _H100_CORES) -> Iterator[None]:
    """Context in which kernels lower for the named GPU on a machine that has none.

    Inside, `jax.jit(f).trace(*args).lower(lowering_platforms=("cuda",))` works; trace inside, too. jax >= 0.11 looks up
    the GPU of the mesh in use and raises RuntimeError when there is no GPU at all; jax 0.10 falls back to sm_90.
    """
    device = jax.sharding.AbstractDevice(device_kind=device_kind, num_cores=num_cores, platform="gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    with warnings.catch_warnings(), jax.sharding.use_abstract_mesh(mesh):
        _ignore_triton_deprecation()
        yield


def compute_capability() -> int | None:
    """That of the GPU in use, such as 80, 89, 90 or 100: of the abstract mesh where one names its device (so when
    lowering inside `gpu_target`), else of this machine. None where it is not known."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None and device.platform != "gpu":
        return None
    gpu = _gpu()
    if device is not None and (gpu is None or device.device_kind != gpu.device_kind):
        return _capability_of(device.device_kind)
    return None if gpu is None else int(gpu.compute_capability.replace(".", ""))


@functools.cache
def _capability_of(device_kind: str) -> int | None:
    words = re.findall(r"\w+", device_kind)
    return next((_CAPABILITIES[word] for word in words if word in _CAPABILITIES), None)


def shared_bytes() -> int:
    """Bytes of shared memory that a block may have on the GPU in use; on sm_80 where none is known."""
    capability = compute_capability() or 80
    return next(size for first, size in _SHARED.items() if capability >= first)


def refuses_shared(config: object, size: int) -> str | None:
    """Why no block of the GPU in use has the shared memory of the config, `size` bytes, or None."""
    if compute_capability() is None or size <= shared_bytes():
        return None
    return f"{config} needs {size} bytes of shared memory, the GPU gives a block {shared_bytes()}"


def core_count() -> int:
    """Multiprocessors of the GPU in use, as of `compute_capability`; those of an H100 where none is known."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None and device.num_cores:
        return int(device.num_cores)
    gpu = _gpu()
    return _H100_CORES if gpu is None else int(gpu.core_count)


def _gpu() -> Any:
    try:
        return jax.local_devices(backend="cuda")[0]  # "gpu" would be one of AMD's, too
    except RuntimeError:  # there is none
        return None
