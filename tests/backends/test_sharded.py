"""Kernels inside `shard_map`. How many devices a process has is settled when JAX starts: eight are one of their own."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_on_eight_devices():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    paths = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        str(HERE / "on_eight_devices.py"),
    ]
    environment = os.environ | flags | {"PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
