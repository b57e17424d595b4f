"""The persistent grid of the tensor cores' kernel in Triton: its programs walk over the tiles."""

import dataclasses
import functools

import aot
import cheap
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import triton_ir

from pallas_kernels import Epilogue, MmaConfig, compat, matmul, matmul_reference
from pallas_kernels.matmul import by_mma

WALKING = MmaConfig(16, 16, 32, residents=1)
REFERENCE = cheap.jit(functools.partial(matmul_reference, out_dtype=jnp.int8))


def operands(m, n, k, *, batch=(), x_dtype="int8", w_dtype="int8", residual=False):
    rng = np.random.default_rng(0)
    bounds = {"int8": (-127, 128), "uint8": (0, 256)}
    x, w = (
        rng.integers(*bounds[dtype], (*batch, rows, k)).astype(dtype) for rows, dtype in ((m, x_dtype), (n, w_dtype))
    )
    vectors = rng.uniform(0.2, 2, n) / (60 * np.sqrt(k)), rng.normal(0, 30, n), np.full(n, -127), np.full(n, 127)
    epilogue = Epilogue(*(v.astype(np.float32) for v in vectors))
    if residual:
        added = rng.integers(-127, 128, (*batch, m, n)).astype(np.int8)
        epilogue = dataclasses.replace(epilogue, residual=added, residual_multiplier=np.float32(0.7))
    return jax.device_put((x, w, epilogue))


@pytest.mark.parametrize(
    ("shape", "cores", "config", "kwargs"),
    [
        ((70, 50, 100), 4, WALKING, {"residual": True}),  # 20 tiles, 4 programs
        ((70, 50, 100), 3, WALKING, {"x_dtype": "uint8"}),  # the last round is not full
        ((33, 40, 64), 1, dataclasses.replace(WALKING, residents=2, group=2), {"batch": (3,), "w_dtype": "uint8"}),
        ((33, 40, 200), 5, dataclasses.replace(WALKING, splits=3), {"x_dtype": "uint8"}),  # of parts, too
        ((17, 20, 64), 100, WALKING, {}),  # fewer tiles than programs
    ],
)
def test_equals_reference(shape, cores, config, kwargs):
    args = operands(*shape, **kwargs)
    run = functools.partial(matmul, out_dtype=jnp.int8, config=config, interpret=True)
    with compat.gpu_target(num_cores=cores):
        ours = cheap.jit(run)(*args)
    np.testing.assert_array_equal(ours, REFERENCE(*args))


def test_vmap():
    x, w, epilogue = operands(40, 30, 64, batch=(2,))
    run = functools.partial(matmul, out_dtype=jnp.int8, config=WALKING, interpret=True)
    with compat.gpu_target(num_cores=2):
        ours = cheap.jit(jax.vmap(run, (0, 0, None)))(x, w, epilogue)
    np.testing.assert_array_equal(ours, REFERENCE(x, w, epilogue))


def test_as_many_programs_as_run_at_once():
    """And every load and store of a tile is masked as in a grid with a program for each tile."""
    args = jax.eval_shape(functools.partial(operands, 1000, 300, 64, residual=True))
    texts = {}
    for residents in (0, 2):
        config = dataclasses.replace(WALKING, residents=residents)
        lowered = triton_ir.lower(functools.partial(matmul, out_dtype=jnp.int8, config=config), *args)
        texts[residents] = triton_ir.text(lowered)
        assert triton_ir.grid(lowered) == (2 * 132 if residents else 63 * 19)
    assert triton_ir.masks(texts[2]) == triton_ir.masks(texts[0])
    assert [text.count("scf.for") for text in texts.values()] == [1, 2]


def test_it_is_for_tiles_that_are_soon_done():
    def default(m, n, k):
        types = jax.ShapeDtypeStruct((m, k), jnp.int8), jax.ShapeDtypeStruct((n, k), jnp.int8)
        with compat.gpu_target("NVIDIA A100-SXM4-80GB", 108):
            configs = by_mma.candidates(*types, out_dtype=jnp.int32)
        assert any(config.residents for config in configs) == (m > 1000)
        return configs[0]

    assert default(100_352, 256, 64).residents > 0
    assert default(8192, 8192, 8192).residents == 0
    assert default(512, 512, 64).residents == 0  # all tiles run at once


@aot.required
@pytest.mark.parametrize("gpu", ["a100", "h100", "b200"])
def test_compiles(gpu):
    args = jax.eval_shape(functools.partial(operands, 20_000, 512, 256, x_dtype="uint8"))
    config = MmaConfig(128, 64, 64, 4, 4, residents=2)
    [kernel] = [
        k
        for k in aot.compile(gpu, functools.partial(matmul, out_dtype=jnp.int8, config=config), *args)
        if k.name == "matmul_mma"
    ]
    assert kernel.spill_bytes == 0
    assert "cp.async" in kernel.ptx
    assert "serialized" not in kernel.ptxas
