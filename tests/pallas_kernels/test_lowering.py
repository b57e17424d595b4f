"""What reaches the GPU compiler, read on a machine that may have no GPU: the Triton module inside the lowered call, and
PTX where the compiler is installed."""

import dataclasses
import functools

import aot
import jax
import jax.numpy as jnp
import pytest
import triton_ir
from jax import lax

from pallas_kernels import Dot4Config, Epilogue, MmaConfig, candidates, compat, matmul, matmul_reference

pytestmark = pytest.mark.filterwarnings("error")  # the deprecation of Triton-Pallas must be silenced

DOT4, MMA = Dot4Config(8, 8, 512, 8), MmaConfig(16, 32, 128)
GPUS = {"h100": ("NVIDIA H100 80GB HBM3", 132), "a100": ("NVIDIA A100-SXM4-80GB", 108), "b200": ("NVIDIA B200", 148)}
MMA_INSTRUCTIONS = {
    "h100": "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8",
    "a100": "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32",
    "b200": "tcgen05.mma.cta_group::1.kind::i8",
}


def arguments(m, n, k, x_dtype=jnp.int8, w_dtype=jnp.int8, residual_dtype=None, table_dtype=None, batch=()):
    shape = jax.ShapeDtypeStruct
    channels = [shape((n,), jnp.float32)] * 4
    residual = [None] * 2 if residual_dtype is None else [shape((*batch, m, n), residual_dtype), shape((), jnp.float32)]
    table = None if table_dtype is None else shape((256,), table_dtype)
    return shape((*batch, m, k), x_dtype), shape((*batch, n, k), w_dtype), Epilogue(*channels, *residual, table)


def lowered_text(args, **kwargs):
    return triton_ir.text(triton_ir.lower(functools.partial(matmul, **kwargs), *args))


@pytest.mark.parametrize(
    ("x_dtype", "w_dtype", "out_dtype", "instructions"),
    [
        (jnp.int8, jnp.int8, jnp.int8, ("dp4a.s32.s32", "cvt.rni.sat.s8.f32")),
        (jnp.uint8, jnp.int8, jnp.uint8, ("dp4a.u32.s32", "cvt.rni.sat.u8.f32")),
        (jnp.int8, jnp.uint8, jnp.float32, ("dp4a.s32.u32",)),
        (jnp.uint8, jnp.uint8, jnp.bfloat16, ("dp4a.u32.u32", "arith.truncf")),
    ],
)
@pytest.mark.parametrize("residual_dtype", [None, jnp.int8, jnp.float32])
def test_instructions(x_dtype, w_dtype, out_dtype, instructions, residual_dtype):
    args = arguments(5, 100, 70, x_dtype, w_dtype, residual_dtype)
    text = lowered_text(args, out_dtype=out_dtype, config=DOT4)
    assert all(instruction in text for instruction in (*instructions, "mul.rn.f32", "max.NaN.f32"))
    text = lowered_text(args, out_dtype=out_dtype, config=MMA)
    assert all(instruction in text for instruction in instructions if not instruction.startswith("dp4a"))
    [dot] = [line for line in text.splitlines() if "tt.dot" in line]
    assert "tensor<16x128xi8> * tensor<128x32xi8> -> tensor<16x32xi32>" in dot


@pytest.mark.parametrize(("residual_dtype", "clips"), [(None, 1), (jnp.int8, 1), (jnp.float32, 2)])
def test_products_of_floats_stay_finite(residual_dtype, clips):
    text = lowered_text(arguments(8, 128, 1024, residual_dtype=residual_dtype), out_dtype=jnp.float32, config=MMA)
    assert text.count("max.NaN.f32") == clips


def test_instructions_before_sm_80():
    with compat.gpu_target("Tesla T4", 40):
        f = functools.partial(matmul, out_dtype=jnp.int8)
        text = triton_ir.text(jax.jit(f).trace(*arguments(50, 60, 70)).lower(lowering_platforms=("cuda",)))
    assert "dp4a.s32.s32" in text
    assert ".NaN.f32" not in text


@pytest.mark.parametrize(
    ("config", "m", "n", "k", "masked"),
    [
        (DOT4, 8, 128, 1024, 0),
        (DOT4, 5, 128, 1024, 3),  # x, residual, output
        (DOT4, 8, 101, 1024, 7),  # w, four vectors, residual, output
        (DOT4, 8, 128, 1022, 0),  # padded
        (DOT4, 8, 128, 1000, 2),  # x, w
        (DOT4, 5, 101, 70, 8),
        (MMA, 16, 128, 1024, 0),
        (MMA, 5, 128, 1024, 3),
        (MMA, 16, 101, 1024, 7),
        (MMA, 16, 128, 1022, 0),
        (MMA, 16, 128, 1000, 2),
        (MMA, 5, 101, 70, 8),
    ],
)
@pytest.mark.parametrize("batch", [(), (3,)])
def test_edges_are_masked_and_nothing_else(config, m, n, k, masked, batch):
    args = arguments(m, n, k, residual_dtype=jnp.int8, batch=batch)
    text = lowered_text(args, out_dtype=jnp.int8, config=config)
    assert triton_ir.masks(text) == (masked, 9 - masked)


@pytest.mark.parametrize("config", [DOT4, MMA])
@pytest.mark.parametrize(("m", "masked"), [(16, 0), (5, 3)])  # x, the rows' scales, output
def test_scales_of_rows(config, m, masked):
    x, w, epilogue = arguments(m, 128, 1024)
    epilogue = dataclasses.replace(epilogue, row_scale=jax.ShapeDtypeStruct((m,), jnp.float32))
    text = lowered_text((x, w, epilogue), out_dtype=jnp.int8, config=config)
    assert triton_ir.masks(text) == (masked, 8 - masked)
    assert text.count("mul.rn.f32") == 2


def test_edges_of_shifted_operands_are_masked():
    args = arguments(5, 101, 70, jnp.uint8, jnp.uint8, jnp.int8, jnp.int8)
    text = lowered_text(args, out_dtype=jnp.int8, config=MMA)
    # What is not masked: the residual's multiplier and the table.
    assert triton_ir.masks(text) == (10, 2)


@pytest.mark.parametrize("config", [Dot4Config(8, 8, 64, 8, splits=2), MmaConfig(16, 32, 64, splits=2)])
@pytest.mark.parametrize(("m", "n", "k", "masked"), [(16, 32, 256, 0), (5, 27, 250, 3)])
def test_parts_are_masked_and_end_outside(config, m, n, k, masked):
    text = lowered_text(arguments(m, n, k), out_dtype=jnp.int8, config=config)
    assert triton_ir.masks(text) == (masked, 3 - masked)  # x, w, int32 output
    assert "mul.rn.f32" not in text


@pytest.mark.slow
@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("m", [5, 100])
def test_all_candidates_lower(gpu, m):
    args = arguments(m, 101, 700)
    with compat.gpu_target(*GPUS[gpu]):
        configs = candidates(*args, out_dtype=jnp.int8)
    for config in configs:
        text = lowered_text(args, out_dtype=jnp.int8, config=config)
        assert ("dp4a" if isinstance(config, Dot4Config) else "tt.dot") in text


@pytest.mark.parametrize("config", [DOT4, MMA])
def test_vmap_lowers(config):
    x, *rest = arguments(5, 101, 70)
    f = jax.vmap(functools.partial(matmul, out_dtype=jnp.int8, config=config), (0, None, None))
    text = triton_ir.text(triton_ir.lower(f, jax.ShapeDtypeStruct((3, *x.shape), x.dtype), *rest))
    assert "tt.get_program_id y" in text


@pytest.mark.parametrize(("platform", "is_kernel"), [("cuda", True), ("cpu", False)])
def test_platform_dependent(platform, is_kernel):
    def dispatch(*args):
        return lax.platform_dependent(
            *args,
            cuda=functools.partial(matmul, out_dtype=jnp.int8),
            default=functools.partial(matmul_reference, out_dtype=jnp.int8),
        )

    with compat.gpu_target():
        lowered = jax.jit(dispatch).trace(*arguments(5, 9, 22)).lower(lowering_platforms=(platform,))
    assert ("dp4a" in triton_ir.text(lowered)) == is_kernel


def assert_compiles(gpu, args, config, instruction):
    f = functools.partial(matmul, out_dtype=jnp.int8, config=config)
    [kernel] = [kernel for kernel in aot.compile(gpu, f, *args) if "matmul" in kernel.name]
    assert kernel.spill_bytes == 0, config
    assert instruction in kernel.ptx
    assert "cvt.rni.sat.s8.f32" in kernel.ptx or config.splits > 1
    assert "fma.rn" not in kernel.ptx
    assert isinstance(config, Dot4Config) or "cp.async" in kernel.ptx


@aot.required
@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("x_dtype", [jnp.int8, jnp.uint8])
def test_ptx(gpu, x_dtype):
    dp4a = "dp4a.s32.s32" if x_dtype == jnp.int8 else "dp4a.u32.s32"
    assert_compiles(gpu, arguments(8, 1000, 999, x_dtype), DOT4, dp4a)
    assert_compiles(gpu, arguments(100, 1000, 999, x_dtype), MmaConfig(128, 128, 128, 8), MMA_INSTRUCTIONS[gpu])
