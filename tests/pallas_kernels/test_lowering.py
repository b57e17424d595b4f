"""What reaches the GPU compiler, read on a machine that may have no GPU: the Triton module inside the lowered call."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.interpreters import mlir
from jaxlib.mlir import ir
from jaxlib.triton import dialect as triton_dialect

from pallas_kernels import candidates, matmul, matmul_reference
from pallas_kernels.compat import gpu_target

pytestmark = pytest.mark.filterwarnings("error")  # the deprecation of Triton-Pallas must be silenced


def arguments(m, n, k, x_dtype=jnp.int8, residual_dtype=None):
    shapes = [((m, k), x_dtype), ((n, k), jnp.int8), *[((n,), jnp.float32)] * 4]
    if residual_dtype is not None:
        shapes += [((m, n), residual_dtype), ((), jnp.float32)]
    return [jax.ShapeDtypeStruct(*shape) for shape in shapes]


def lower(f, args):
    with gpu_target():
        return jax.jit(f).trace(*args).lower(lowering_platforms=("cuda",))


def triton_text(lowered):
    """The Triton modules of a lowered function; jax stores them as MLIR bytecode in the custom calls."""
    calls = []

    def visit(op):
        if op.name == "stablehlo.custom_call" and "triton" in str(op.attributes["call_target_name"]):
            config = ir.DictAttr(op.attributes["mhlo.backend_config"])
            calls.append(ir.StringAttr(config["ir"]).value_bytes)
        return ir.WalkResult.ADVANCE

    lowered.compiler_ir("stablehlo").operation.walk(visit)
    context = mlir.make_ir_context()
    triton_dialect.register_dialect(context)
    with context, ir.Location.unknown():
        return "\n".join(str(ir.Module.parse(call)) for call in calls)


def masks(text):
    """(masked, unmasked) loads and stores in a module, from the number of operands: pointer, mask, other or value."""
    loads = re.findall(r"(%\d+) = tt.load (.*?) :", text)
    used = [operands for result, operands in loads if len(re.findall(rf"{result}\b", text)) > 1]  # not those of a swap
    stores = re.findall(r"tt.store (.*?) :", text)
    masked = [operands.count("%") == 3 for operands in used + stores]
    return sum(masked), len(masked) - sum(masked)


@pytest.mark.parametrize(
    ("x_dtype", "out_dtype", "instructions"),
    [
        (jnp.int8, jnp.int8, ("dp4a.s32.s32", "cvt.rni.sat.s8.f32")),
        (jnp.uint8, jnp.uint8, ("dp4a.u32.s32", "cvt.rni.sat.u8.f32")),
        (jnp.int8, jnp.float32, ("dp4a.s32.s32",)),
        (jnp.uint8, jnp.bfloat16, ("dp4a.u32.s32", "arith.truncf")),
    ],
)
@pytest.mark.parametrize("residual_dtype", [None, jnp.int8, jnp.float32])
def test_instructions(x_dtype, out_dtype, instructions, residual_dtype):
    args = arguments(5, 100, 70, x_dtype, residual_dtype)
    text = triton_text(lower(lambda *a: matmul(*a, out_dtype=out_dtype), args))
    assert all(instruction in text for instruction in instructions)


@pytest.mark.parametrize(
    ("m", "n", "k", "masked"),
    [
        (8, 128, 1024, 0),
        (5, 128, 1024, 3),  # x, residual, output
        (8, 101, 1024, 7),  # w, four vectors, residual, output
        (8, 128, 1022, 0),  # padded
        (8, 128, 1000, 2),  # x, w
        (5, 101, 70, 8),
    ],
)
def test_edges_are_masked_and_nothing_else(m, n, k, masked):
    args = arguments(m, n, k, residual_dtype=jnp.int8)
    assert masks(triton_text(lower(lambda *a: matmul(*a, out_dtype=jnp.int8), args))) == (masked, 9 - masked)


def test_all_candidates_lower():
    args = arguments(5, 101, 70)
    for config in candidates(5, 101, 70):
        assert "dp4a" in triton_text(
            lower(lambda *a, config=config: matmul(*a, out_dtype=jnp.int8, config=config), args)
        )


def test_vmap_lowers():
    args = arguments(5, 101, 70)
    batched = [jax.ShapeDtypeStruct((3, 5, 70), jnp.int8), *args[1:]]
    f = jax.vmap(lambda *a: matmul(*a, out_dtype=jnp.int8), (0, *[None] * 5))
    assert "tt.get_program_id z" in triton_text(lower(f, batched))


@pytest.mark.parametrize(("platform", "is_kernel"), [("cuda", True), ("cpu", False)])
def test_platform_dependent(platform, is_kernel):
    def dispatch(*args):
        return lax.platform_dependent(
            *args,
            cuda=lambda *a: matmul(*a, out_dtype=jnp.int8),
            default=lambda *a: matmul_reference(*a, out_dtype=jnp.int8),
        )

    with gpu_target():
        lowered = jax.jit(dispatch).trace(*arguments(5, 9, 22)).lower(lowering_platforms=(platform,))
    assert ("dp4a" in triton_text(lowered)) == is_kernel
