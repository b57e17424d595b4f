"""What Mosaic kernels share: above all the epilogue's arithmetic where it is compiled, one PTX instruction each.

Left to LLVM and ptxas, a product and a sum become a fused multiply-add; `mul.rn` never does.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, vector

_plgpu: Any = plgpu  # what jax 0.10 types otherwise, or lacks


def interpreter() -> Any:
    """Runs a kernel on any machine, slowly; prints "RACE DETECTED" where an access to memory waits for nothing."""
    return _plgpu.InterpretGPUParams(detect_races=True)


def load(ref: Any) -> jax.Array:
    """The block in shared memory, in whichever layout its use asks for."""
    return _plgpu.load(ref, optimized=False)


def arithmetic(layout: Any) -> dict[str, Callable[..., jax.Array]]:
    """For `epilogue.finish`, over blocks of that layout in registers.

    multiply: mul.rn. clip: these instructions keep NaN. to_integer: rounds half to even and saturates; NaN becomes 0.
    """

    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        return _pointwise("mul.rn.f32 $0, $1, $2;", "=f,f,f", jnp.float32, layout, a, b)

    def clip(y: jax.Array, lo: jax.Array, hi: jax.Array) -> jax.Array:
        return lax.min(lax.max(y, lo), hi)

    def to_integer(y: jax.Array, dtype: str) -> jax.Array:
        kind = "u8" if dtype == "uint8" else "s8"
        return _pointwise(f"cvt.rni.sat.{kind}.f32 $0, $1;", "=r,f", jnp.dtype(dtype), layout, y)

    return {"multiply": multiply, "clip": clip, "to_integer": to_integer}


def _pointwise(ptx: str, constraints: str, dtype: Any, layout: Any, *args: jax.Array) -> jax.Array:
    result = plgpu.ShapeDtypeStruct(args[0].shape, dtype, layout=layout)

    @plgpu.inline_mgpu(arg_types=(layout,) * len(args), return_type=result)
    def run(_: Any, first: Any, *rest: Any) -> Any:
        signed = jnp.issubdtype(dtype, jnp.signedinteger) if jnp.issubdtype(dtype, jnp.integer) else None
        return first._pointwise(lambda *registers: _each(ptx, constraints, *registers), *rest, output_is_signed=signed)

    # A scalar's broadcast has a layout of its own, which inline code does not take.
    return run(*[plgpu.layout_cast(a, layout) for a in args])


def _each(ptx: str, constraints: str, *registers: Any) -> Any:
    # A register of Mosaic's is a short vector; an instruction of an 8-bit result leaves it in 32 bits.
    is_float = constraints.startswith("=f")
    result = ir.F32Type.get() if is_float else ir.IntegerType.get_signless(32)
    element = result if is_float else ir.IntegerType.get_signless(8)
    [size] = ir.VectorType(registers[0].type).shape
    out = llvm.mlir_undef(ir.VectorType.get((size,), element))
    for i in range(size):
        operands = [vector.extract(r, dynamic_position=[], static_position=[i]) for r in registers]
        value: Any = llvm.inline_asm(result, operands, ptx, constraints, has_side_effects=False, asm_dialect=0)
        if not is_float:
            value = arith.trunci(element, value)
        out = vector.insert(value, out, dynamic_position=[], static_position=[i])
    return out
