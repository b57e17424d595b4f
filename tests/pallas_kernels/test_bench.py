"""The benchmark without a GPU: tiny shapes, interpreted; and everything it runs on an H100 compiles for one."""

import dataclasses
import functools
import json

import aot
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import compat
from pallas_kernels.bench import clock, table
from pallas_kernels.bench.__main__ import main
from pallas_kernels.bench.cases import as_int8, draw, timed
from pallas_kernels.bench.checks import TMA_CONFIGS, Check, checks, difference, poisoned
from pallas_kernels.bench.run import Run
from pallas_kernels.matmul import tma

HAS_MOSAIC = tma.supports(*[jax.ShapeDtypeStruct((8, 32), jnp.int8)] * 2, out_dtype=jnp.int32) is None
ONE_EACH = "^matmul (7x13x21 .* full by Dot4|1x24x64)|^quantize 3x5x7"


def test_tiny_and_interpreted(tmp_path, capsys):
    output = tmp_path / "rows.jsonl"
    command = ["--interpret", "--output", str(output), "--only", ONE_EACH]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "3 passed, 0 failed"
    assert "geometric mean" in said
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["ceiling", "ceiling", "check", "check", "time"]
    assert {"us", "tops", "roofline", "baselines", "bytes"} <= rows[-1].keys()
    assert rows[-1]["bytes"] == 1 * 64 + 24 * 64 + 4 * 4 * 24 + 24
    assert rows[-1]["baselines"]["bf16"]["us"] > 0

    output.write_text(output.read_text()[:-9])  # killed while it wrote the last row
    assert main([*command, "--budget", "0"]) == 0
    assert "skipped, the budget of 0 s being spent: matmul 1x24x64" in capsys.readouterr().out
    assert output.read_text().count("\n") == 4


def test_layers_are_those_of_a_network():
    """Behind ReLU bytes are unsigned, and 16 blocks end with a shortcut; cuDNN gets bytes as it takes them."""
    layers = [case for case in timed() if case.group == "ResNet-50 at 32"]
    assert sum(case.count for case in layers) == 53
    assert sum(case.count for case in layers if case.types[2].residual is not None) == 16
    assert {case.types[0].dtype for case in layers} == {jnp.dtype("uint8")}
    outs = [jax.eval_shape(case.reference, *case.types).dtype for case in layers]
    assert sum(case.count for case, out in zip(layers, outs, strict=True) if out == jnp.int8) == 4
    [shortcut] = [case for case in timed(tiny=True) if "shortcut" in case.name]
    signed = as_int8(draw(shortcut.types, shortcut.bounds, 0))
    assert signed[0].dtype == signed[2].residual.dtype == jnp.int8


def test_tune(tmp_path, capsys):
    [case] = [case for case in timed(tiny=True) if case.name == "matmul 1x24x64"]
    two = case.candidates()[:2]
    run = Run(tmp_path / "rows", budget=60, interpret=True)
    run.tune([dataclasses.replace(case, candidates=lambda: two)])
    row = json.loads((tmp_path / "rows").read_text())
    assert row["passed"] and row["default"] == str(two[0])
    assert row["times"].keys() == set(map(str, two))
    assert list(row["times"].values()) == sorted(row["times"].values(), key=lambda times: times["us"])
    assert "(the default)" in capsys.readouterr().out


@pytest.mark.slow
def test_all_that_is_tiny(capsys):
    assert main(["--interpret"]) == 0


def test_list(capsys):
    assert main(["--list"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert len(set(names)) == len(names)
    for name in ("matmul 4096x4096x4096", "matmul 1x11008x4096", "conv 128x7x7x512 3x3/1 512"):
        assert name in names


@pytest.mark.parametrize(
    ("gpu", "of_the_chip"),
    [
        (("Tesla T4", 40), "Dot4Config ConvChannelConfig ConvDot4Config"),
        (("NVIDIA A100-SXM4-80GB", 108), "Dot4Config MmaConfig ConvMmaConfig ConvChannelConfig ConvDot4Config"),
        (("NVIDIA H100 80GB HBM3", 132), "MmaConfig WgmmaConfig ConvMmaConfig ConvChannelConfig ConvDot4Config"),
        (("NVIDIA B200", 148), "MmaConfig Tcgen05Config ConvMmaConfig ConvChannelConfig ConvDot4Config"),
    ],
)
def test_every_kernel_of_the_chip_is_checked(gpu, of_the_chip):
    with compat.gpu_target(*gpu):
        configs = [str(check.kernel.keywords.get("config")) for check in checks()]
    mosaic = set() if HAS_MOSAIC else {"WgmmaConfig", "Tcgen05Config"}
    found = {config.partition("(")[0] for config in configs}
    assert found >= {*of_the_chip.split(), "None"} - mosaic
    for config in TMA_CONFIGS if HAS_MOSAIC else ():
        assert (str(config) in configs) == (type(config).__name__ in of_the_chip)


def test_without_a_gpu_it_says_so(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "--interpret" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- what it finds


def wrong(x, *, interpret):
    return x.at[0].add(1)


def broken(x, *, interpret):
    raise RuntimeError("no such instruction")


@pytest.mark.parametrize(("kernel", "reason"), [(wrong, "1 of 3 elements differ"), (broken, "no such instruction")])
def test_a_kernel_that_fails_is_a_row(kernel, reason):
    run = Run(None, budget=60, interpret=True)
    right = Check("right", functools.partial(lambda x, *, interpret: x), lambda x: x, lambda: (jnp.arange(3),))
    run.check([Check("it", kernel, lambda x: x, lambda: (jnp.arange(3),)), right])
    assert [row["passed"] for row in run.rows] == [False, True]
    assert reason in run.failed[0]["reason"]


def test_poison_shows_what_is_not_written():
    x = jnp.arange(4, dtype=jnp.int8)
    unwritten = jax.jit(lambda poison, x: poison.at[:3].set(x[:3]), donate_argnums=0)
    assert difference(unwritten, (x,), np.arange(4, dtype=np.int8)) == "1 of 4 elements differ"
    assert difference(poisoned(lambda x: x + jnp.int8(0)), (x,), np.arange(4, dtype=np.int8)) is None
    elsewhere = jax.jit(lambda poison, x: x + jnp.int8(0), keep_unused=True)
    assert "not where the poison was" in difference(elsewhere, (x,), np.arange(4, dtype=np.int8))


def test_inputs_rotate_past_the_cache():
    assert clock.copies(200 * 2**20) == 1
    assert clock.copies(16 * 2**20) * 16 * 2**20 > 2 * clock.l2("cpu")
    assert clock.l2("NVIDIA B200") > 2 * clock.l2("NVIDIA H100 80GB HBM3")
    call = clock.Call(lambda x: x, [(0,), (1,)])
    assert [call(turn) for turn in range(3)] == [0, 1, 0]


class Profiler:
    """Kernels take as long as the number they are called with; `f` launches two."""

    def measure(self, sequence, *, aggregate):
        assert isinstance(sequence, jax.stages.Wrapped)
        launched = []
        for call, turn in sequence.order:
            name, value = call(turn)
            launched += [(name, value / 2)] * 2 if name == "f" else [(name, value)]
        return lambda: (None, launched)


def test_kernels_are_told_apart_by_their_number():
    cupti = object.__new__(clock.Cupti)
    cupti.profiler = Profiler()
    calls = {
        name: clock.Call(lambda n, v: (n, v), [(name, k * v) for k in (1, 2)]) for name, v in (("f", 6), ("g", 10))
    }
    times = cupti(calls, 3)
    np.testing.assert_allclose(times["f"], [12e-3, 6e-3, 12e-3])
    np.testing.assert_allclose(times["g"], [20e-3, 10e-3, 20e-3])


def test_roofline():
    assert table.peak("NVIDIA H100 80GB HBM3", 1) == 1979e12
    assert table.peak("another", 4e14) == 8e14
    assert table.roofline(2000, 10, 1000, 10) == 2
    assert table.roofline(2000, 50, 1000, 10) == 5


# --------------------------------------------------------------------------------------------------- compiled for H100

with compat.gpu_target():  # its kernels
    EVERYTHING = {item.name: item for item in (*timed(), *checks())}


@pytest.mark.slow
@aot.required
@pytest.mark.parametrize("name", EVERYTHING)
def test_it_compiles_for_an_h100(name):
    item = EVERYTHING[name]
    operands = jax.eval_shape(item.operands) if isinstance(item, Check) else item.types
    kernels = aot.compile("h100", item.kernel, *operands)
    assert kernels
    assert all(kernel.spill_bytes == 0 for kernel in kernels)
