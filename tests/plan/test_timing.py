"""Turns, and the file that remembers them."""

import json
import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from jaxq.graph.node import Aval
from jaxq.plan import timing
from jaxq.plan.timing import TimingCache, drawn, interleaved


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0, calls=[])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now.seconds)
    return now


def taking(clock, name, seconds):
    def call():
        clock.calls.append(name)
        clock.seconds += next(seconds)

    return call


def test_turns_are_taken_in_turn_until_the_fastest_is_settled(clock):
    a = taking(clock, "a", iter([9.0, 1.0, 1.1, 1.0, 1.2, 50.0]))
    b, c = (taking(clock, name, iter([9.0, 2.0, 2.1, 2.2, 2.0, 2.0])) for name in "bc")
    assert interleaved([a, b, c], seconds=1000) == pytest.approx([1.1, 2.0, 2.0])
    assert clock.calls == ["a", "b", "c"] * 6


def test_what_is_even_is_measured_to_the_end(clock):
    times = ([9.0] + [1.0, 1.1] * 50 for _ in range(2))
    interleaved([taking(clock, i, iter(of_one)) for i, of_one in enumerate(times)], seconds=40)
    assert 57 <= clock.seconds <= 61


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXQ_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_the_file_remembers(folder):
    cache = TimingCache()
    assert cache.get("conv") is None
    cache.put("conv", 0.25)
    cache.save()
    again = TimingCache()
    assert (again.get("conv"), again.used) == (0.25, {"conv": 0.25})
    assert cache.path.parent == folder / "timings"
    assert json.loads(cache.path.read_text())["device"] == cache.device


def test_another_version_of_jax_measures_anew(folder, monkeypatch):
    cache = TimingCache()
    cache.put("conv", 0.25)
    cache.save()
    monkeypatch.setattr(timing.jax, "__version__", "99.0")
    assert TimingCache().get("conv") is None


def test_processes_that_write_at_a_time_lose_nothing(folder):
    def write(i):
        cache = TimingCache()
        for j in range(5):
            cache.put(f"{i} {j}", 1.0 + i)
            cache.save()

    threads = [threading.Thread(target=write, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache = TimingCache()
    assert all(cache.get(f"{i} {j}") == 1.0 + i for i in range(6) for j in range(5))
    assert not [path for path in cache.path.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"seconds": 1}', '{"seconds": {"a": "x"}}', '{"seconds": {"a": -1}}', "[" * 100_000, "\xff"],
)
def test_a_file_that_is_none_is_told_of_and_written_anew(folder, text):
    path = TimingCache().path
    path.parent.mkdir()
    path.write_text(text, encoding="latin-1")
    with pytest.warns(UserWarning, match="cannot be read .* written anew"):
        cache = TimingCache()
    cache.put("conv", 0.25)
    with pytest.warns(UserWarning, match="cannot be read"):
        cache.save()
    assert TimingCache().get("conv") == 0.25


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(folder):
    folder.chmod(0o500)
    cache = TimingCache()
    cache.put("conv", 0.25)
    with pytest.warns(UserWarning, match="cannot be written"):
        cache.save()


def test_a_folder_that_is_a_file(folder):
    (folder / "timings").write_text("")
    with pytest.warns(UserWarning, match="cannot be read"):
        cache = TimingCache()
    cache.put("conv", 0.25)
    with pytest.warns(UserWarning, match="cannot be written"):
        cache.save()


def test_drawn_arrays():
    avals = [Aval((2, 3), np.dtype(name)) for name in ("float32", "int8", "uint8", "int32", "bool")]
    arrays = drawn(avals)
    assert [(array.shape, array.dtype.name) for array in arrays] == [((2, 3), aval.dtype.name) for aval in avals]
    assert arrays[0].std() > 0 and arrays[1].min() >= -127 and not arrays[3].any()
