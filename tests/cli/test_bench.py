"""`jaxq bench`: what it reports, never how fast."""

import json

import pytest

from jaxq.cli import main
from jaxq.cli.stopwatch import interleaved


def test_bench(files, capsys):
    options = ["--batch", "1,4", "--against", "float", "--layers", "--seconds", "0.02"]
    assert main(["bench", files.mlp, *options, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [each["batch"] for each in found["batches"]] == [1, 4]
    for each in found["batches"]:
        for precision in ("int8", "float"):
            times = each[precision]
            assert times["calls"] >= 5
            assert 0 < times["p50_ms"] <= times["p90_ms"] <= times["p99_ms"]
            assert times["examples_per_second"] == pytest.approx(each["batch"] * times["calls_per_second"])
        assert each["float_over_int8"] == pytest.approx(each["float"]["p50_ms"] / each["int8"]["p50_ms"])
        assert [layer["name"] for layer in each["layers"]] == ["input/quantize", "0", "1"]
        assert sum(layer["share"] for layer in each["layers"]) == pytest.approx(1)
    assert "batch 4: float compiled in " in err


def test_bench_as_a_table(files, capsys):
    assert main(["bench", files.mlp, "--layers", "--seconds", "0.01"]) == 0
    text = capsys.readouterr().out
    assert "\nbatch  precision  p50 ms" in text and "\nlayer           op" in text


def test_turns():
    order = []
    times = interleaved({name: lambda name=name: order.append(name) for name in "ab"}, 1e-9)
    assert "".join(order) == "aabb" * 5  # the first call of a turn does not count
    assert [len(each.calls) for each in times.values()] == [5, 5]
