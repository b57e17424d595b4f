"""What hangs on the jax version or on the machine: nothing else in the project knows either."""

import contextlib
import warnings
from collections.abc import Iterator

import jax


def _ignore_triton_deprecation() -> None:
    # jax >= 0.11 warns whenever a Triton kernel is lowered (deprecation id "jax-pallas-triton"). Lowering happens after
    # our functions have returned, when jit compiles the caller, so no context of ours can surround it.
    warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)


_ignore_triton_deprecation()


@contextlib.contextmanager
def gpu_target(device_kind: str = "NVIDIA H100 80GB HBM3", num_cores: int = 132) -> Iterator[None]:
    """Context in which kernels lower for the named GPU on a machine that has none.

    Inside, `jax.jit(f).trace(*args).lower(lowering_platforms=("cuda",))` works; trace inside, too. jax >= 0.11 looks up
    the GPU of the mesh in use and raises RuntimeError when there is no GPU at all; jax 0.10 falls back to sm_90.
    """
    device = jax.sharding.AbstractDevice(device_kind=device_kind, num_cores=num_cores, platform="gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    with warnings.catch_warnings(), jax.sharding.use_abstract_mesh(mesh):
        _ignore_triton_deprecation()
        yield
