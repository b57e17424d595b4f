"""The kernels of every instruction set against plain definitions: kernels/, and what is made of several kernels:
product_test.cc. They are compiled here: plain, with sanitizers, and for Arm, which qemu runs.
"""

import os
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = Path(__file__).parents[3] / "jaxq" / "backends" / "cpu" / "src"

pytestmark = pytest.mark.slow  # compiles for a minute

AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx2 -mfma"
X86 = {
    "generic": "",
    "avx2": "-mavx2 -mfma",
    "avxvnni": "-mavx2 -mfma -mavxvnni",
    "avx512": AVX512,
    "amx": f"{AVX512} -mamx-tile -mamx-int8",
}
ARM = {"generic": "", "neon": "-march=armv8.2-a+dotprod"}
# The files that each program is made of.
PROGRAMS = {
    "kernels": sorted((HERE / "kernels").glob("*.cc")),
    "product_test": [HERE / "product_test.cc"],
    "row_sums_test": [HERE / "row_sums_test.cc"],
}
HISTOGRAM = {"histogram_test": [HERE / "histogram_test.cc"]}
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all -g1"


def compiler(name: str) -> str:
    path = shutil.which(name)
    if path is None or not SOURCES.is_dir():
        pytest.skip(f"no {name}" if path is None else f"no {SOURCES}")
    return path


def native() -> tuple[str, dict[str, str]]:
    machine = platform.machine()
    if machine not in ("x86_64", "aarch64"):
        return compiler("g++"), {"generic": ""}
    return compiler("g++"), X86 if machine == "x86_64" else ARM


def build(
    folder: Path, gxx: str, isas: dict[str, str], flags: str = "", programs: dict[str, list[Path]] = PROGRAMS
) -> list[Path]:
    """The objects of the instruction sets, isa_*.o, and the programs of all of them."""
    common = f"-std=c++17 -ffp-contract=off -fno-math-errno -Wall -Wextra -Wno-psabi {flags}".split()
    common += [f"-I{SOURCES}", f"-I{HERE}"]
    have = [f"-DJAXQ_HAVE_{isa.upper()}" for isa in isas]
    sources = {SOURCES / f"isa_{isa}.cc": f"-O3 {more}".split() for isa, more in isas.items()}
    sources |= {SOURCES / "cpu_features.cc": ["-O1", *have]}
    tests = {source: ["-O1", *have] for files in programs.values() for source in files}

    def compile_one(source: Path) -> Path:
        to = folder / f"{source.stem}.o"
        subprocess.run([gxx, *common, *(sources | tests)[source], "-c", source, "-o", to], check=True)
        return to

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = dict(zip([*sources, *tests], pool.map(compile_one, [*sources, *tests]), strict=True))
    for program, files in programs.items():
        linked = [objects[source] for source in (*sources, *files)]
        subprocess.run([gxx, *common, *linked, "-o", folder / program], check=True)
    return [folder / program for program in programs]


def run(command: list[str | Path], **environment: object) -> dict[str, int]:
    """What passed, by instruction set, where nothing failed."""
    variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    result = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = re.findall(r"(\w+): (\d+) passed, 0 failed", result.stdout)
    assert lines, result.stdout
    return {name: int(passed) for name, passed in lines}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    build(folder, *native())
    return folder


def test_kernels_are_what_they_are_defined_as(plain: Path) -> None:
    passed = run([plain / "kernels"], ROUNDS=200)
    assert "generic" in passed and all(count > 2500 for count in passed.values())


def test_products_are_what_they_are_defined_as(plain: Path) -> None:
    passed = run([plain / "product_test"], ROUNDS=400)
    assert "generic" in passed and all(count >= 400 for count in passed.values())


def test_sums_of_rows_are_what_they_are_defined_as(plain: Path) -> None:
    assert "generic" in run([plain / "row_sums_test"], ROUNDS=200)


def test_no_inline_code_is_shared(plain: Path) -> None:
    """Of a weak symbol the linker keeps any one copy: perhaps one that not every machine can run."""
    for isa in native()[1]:
        listing = subprocess.run(["nm", "-C", plain / f"isa_{isa}.o"], check=True, capture_output=True, text=True)
        shared = re.findall(r"^\S+ [WVu] (.*)", listing.stdout, re.MULTILINE)
        assert not [name for name in shared if f"jaxq::{isa}::" not in name]


def test_kernels_touch_nothing_beyond_their_buffers(tmp_path: Path) -> None:
    for program in build(tmp_path, *native(), SANITIZERS):
        run([program], ROUNDS=100)


def test_histograms_are_what_they_are_defined_as(tmp_path: Path) -> None:
    for name, flags in {"plain": "", "sanitized": SANITIZERS}.items():
        (tmp_path / name).mkdir()
        (program,) = build(tmp_path / name, compiler("g++"), {}, flags, HISTOGRAM)
        run([program], ROUNDS=100)


def test_kernels_of_arm(tmp_path: Path) -> None:
    gxx, qemu = compiler("aarch64-linux-gnu-g++"), compiler("qemu-aarch64-static")
    for program in build(tmp_path, gxx, ARM, "-static"):
        assert set(run([qemu, "-cpu", "max", program], ROUNDS=50)) == {"generic", "neon"}
