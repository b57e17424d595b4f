"""kill -9 while a plan is saved, or while tuning keeps its timings: the old file is there, or the new one, whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from networks import images, mlp, mlp_params

import jaxq

KILLS = Path(__file__).parent / "kills.py"


@pytest.fixture
def folder(tmp_path):
    for name, sizes in (("a", (60, 50, 4)), ("b", (60, 90, 4))):
        config = jaxq.QuantConfig(method="amax")
        jaxq.quantize(mlp, mlp_params(*sizes), [images(8, 60)], config=config).save(tmp_path / f"{name}.jaxq")
    return tmp_path


@pytest.mark.parametrize("count", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_while_writing(count, folder):
    environment = os.environ | {"PYTHONPATH": str(Path(jaxq.__file__).parents[1])}
    subprocess.run([sys.executable, KILLS, str(count), folder], env=environment, check=True)
