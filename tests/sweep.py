"""python tests/sweep.py h100 a100 b200: every tactic of the benchmark's cases, of ResNet's wide convolutions with a
shortcut behind them, and of EfficientNet-Lite0's depthwise ones, compiled without a GPU; the registers, the shared
memory and the spills of each kind of tile.

Needs what `aot` needs.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aot
import jax.numpy as jnp
from convolutions import EFFICIENTNET, RESNET50, shapes, window

from pallas_kernels import compat
from pallas_kernels.bench.cases import timed
from pallas_kernels.conv import candidates, conv
from pallas_kernels.conv.window import Geometry

GPUS = {"h100": ("NVIDIA H100 80GB HBM3", 132), "a100": ("NVIDIA A100-SXM4-80GB", 108), "b200": ("NVIDIA B200", 148)}


@dataclass(frozen=True)
class Compiled:
    """A case's kernel by one tactic."""

    case: str
    config: Any
    kernel: aot.Kernel

    @property
    def tile(self) -> str:
        """The kernel and its tile, with warps and what else the registers hang on."""
        sizes = dataclasses.asdict(self.config)
        blocks = [str(sizes[name]) for name in sizes if name.startswith(("block_", "tile_"))]
        warps = f", {sizes['num_warps']} warps" if "num_warps" in sizes else ""
        forms = " persistent" * bool(sizes.get("residents")) + " merged taps" * bool(sizes.get("merge_taps"))
        return f"{type(self.config).__name__.removesuffix('Config')} {'x'.join(blocks)}{warps}{forms}"


def cases() -> Iterator[tuple[str, Any, tuple[Any, ...], Any]]:
    """(name, function of the operands, their types, config) of every tactic on the GPU in use, those left out whose
    code differs from that of one before in its constants alone."""
    found = [(case.name, case.kernel, case.types, case.candidates()) for case in timed()]
    layers = [(*layer, None) for layer in EFFICIENTNET] + [(*layer, jnp.int8) for layer in RESNET50]
    for x_shape, w_shape, stride, residual in layers:
        around = window(stride=stride, padding=w_shape[1] // 2, groups=x_shape[-1] // w_shape[-1])
        types = shapes((32, *x_shape), w_shape, around, residual=residual)
        run = functools.partial(conv, window=around, out_dtype=jnp.uint8)
        name = f"conv {x_shape} {w_shape}{'' if residual is None else ' + shortcut'}"
        found.append((name, run, types, candidates(*types, window=around, out_dtype=jnp.uint8)))
    seen = set()
    for name, run, types, configs in found:
        for config in configs:
            code = _code(run, types, config)
            if code not in seen:
                seen.add(code)
                yield name, run, types, config


def _code(run: Any, types: tuple[Any, ...], config: Any) -> Any:
    """What the code hangs on: the tactic, the dtypes, the window, and along which axes the edge cuts a tile."""
    x, w, epilogue = types[:3]
    around, sizes = run.keywords.get("window"), dataclasses.asdict(config)
    if around is None:
        m, n, k, kernel = x.shape[-2], w.shape[-2], x.shape[-1], len(x.shape)
    else:
        geometry = Geometry.of(x, w, around)
        m, n, k, kernel = geometry.rows, geometry.features, geometry.depth, geometry.kernel
        around = dataclasses.replace(around, groups=min(around.groups, 2))
    blocks = {"block_m": m, "tile_m": m, "block_n": n, "tile_n": n, "block_k": k}
    cut = tuple(size % sizes[name] == 0 for name, size in blocks.items() if name in sizes)
    tactic = dataclasses.replace(config, group=1) if "group" in sizes else config
    return tactic, x.dtype, run.keywords["out_dtype"], epilogue.residual is None, around, kernel, k % 128, cut


def sweep(target: str) -> Iterator[Compiled]:
    """Compiles them all."""
    with compat.gpu_target(*GPUS[target]):
        found = list(cases())
    for name, run, types, config in found:
        kernels = aot.compile(target, functools.partial(run, config=config), *types)
        [kernel] = [kernel for kernel in kernels if kernel.name.startswith(("matmul_", "conv_"))]
        yield Compiled(name, config, kernel)


def table(rows: list[Compiled]) -> Iterator[str]:
    """A line for each kind of tile: how often, registers a thread, KB of shared memory, bytes spilt."""
    tiles: dict[str, list[aot.Kernel]] = {}
    for row in rows:
        tiles.setdefault(row.tile, []).append(row.kernel)
    for tile, kernels in sorted(tiles.items()):
        registers, shared, spilt = (
            [getattr(kernel, name) for kernel in kernels] for name in ("registers", "shared_bytes", "spill_bytes")
        )
        kilobytes = f"{min(shared) / 1024:.0f}-{max(shared) / 1024:.0f}"
        yield f"| {tile} | {len(kernels)} | {min(registers)}-{max(registers)} | {kilobytes} | {max(spilt)} |"


if __name__ == "__main__":
    for target in sys.argv[1:] or GPUS:
        rows = []
        for row in sweep(target):
            rows.append(row)
            if row.kernel.spill_bytes:
                print(f"{row.kernel.spill_bytes} bytes spill: {row.case} {row.config}", flush=True)
        print(f"\n{target}: {len(rows)} kernels")
        print("| tactic | kernels | registers | shared KB | spills |\n|---|---|---|---|---|")
        print("\n".join(table(rows)), flush=True)
