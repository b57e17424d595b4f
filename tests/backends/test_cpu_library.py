"""The library of the CPU kernels: what environment variables choose, and what happens where there is none."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest

import jaxq
from jaxq.backends.cpu import library
from jaxq.errors import JaxqError

built = pytest.mark.skipif(library.available() is not None, reason=f"no CPU kernels: {library.available()}")


@pytest.fixture
def anew(monkeypatch):
    """Sets environment variables, after which the library is loaded as in a new process."""

    def setenv(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(library, "_load", library._load.__wrapped__)

    return setenv


@built
def test_the_best_instruction_set_is_in_use():
    assert library.isas()[-1] == "generic"
    assert library.isa() == os.environ.get("JAXQ_CPU_ISA", library.isas()[0])
    assert all(rate > 0 for rate in library.peak(threads=1).values())


@built
@pytest.mark.parametrize("word", ["avx1024", "AVX2", "neon" if platform.machine() == "x86_64" else "avx2"])
def test_an_instruction_set_that_the_machine_lacks(anew, word):
    anew(JAXQ_CPU_ISA=word)
    with pytest.raises(JaxqError, match=f"JAXQ_CPU_ISA={word}: this machine has .*generic"):
        library.available()
    with pytest.raises(JaxqError, match="JAXQ_CPU_ISA"):
        library.isa()


def test_another_library(anew, tmp_path):
    path = tmp_path / "_jaxq_cpu.so"
    anew(JAXQ_CPU_LIBRARY=path)
    with pytest.raises(JaxqError, match=f"JAXQ_CPU_LIBRARY={path}: there is no such file"):
        library.available()
    path.write_text("no library")
    with pytest.raises(JaxqError, match=f"JAXQ_CPU_LIBRARY: {path} cannot be loaded"):
        library.available()


@pytest.mark.parametrize(("running", "mend"), [((0, 0), "Upgrade jaxlib"), ((9, 0), "Upgrade jaxq"), (None, "read")])
@built
def test_a_jaxlib_that_does_not_take_it(anew, monkeypatch, running, mend):
    anew()
    monkeypatch.setattr(library, "_ffi_version", lambda: running)
    assert mend in library.available()
    with pytest.raises(JaxqError, match=mend):
        library.peak()


SERVE = """
import sys, numpy as np, jax._src.xla_bridge as bridge, jaxq
assert not bridge._backends, "importing jaxq started a backend of JAX"
for _ in range(2):
    np.save(sys.argv[3], jaxq.load(sys.argv[1])(np.load(sys.argv[2])))
"""


def test_without_the_library_one_line_says_so_and_the_bits_are_the_same(tmp_path):
    model, inputs, outputs = tmp_path / "net.jaxq", tmp_path / "x.npy", tmp_path / "y.npy"
    x, weight = np.random.default_rng(0).normal(size=(2, 9, 21)).astype(np.float32)
    qmodel = jaxq.quantize(lambda w, x: x @ w.T, weight, [x], config=jaxq.QuantConfig(method="amax"))
    qmodel.save(model)
    np.save(inputs, x)
    run = subprocess.run(
        [sys.executable, "-c", SERVE, model, inputs, outputs],
        env=os.environ | {"JAXQ_CPU_LIBRARY": "none", "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert run.stderr.count("int8 runs through XLA") == 1
    assert "JAXQ_CPU_LIBRARY=none" in run.stderr
    np.testing.assert_array_equal(np.load(outputs), qmodel(x))
