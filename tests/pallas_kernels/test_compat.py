import jax
import pytest

from pallas_kernels import compat


@pytest.mark.parametrize(
    ("device_kind", "capability"),
    [
        ("Tesla T4", 75),
        ("NVIDIA A100-SXM4-40GB", 80),
        ("NVIDIA A10G", 86),
        ("NVIDIA L40S", 89),
        ("NVIDIA H100 80GB HBM3", 90),
        ("NVIDIA GH200 480GB", 90),
        ("NVIDIA B200", 100),
    ],
)
def test_capability_of_a_target(device_kind, capability):
    with compat.gpu_target(device_kind, 7):
        assert compat.compute_capability() == capability
        assert compat.core_count() == 7


def test_gpus_of_others_are_none(monkeypatch):
    asked = []

    def local_devices(backend):
        asked.append(backend)
        raise RuntimeError("Unknown backend")

    monkeypatch.setattr(jax, "local_devices", local_devices)
    assert compat.compute_capability() is None
    assert asked == ["cuda"]


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="of a machine without a GPU")
def test_no_gpu():
    assert compat.compute_capability() is None
    assert compat.core_count() == 132
