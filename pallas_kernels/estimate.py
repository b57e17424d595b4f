"""What tactics are ranked by: cycles of the busiest multiprocessor, from what a chip does in one at best.

Arithmetic, not measured: `python -m pallas_kernels.bench --tune` measures.
"""

from pallas_kernels import compat

LATENCY = 800  # cycles until the memory answers
L2_BYTES = 32  # that a multiprocessor takes in from the L2 in a cycle, while all of them do
OUTPUTS = 16  # that the end of a tile finishes and stores in a cycle
KERNEL = 3000  # cycles in which one more kernel starts
_MEMORY_BYTES = 16  # of a multiprocessor's share of the memory's bandwidth, in a cycle
# Pairs of int8 that a multiprocessor multiplies in a cycle, by the first compute capability that does.
_PAIRS = {100: 8192, 90: 4096, 86: 1024, 80: 2048, 0: 512}


def pairs(capability: int | None = None) -> int:
    """Pairs of int8 that the tensor cores of a multiprocessor multiply in a cycle; of the GPU in use unless told."""
    capability = capability or compat.compute_capability() or 80
    return next(value for first, value in _PAIRS.items() if capability >= first)


def memory(moved: int) -> float:
    """Cycles in which all multiprocessors together read and write so many bytes of memory."""
    return moved / (_MEMORY_BYTES * compat.core_count())


def copy(size: int) -> float:
    """Cycles of one more kernel, which reads and writes so many bytes."""
    return KERNEL + memory(2 * size)
