"""Every tactic of the benchmark's cases is what it says, without spills: compiled for each GPU, which takes minutes."""

import re

import aot
import pytest
import sweep

from pallas_kernels import MmaConfig

INSTRUCTIONS = {
    "Dot4Config": r"dp4a\.",
    "MmaConfig": r"mma\S*\.s8\.s8|mma\S*kind::i8",
    "WgmmaConfig": r"wgmma\.mma_async\S*\.s8\.s8",
    "Tcgen05Config": r"tcgen05\.mma\S*kind::i8",
    "ConvMmaConfig": r"mma\S*\.s8\.s8|mma\S*kind::i8",
    "ConvDot4Config": r"dp4a\.",
    "ConvChannelConfig": r"mad\.lo|mul\.lo",
}


@aot.required
@pytest.mark.slow
@pytest.mark.parametrize("target", sweep.GPUS)
def test_no_tactic_spills(target):
    for row in sweep.sweep(target):
        assert row.kernel.spill_bytes == 0, f"{row.case} by {row.config}"
        assert re.search(INSTRUCTIONS[type(row.config).__name__], row.kernel.ptx), f"{row.case} by {row.config}"
        assert "fma.rn" not in row.kernel.ptx, (
            f"{row.case} by {row.config}"
        )  # products are rounded before they are added
        assert "serialized" not in row.kernel.ptxas, f"{row.case} by {row.config}"


def test_table():
    def row(config, registers):
        return sweep.Compiled("case", config, aot.Kernel("matmul_mma", "", "", registers, 2048, 0))

    rows = [
        row(MmaConfig(16, 32, 64), 40),
        row(MmaConfig(16, 32, 64, group=2), 50),
        row(MmaConfig(16, 16, 64, residents=2), 48),
    ]
    assert list(sweep.table(rows)) == [
        "| Mma 16x16x64, 4 warps persistent | 1 | 48-48 | 2-2 | 0 |",
        "| Mma 16x32x64, 4 warps | 2 | 40-50 | 2-2 | 0 |",
    ]
