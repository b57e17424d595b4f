"""All that needs eight devices: kernels and models inside `shard_map`, calibration over a mesh, training. In one
process, as it takes longer to start one than to run most of its tests."""

from subprocesses import TESTS, finish, start


def test_on_eight_devices():
    files = (TESTS / folder / "on_eight_devices.py" for folder in (".", "backends", "calibration"))
    finish(start("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *files, devices=8))
