"""The Triton module inside a lowered call, read on a machine that may have no GPU."""

import re

import jax
from jax.interpreters import mlir
from jaxlib.mlir import ir
from jaxlib.triton import dialect as triton_dialect

from pallas_kernels.compat import gpu_target


def lower(f, *args):
    """jit(f), lowered to CUDA for an H100."""
    with gpu_target():
        return jax.jit(f).trace(*args).lower(lowering_platforms=("cuda",))


def text(lowered):
    """The Triton modules of a lowered function; jax stores them as MLIR bytecode in the custom calls."""
    calls = [ir.StringAttr(config["ir"]).value_bytes for config in _configs(lowered)]
    context = mlir.make_ir_context()
    triton_dialect.register_dialect(context)
    with context, ir.Location.unknown():
        return "\n".join(str(ir.Module.parse(call)) for call in calls)


def grid(lowered):
    """The programs of the one Triton kernel of a lowered function."""
    [config] = _configs(lowered)
    return ir.IntegerAttr(config["grid_x"]).value


def _configs(lowered):
    configs = []

    def visit(op):
        if op.name == "stablehlo.custom_call" and "triton" in str(op.attributes["call_target_name"]):
            configs.append(ir.DictAttr(op.attributes["mhlo.backend_config"]))
        return ir.WalkResult.ADVANCE

    lowered.compiler_ir("stablehlo").operation.walk(visit)
    return configs


def masks(module):
    """(masked, unmasked) loads and stores in a module, from the number of operands: pointer, mask, other or value."""
    loads = re.findall(r"(%\d+) = tt.load (.*?) :", module)
    used = [operands for result, operands in loads if len(re.findall(rf"{result}\b", module)) > 1]  # not of a swap
    stores = re.findall(r"tt.store (.*?) :", module)
    masked = [operands.count("%") == 3 for operands in used + stores]
    return sum(masked), len(masked) - sum(masked)
