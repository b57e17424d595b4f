"""Tables of kernels: which one a config is of, and which of them the GPU in use runs."""

from collections.abc import Mapping, Sequence
from types import ModuleType

from pallas_kernels import compat
from pallas_kernels.epilogue import require

# {config type: (kernel, compute capabilities that it compiles for)}
Table = Mapping[type, tuple[ModuleType, Sequence[int]]]

EVERY = range(61, 1000)  # the capabilities that have dp4a
_UNKNOWN = 80  # the one to plan for without a GPU


def able(table: Table) -> dict[type, ModuleType]:
    """{config type: kernel} of those that the GPU in use runs, in the table's order."""
    capability = compat.compute_capability() or _UNKNOWN
    return {kind: module for kind, (module, capabilities) in table.items() if capability in capabilities}


def kernel_of(config: object, table: Table, *, interpret: bool) -> ModuleType:
    """The kernel that the config is of.

    Raises:
      UnsupportedShapeError: where the GPU in use does not run it; not when interpreting.
    """
    module, capabilities = table[type(config)]
    capability = compat.compute_capability()
    if not interpret and capability is not None and capability not in capabilities:
        first, last = capabilities[0], capabilities[-1]
        require(f"{config} is of a kernel for sm_{first} to sm_{last}, the GPU is sm_{capability}")
    return module
