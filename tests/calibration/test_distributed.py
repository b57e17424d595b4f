"""Calibration over the devices of two processes, on this machine's CPU. (Eight devices of one process are in
on_eight_devices.py, which ../test_eight_devices.py runs.)"""

import json
import socket
from pathlib import Path

import jax
import numpy as np
import pytest
from networks import images, mlp, mlp_params
from subprocesses import finish, start

import jaxq

HERE = Path(__file__).parent


@pytest.mark.parametrize("mesh", [2, "devices", jax.devices()[:1]])
def test_a_mesh_that_is_none(mesh):
    with pytest.raises(jaxq.UnsupportedError, match="takes a jax.sharding.Mesh"):
        jaxq.calibrate(mlp, mlp_params(6, 16, 3), [images(4, 6)], mesh=mesh)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes wrote: see processes.py."""
    folder, port = tmp_path_factory.mktemp("processes"), free_port()
    finish(*(start(HERE / "processes.py", port, index, folder, devices=2) for index in range(2)))
    return folder


def outcomes(folder, name):
    return [json.loads((folder / f"outcomes {index}").read_text())[name] for index in range(2)]


def single(*seeds):
    """One process with one device; the batches are those of each of two devices."""
    batches = [half for seed in seeds for half in np.split(images(8, 6, seed=seed), 2)]
    return jaxq.calibrate(mlp, mlp_params(6, 16, 3), batches)


def assert_same(ours, theirs):
    assert ours.num_examples == theirs.num_examples
    assert ours.tensors == theirs.tensors
    assert ours.errors == theirs.errors
    jax.tree.map(np.testing.assert_array_equal, dict(ours.histograms), dict(theirs.histograms))


@pytest.mark.parametrize("name", ["together", "together again"])
def test_two_processes_are_as_one(folder, name):
    assert outcomes(folder, name) == ["finished", "finished"]
    first, second = (jaxq.Calibration.load(folder / f"{name} {index}") for index in range(2))
    assert first.statistics.digests == second.statistics.digests
    assert_same(first, second)
    assert_same(first, single(0, 1, 2, 3, 4))


def test_a_mesh_of_its_own_devices_is_a_process_of_its_own(folder):
    assert_same(jaxq.Calibration.load(folder / "alone 0"), single(0, 1, 2))
    assert_same(jaxq.Calibration.load(folder / "alone 1"), single(3, 4))


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("nan", "CalibrationError: process 1 of 2 failed", "CalibrationError: batch 2, argument 0: 48 of its 48"),
        ("nan first", "CalibrationError: batch 0, argument 0: 48 of", "CalibrationError: process 0 of 2 failed"),
        ("empty", "CalibrationError: process 1 of 2 failed", "CalibrationError: batches: the iterator is empty"),
        ("all empty", "CalibrationError: batches: the iterator", "CalibrationError: batches: the iterator"),
        ("loader", "OSError: the disk is gone", "CalibrationError: process 0 of 2 failed"),
        ("networks", "CalibrationError: process 1 of 2 calibrates", "CalibrationError: process 0 of 2 calibrates"),
        ("configs", "CalibrationError: process 1 of 2 calibrates", "CalibrationError: process 0 of 2 calibrates"),
        ("settled", "UnsupportedError: until='settled'", "UnsupportedError: until='settled'"),
    ],
)
def test_what_fails_in_one_process_fails_in_both(folder, name, first, second):
    ours, theirs = outcomes(folder, name)
    assert ours.startswith(first)
    assert theirs.startswith(second)
