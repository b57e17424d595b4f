"""Ahead-of-time compilation for NVIDIA GPUs on a machine that has none: down to PTX, registers and spills.

    @aot.required
    def test_no_spills():
        [kernel] = aot.compile("h100", functools.partial(matmul, out_dtype=jnp.int8), x, w, epilogue)
        assert "wgmma" in kernel.ptx and kernel.spill_bytes == 0

Everything compiles beside the tests, since Mosaic aborts the process where it fails: its death is one CompileError. (A
process for each target: Mosaic gives ptxas the architecture that it saw first.) What is compiled must be picklable: a
function at the top of a module, or a functools.partial of one.
"""

import functools
import importlib.util
import multiprocessing
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.experimental import topologies

from pallas_kernels import compat

# Descriptions of the GPUs, as XLA writes them on machines that have one (gpu_target_config.pbtxt in a dump).
TARGETS = {path.stem: path for path in (Path(__file__).parent / "gpu_targets").glob("*.txtpb")}


class CompileError(Exception):
    """The GPU compiler refused a function, or died of it."""


@dataclass(frozen=True)
class Kernel:
    """One kernel of a compiled function.

    Attributes:
      name: of the entry in the PTX.
      ptx: the text of its module.
      ptxas: what the assembler said of the module (`-v`): look there for "serialized" wgmma.
      registers: a thread.
      shared_bytes: shared memory a block.
      spill_bytes: stores and loads a thread, in bytes.
    """

    name: str
    ptx: str
    ptxas: str
    registers: int
    shared_bytes: int
    spill_bytes: int


def _missing() -> str | None:
    if shutil.which("ptxas") is None:
        return "ptxas is not on the PATH (CUDA, or PyPI's nvidia-cuda-nvcc)"
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        return "the CUDA plugin is not installed (extra `aot`)"
    return None


required = pytest.mark.skipif(_missing() is not None, reason=f"compiles for a GPU: {_missing()}")


def compile(target: str, function: Any, *args: Any) -> tuple[Kernel, ...]:
    """Compiles jit(function) for a GPU of TARGETS; args are pytrees of arrays or ShapeDtypeStructs.

    Returns the kernels in the order of their names, those that XLA itself generates included.

    Raises:
      CompileError: with what the compiler said.
    """
    process, log = _process(target)
    start = log.stat().st_size
    try:
        return process.submit(_compile, target, function, args).result()
    except CompileError as error:
        reason = str(error)
    except BrokenProcessPool:
        _process.cache_clear()
        reason = "the process died"
    said = log.read_bytes()[start:].decode(errors="replace")
    raise CompileError(f"{function} for {target}: {reason}\n{said[-4000:]}")


@functools.cache
def _process(target: str) -> tuple[ProcessPoolExecutor, Path]:
    folder = tempfile.TemporaryDirectory(prefix="aot-", ignore_cleanup_errors=True)
    log = Path(folder.name, "stderr")
    log.touch()
    context = multiprocessing.get_context("spawn")
    process = ProcessPoolExecutor(1, mp_context=context, initializer=_start, initargs=(folder.name,))
    process.folder = folder  # lives as long as the process
    return process, log


# ------------------------------------------------------------------------------------------------- in the other process


def _start(folder: str) -> None:
    for name in ("xla", "mosaic"):
        Path(folder, name).mkdir()
    with Path(folder, "stderr").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ["XLA_FLAGS"] = f"--xla_dump_to={folder}/xla --xla_dump_emitter_re=ptx"
    os.environ["MOSAIC_GPU_DUMP_PTX"] = "1"
    os.environ["MOSAIC_GPU_DUMP_TO"] = f"{folder}/mosaic"
    os.environ["AOT_FOLDER"] = folder
    jax.config.update("jax_platforms", "cpu")


def _compile(target: str, function: Any, args: tuple[Any, ...]) -> tuple[Kernel, ...]:
    xla, mosaic = (Path(os.environ["AOT_FOLDER"], name) for name in ("xla", "mosaic"))
    for path in (*xla.iterdir(), *mosaic.iterdir()):
        path.unlink()
    device = _device(target)
    sharding = jax.sharding.SingleDeviceSharding(device)
    args = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), args)
    try:
        with compat.gpu_target(device.device_kind, device.core_count):
            jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).compile()
    except Exception as error:  # exceptions of XLA's do not pickle
        raise CompileError(str(error)) from None
    shared = _shared_memory(xla, mosaic)
    kernels = [kernel for path in (*xla.glob("*.ptx"), *mosaic.glob("*.ptx")) for kernel in _assemble(path, shared)]
    return tuple(sorted(kernels, key=lambda kernel: kernel.name))


@functools.cache
def _device(target: str) -> Any:
    text = TARGETS[target].read_text()
    topology = topologies.get_topology_desc(platform="cuda", topology_name=target, topology="1x1x1", target_config=text)
    return topology.devices[0]


def _shared_memory(xla: Path, mosaic: Path) -> dict[str, int]:
    # By XLA's kernel names, and by the stems of Mosaic's files.
    text = "".join(path.read_text() for path in xla.glob("*thunk_sequence.txt"))
    shared = {name: int(size) for name, size in re.findall(r"\] (\S+) grid: .* shared_memory: (\d+) bytes", text)}
    for path in mosaic.glob("*.resources.txt"):
        [size] = re.findall(r"smem_scratch_bytes=(\d+)", path.read_text())
        shared[path.name.removesuffix(".resources.txt")] = int(size)
    return shared


def _assemble(path: Path, shared: dict[str, int]) -> list[Kernel]:
    ptx = path.read_text()
    [arch] = re.findall(r"^\.target (sm_\w+)", ptx, re.MULTILINE)
    command = ["ptxas", "-v", f"-arch={arch}", str(path), "-o", os.devnull]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    kernels = []
    for part in log.split("Compiling entry function '")[1:]:
        name = part.partition("'")[0]
        [registers] = map(int, re.findall(r"Used (\d+) registers", part))
        spilled = map(int, re.findall(r"(\d+) bytes spill", part))
        in_block = shared.get(name, shared.get(path.stem, 0))
        kernels.append(Kernel(name, ptx, log, registers, in_block, sum(spilled)))
    return kernels
