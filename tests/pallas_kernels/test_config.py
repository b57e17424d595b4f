import jax
import jax.numpy as jnp
import pytest
from convolutions import window
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import (
    ConvMmaConfig,
    Dot4Config,
    MmaConfig,
    Tcgen05Config,
    WgmmaConfig,
    candidates,
    conv_candidates,
    default_config,
)
from pallas_kernels.compat import gpu_target
from pallas_kernels.matmul import by_mma, by_wgmma

H100, A100, T4 = ("NVIDIA H100 80GB HBM3", 132), ("NVIDIA A100-SXM4-80GB", 108), ("Tesla T4", 40)
B200, B300 = ("NVIDIA B200", 148), ("NVIDIA B300 SXM6 AC", 148)
SHARED_KB = {H100: 227, A100: 163}
sizes = st.integers(0, 40_000)


def types(m, n, k, x_dtype=jnp.int8, batch=()):
    return jax.ShapeDtypeStruct((*batch, m, k), x_dtype), jax.ShapeDtypeStruct((*batch, n, k), jnp.int8)


HAS_MOSAIC = by_wgmma.supports(*types(64, 64, 64), out_dtype=jnp.int32) is None


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes, sizes, sizes, st.sampled_from([H100, A100, T4]))
def test_candidates_are_distinct_and_fit(m, n, k, gpu):
    with gpu_target(*gpu):
        configs = candidates(*types(m, n, k), out_dtype=jnp.int32)
        assert configs[0] == default_config(*types(m, n, k), out_dtype=jnp.int32)
    assert len(set(configs)) == len(configs)
    for config in configs:  # __post_init__ has checked the rest
        if isinstance(config, Dot4Config):
            assert config.accumulators <= 32
        elif isinstance(config, MmaConfig):
            assert config.shared_bytes <= SHARED_KB[gpu] * 1024
            assert config.num_stages >= 3


@pytest.mark.parametrize(
    ("gpu", "m", "x_dtype", "kind"),
    [
        (H100, 8, jnp.int8, Dot4Config),
        (H100, 9, jnp.int8, MmaConfig),
        (H100, 16, jnp.uint8, Dot4Config),  # no pass over w for its sums
        (A100, 17, jnp.uint8, MmaConfig),
        (T4, 1000, jnp.int8, Dot4Config),
    ],
)
def test_default_kernel(gpu, m, x_dtype, kind):
    with gpu_target(*gpu):
        configs = candidates(*types(m, 4096, 4096, x_dtype), out_dtype=jnp.int32)
    assert isinstance(configs[0], kind)
    kinds = {type(config) for config in configs} - {WgmmaConfig}
    assert kinds == ({Dot4Config} if gpu == T4 else {Dot4Config, MmaConfig} if m <= 16 else {MmaConfig})
    # The TMA takes 8 and 16 rows, which are few tiles: its kernel is tried last.
    assert (type(configs[-1]) is WgmmaConfig) == (gpu == H100 and m in (8, 16) and HAS_MOSAIC)


def test_large_products_take_large_tiles_and_few_tiles_split_k():
    with gpu_target(*H100):
        large = by_mma.candidates(*types(8192, 8192, 8192), out_dtype=jnp.int32)[0]
        assert large.block_m * large.block_n >= 128 * 256
        assert large.splits == 1
        assert default_config(*types(64, 256, 16384), out_dtype=jnp.int32).splits > 1
        assert default_config(*types(1, 128, 65536), out_dtype=jnp.int32).splits > 1
        assert by_mma.candidates(*types(64, 256, 16384, batch=(128,)), out_dtype=jnp.int32)[0].splits == 1


@pytest.mark.skipif(not HAS_MOSAIC, reason="Mosaic kernels need jax 0.11")
@pytest.mark.parametrize(
    ("gpu", "shape", "kind"),
    [
        (H100, (4096, 4096, 4096), WgmmaConfig),
        (H100, (4096, 4096, 4095), MmaConfig),  # the TMA does not take it
        (H100, (64, 256, 16384), MmaConfig),  # few tiles: split K
        (B200, (4096, 4096, 4096), Tcgen05Config),
        (B200, (64, 256, 16384), MmaConfig),
        (B300, (4096, 4096, 4096), Dot4Config),
    ],
)
def test_default_kernel_of_new_gpus(gpu, shape, kind):
    with gpu_target(*gpu):
        assert isinstance(default_config(*types(*shape), out_dtype=jnp.int32), kind)


@pytest.mark.skipif(not HAS_MOSAIC, reason="Mosaic kernels need jax 0.11")
@pytest.mark.parametrize(("gpu", "by_tma"), [(H100, WgmmaConfig), (B200, Tcgen05Config)])
@pytest.mark.parametrize(("n", "is_mma"), [(64, True), (4096, False)])
def test_a_pass_over_uint8_is_counted(gpu, by_tma, n, is_mma):
    """What the TMA reads has to be int8: the pass that makes it so pays for itself where each byte is used often."""
    with gpu_target(*gpu):
        configs = candidates(*types(65536, n, 1024, jnp.uint8), out_dtype=jnp.int32)
        assert type(default_config(*types(65536, n, 1024), out_dtype=jnp.int32)) is by_tma
    assert type(configs[0]) is (MmaConfig if is_mma else by_tma)
    assert {type(config) for config in configs} == {MmaConfig, by_tma}


@pytest.mark.parametrize("gpu", [H100, A100, B200])
@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_convolutions_are_products_and_convolutions(gpu, stride):
    x, w = jax.ShapeDtypeStruct((32, 28, 28, 512), jnp.uint8), jax.ShapeDtypeStruct((128, 1, 1, 512), jnp.int8)
    with gpu_target(*gpu):
        kinds = [type(c) for c in conv_candidates(x, w, window=window(stride=stride), out_dtype=jnp.int32)]
    assert {MmaConfig, ConvMmaConfig} <= set(kinds)
    # With strides, a product needs a copy of its pixels.
    assert kinds[0] is (MmaConfig if stride == 1 else ConvMmaConfig)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        (Dot4Config, (3, 8, 64, 4)),
        (Dot4Config, (8, 0, 64, 4)),
        (Dot4Config, (8, 8, 2, 4)),
        (Dot4Config, (8, 8, 64, 3)),
        (Dot4Config, (64, 64, 64, 4)),
        (Dot4Config, (8, 8, 64, 4, 0)),
        (MmaConfig, (24, 16, 32)),
        (MmaConfig, (8, 16, 32)),
        (MmaConfig, (16, 16, 16)),
        (MmaConfig, (256, 256, 32, 8)),
        (MmaConfig, (128, 256, 128, 8, 5)),
        (MmaConfig, (16, 16, 32, 4, 0)),
        (MmaConfig, (16, 16, 32, 4, 3, 0)),
        (MmaConfig, (16, 16, 32, 4, 3, 8, 65)),
    ],
)
def test_invalid(kind, numbers):
    with pytest.raises(ValueError, match=r"powers of two|accumulators|at least|splits|fit"):
        kind(*numbers)
