"""Calibrations and checkpoints as files: exact, without samples, and a CalibrationError for everything damaged."""

import dataclasses
import json
import os

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from networks import images, mlp, mlp_params

import jaxq
from jaxq import files
from jaxq.calibration import cache
from jaxq.calibration.result import Calibration
from jaxq.config import METHODS

SECRET = images(8, 6)
BATCHES = [SECRET, images(8, 6, seed=1), images(3, 6, seed=2)]


@pytest.fixture(scope="module")
def calibration():
    return jaxq.calibrate(mlp, mlp_params(6, 5, 4), BATCHES)


@pytest.fixture(scope="module")
def saved(calibration, tmp_path_factory):
    path = tmp_path_factory.mktemp("calibration") / "net.calibration"
    calibration.save(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(calibration, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "net.checkpoint"
    cache.save_checkpoint(path, calibration.statistics, calibration.fingerprint)
    return path


def assert_same_counts(ours, theirs):
    assert ours.digests == theirs.digests
    assert [shot.num_examples for shot in ours.snapshots] == [shot.num_examples for shot in theirs.snapshots]
    for mine, other in zip(ours.snapshots, theirs.snapshots, strict=True):
        assert list(mine.histograms) == list(other.histograms)
        for name, histogram in mine.histograms.items():
            np.testing.assert_array_equal(histogram.counts, other.histograms[name].counts)
            assert histogram.amax == other.histograms[name].amax


def assert_same(ours, theirs):
    assert_same_counts(ours.statistics, theirs.statistics)
    assert ours.fingerprint == theirs.fingerprint
    assert ours.signature == theirs.signature
    assert ours.tensors == theirs.tensors
    assert ours.errors == theirs.errors


def test_a_loaded_calibration_is_the_calibration(calibration, saved):
    loaded = Calibration.load(saved)
    assert_same(loaded, calibration)
    assert len(loaded.statistics.snapshots) == 3
    for method in METHODS:
        assert loaded.thresholds(method) == calibration.thresholds(method)
    assert loaded.thresholds("percentile", percentile=90) == calibration.thresholds("percentile", percentile=90)
    assert str(loaded.report()) == str(calibration.report())
    assert repr(loaded) == repr(calibration) == "Calibration(2 tensors, 19 examples)"


def test_saving_again_gives_the_same_file(saved, tmp_path):
    Calibration.load(saved).save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()


def test_the_file_holds_no_sample(calibration, saved, checkpoint):
    rows = [row.tobytes() for batch in BATCHES for row in batch]
    assert calibration.statistics.samples and Calibration.load(saved).statistics.samples == ()
    assert not any(row in saved.read_bytes() for row in rows)
    assert any(row in checkpoint.read_bytes() for row in rows)  # the search would find one


def test_a_loaded_checkpoint_is_the_statistics(calibration, checkpoint):
    statistics, fingerprint = cache.load_checkpoint(checkpoint)
    assert fingerprint == calibration.fingerprint
    assert_same_counts(statistics, calibration.statistics)
    for ours, theirs in zip(statistics.samples, calibration.statistics.samples, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_is_packed_is_what_is_saved(calibration, checkpoint):
    assert cache.pack_checkpoint(calibration.statistics, calibration.fingerprint) == checkpoint.read_bytes()


def test_samples_of_many_arguments_and_dtypes(tmp_path):
    """More than ten leaves: they come back in their order. bfloat16 is no dtype of numpy."""
    dtypes = (np.float32, np.float16, ml_dtypes.bfloat16, np.int32, np.uint8, np.bool_)

    def fun(params, leaves):
        return sum(leaf.astype(np.float32) for leaf in leaves) @ params["w"]

    batch = [(10 * images(4, 6, seed=i)).astype(dtypes[i % 6]) for i in range(12)]
    path = tmp_path / "checkpoint"
    c = jaxq.calibrate(fun, {"w": images(6, 2)}, [batch], checkpoint=path)
    samples = cache.load_checkpoint(path)[0].samples
    assert [s.dtype for s in samples] == [leaf.dtype for leaf in batch]
    for ours, theirs in zip(samples, c.statistics.samples, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    c.save(tmp_path / "calibration")
    assert Calibration.load(tmp_path / "calibration").signature == c.signature


def test_nested_arguments_are_kept(tmp_path):
    def fun(params, batch, temperature):
        return batch["a"][0] @ params / temperature

    c = jaxq.calibrate(fun, images(6, 2), [({"a": [images(8, 6)], "b": None}, np.float32(2))])
    c.save(tmp_path / "calibration")
    assert Calibration.load(tmp_path / "calibration").signature == c.signature


LOADERS = {"calibration": Calibration.load, "checkpoint": cache.load_checkpoint}


def rejected(path, message=None, kind="calibration"):
    with pytest.raises(jaxq.CalibrationError, match=message) as caught:
        LOADERS[kind](path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", LOADERS)
def test_truncated_files(saved, checkpoint, tmp_path, kind):
    data = (saved if kind == "calibration" else checkpoint).read_bytes()
    for tenth in range(10):
        (tmp_path / "cut").write_bytes(data[: len(data) * tenth // 10])
        rejected(tmp_path / "cut", kind=kind)


def test_changed_bytes(calibration, saved, tmp_path):
    """Every change is found, or is one that changes nothing (the padding of the header)."""
    data = saved.read_bytes()
    rng = np.random.default_rng(0)
    start = 8 + int.from_bytes(data[:8], "little")
    places = [*rng.integers(0, start, 150), *rng.integers(start, len(data), 50), *range(16)]
    found = 0
    for place in places:
        changed = bytearray(data)
        changed[place] ^= int(rng.integers(1, 256))
        (tmp_path / "changed").write_bytes(changed)
        try:
            assert_same(Calibration.load(tmp_path / "changed"), calibration)
        except jaxq.CalibrationError as error:
            assert "changed" in str(error)
            found += 1
    assert found > 200


def test_foreign_files(saved, checkpoint, tmp_path):
    for name, data in (("empty", b""), ("text", b"hello" * 100), ("zeros", bytes(4096)), ("zip", b"PK\x03\x04" * 99)):
        (tmp_path / name).write_bytes(data)
        rejected(tmp_path / name, "no jaxq calibration")
    safetensors.numpy.save_file({"a": np.zeros(3)}, tmp_path / "foreign")
    rejected(tmp_path / "foreign", "a safetensors file, but no jaxq calibration")
    rejected(checkpoint, "no jaxq calibration")
    rejected(saved, "no jaxq checkpoint", kind="checkpoint")
    rejected(tmp_path / "missing", "cannot be read")
    rejected(tmp_path)


def test_a_plan_is_no_calibration(calibration, saved, tmp_path):
    path = tmp_path / "net.jaxq"
    jaxq.quantize(mlp, mlp_params(6, 5, 4), calibration=calibration).save(path)
    rejected(path, "no jaxq calibration")
    with pytest.raises(jaxq.PlanError, match="no jaxq plan"):
        jaxq.load(saved)


def edited(path, tmp_path, edit):
    """A file whose header or arrays say something else, the digests right."""
    key = cache.CALIBRATION.key
    with safetensors.safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()[key].partition("\n")[2])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    edit(header, arrays)
    if "sha256" in header:
        header["sha256"] = {name: files._digest(array.tobytes()) for name, array in arrays.items()}
    text = json.dumps(header)
    metadata = {key: f"{files._digest(text.encode())}\n{text}"}
    safetensors.numpy.save_file(arrays, tmp_path / "edited", metadata=metadata)
    return tmp_path / "edited"


def test_a_newer_file(saved, tmp_path):
    path = edited(saved, tmp_path, lambda header, _: header.update(schema=99))
    rejected(path, "schema 99, this jaxq reads 1; install the jaxq that wrote it")


@pytest.mark.parametrize(
    "edit",
    [
        lambda h, a: h.pop("names"),
        lambda h, a: h["names"].pop(),
        lambda h, a: h.update(names=[["list"], "0"]),
        lambda h, a: h.update(num_examples=[]),
        lambda h, a: h.update(num_examples=[None, 1, 2]),
        lambda h, a: h.update(digests=3),
        lambda h, a: h.update(layers=[1]),
        lambda h, a: h.update(tree={"$eval": []}),
        lambda h, a: h["leaves"].pop(),
        lambda h, a: h.update(leaves=[[[8, 6], "no dtype"]]),
        lambda h, a: h["tensors"].append([["nowhere"], "int8"]),
        lambda h, a: h["tensors"].append([[], "int8"]),
        lambda h, a: h.update(tensors=[[["input"], "int4"]]),
        lambda h, a: h.update(errors=[]),
        lambda h, a: h.update(errors={"input": [[1.0, {"0": "much"}]]}),
        lambda h, a: h.update(errors={"input": [[10**400, {"0": 1.0}]]}),
        lambda h, a: h.pop("sha256"),
        lambda h, a: a.pop("amax"),
        lambda h, a: a.update(counts=a["counts"].astype(np.int32)),
        lambda h, a: a.update(counts=a["counts"][..., :-1].copy()),
        lambda h, a: a["amax"].fill(np.nan),
        lambda h, a: a["amax"].fill(-1),
    ],
)
def test_an_edited_file(saved, tmp_path, edit):
    rejected(edited(saved, tmp_path, edit))


def test_a_failed_save_leaves_the_old_file(calibration, tmp_path, monkeypatch):
    target = tmp_path / "net.calibration"
    target.write_bytes(b"old")

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        calibration.save(target)
    with pytest.raises(KeyboardInterrupt):
        cache.save_checkpoint(target, calibration.statistics, calibration.fingerprint)
    assert [p.name for p in tmp_path.iterdir()] == ["net.calibration"]
    assert target.read_bytes() == b"old"


def test_a_file_that_cannot_be_written(calibration, tmp_path):
    with pytest.raises(jaxq.CalibrationError, match="nowhere/c: cannot be written: No such file"):
        calibration.save(tmp_path / "nowhere" / "c")


def test_what_a_file_cannot_hold(tmp_path):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Batch:
        x: jax.Array

    c = jaxq.calibrate(lambda p, batch: batch.x @ p, images(6, 2), [Batch(images(8, 6))])
    with pytest.raises(jaxq.UnsupportedError, match="the arguments hold a Batch"):
        c.save(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_without_samples_nothing_is_measured_and_kept(tmp_path):
    path = tmp_path / "checkpoint"
    config = jaxq.QuantConfig(method="mse")
    c = jaxq.calibrate(mlp, mlp_params(6, 5, 4), [SECRET], config=config, checkpoint=path)
    assert c.errors == {} and cache.load_checkpoint(path)[0].samples == ()
