"""The Mosaic kernels of the matrix product: interpreted, compiled for the GPUs that they are for, and their tactics."""

import contextlib
import functools
import io
import re
import threading

import aot
import cheap
import interpreting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from pallas_kernels import Epilogue, UnsupportedShapeError, compat, matmul, matmul_reference
from pallas_kernels.matmul import by_tcgen05, by_wgmma
from pallas_kernels.matmul.by_tcgen05 import Tcgen05Config
from pallas_kernels.matmul.by_wgmma import WgmmaConfig
from pallas_kernels.matmul.tma import shared_bytes, supports

HAS_KERNEL = supports(*[jax.ShapeDtypeStruct((8, 32), jnp.int8)] * 2, out_dtype=jnp.int32) is None
needs_kernel = pytest.mark.skipif(not HAS_KERNEL, reason=f"jax {jax.__version__} is older than the kernel")
KERNELS = {WgmmaConfig: by_wgmma, Tcgen05Config: by_tcgen05}
# Few stages, so that slots are used again.
SMALL = {
    by_wgmma: (
        *(WgmmaConfig(64, 64, 2), WgmmaConfig(64, 64, 3, cluster=2, group=1), WgmmaConfig(128, 64, 2, cluster=2)),
        *(WgmmaConfig(64, 128, 2, group=2), WgmmaConfig(256, 64, 2)),
    ),
    by_tcgen05: (Tcgen05Config(64, 2), Tcgen05Config(64, 3, group=1), Tcgen05Config(128, 2)),
}
RANGES = {"int8": (-127, 127), "uint8": (0, 255), "float32": (-1e30, 1e30), "bfloat16": (-1e30, 1e30)}


def operands(m, n, k, *, batch=(), x_dtype="int8", residual_dtype=None, out_dtype="int8", saturate=False, seed=0):
    """Random operands whose outputs fill the range of out_dtype and partly saturate."""
    rng = np.random.default_rng(seed)

    def integers(dtype, shape):
        lo, hi = RANGES[dtype]
        return rng.integers(lo, hi + 1, shape).astype(dtype)

    x, w = integers(x_dtype, (*batch, m, k)), integers("int8", (*batch, n, k))
    if saturate:
        x, w = np.full_like(x, RANGES[x_dtype][1]), np.full_like(w, -127)
    if out_dtype == "int32":
        return *jax.device_put((x, w)), None
    lo, hi = RANGES[out_dtype]
    vectors = (
        rng.uniform(0.2, 2, n) / (60 * np.sqrt(k)),
        rng.normal(0, 30, n),
        np.where(rng.random(n) < 0.3, max(lo, 0), lo),
        np.full(n, hi),
    )
    residual = factor = None
    if residual_dtype is not None:
        shape = (*batch, m, n)
        residual = integers(residual_dtype, shape) if "int" in residual_dtype else rng.normal(0, 50, shape)
        residual, factor = residual.astype(jnp.dtype(residual_dtype)), np.float32(rng.uniform(0.1, 1))
    return jax.device_put((x, w, Epilogue(*[np.float32(v) for v in vectors], residual, factor)))


@pytest.fixture(scope="module", autouse=True)
def one_compilation():
    """Each thread of each block runs the same interpreted computation: here it is compiled once, where jax's
    interpreter has every thread trace, lower and compile it, all at the same time."""
    if not HAS_KERNEL:
        yield
        return
    from jax._src.pallas.mosaic.interpret import thread_map

    lock, compiled = threading.Lock(), {}

    def run(jaxpr, consts, *args):
        with lock:
            if jaxpr not in compiled:
                compiled.clear()
                lowered = cheap.jit(thread_map._run, static_argnums=0).lower(jaxpr, consts, *args)
                compiled[jaxpr] = lowered.compile()
            thread = compiled[jaxpr]
        thread(consts, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thread_map, "_run_jaxpr", run)
        yield


def check(args, config, out_dtype, cores, with_offset=False):
    """The interpreted kernel, on a GPU of so many multiprocessors, equals the reference in every bit, without races."""
    offset = 128 * np.asarray(args[1]).sum(-1, dtype=np.int32) if with_offset else None
    kernel = functools.partial(matmul, out_dtype=out_dtype, offset=offset, config=config, interpret=True)
    with compat.gpu_target(num_cores=cores), contextlib.redirect_stdout(io.StringIO()) as said:
        actual = np.asarray(cheap.jit(kernel)(*args))
    assert "RACE" not in said.getvalue(), said.getvalue()
    assert_same_bits(actual, jax.jit(functools.partial(matmul_reference, out_dtype=out_dtype))(*args))


def assert_same_bits(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(*(a.view(f"u{a.itemsize}") for a in (actual, expected)))


# ------------------------------------------------------------------------------------------------------- interpreted


@needs_kernel
@pytest.mark.parametrize(
    ("shape", "config", "cores", "kwargs"),
    [
        # Edges in M, N and K; two tiles a block, so that slots are used again and barriers turn twice.
        ((72, 96, 416), WgmmaConfig(64, 128, 2), 1, {"residual_dtype": "int8"}),
        ((200, 160, 192), WgmmaConfig(128, 64, 2, cluster=2), 4, {"x_dtype": "uint8", "residual_dtype": "bfloat16"}),
        ((8, 32, 48), WgmmaConfig(64, 64, 3), 1, {"batch": (3,), "x_dtype": "uint8", "out_dtype": "int32"}),
        ((5, 136, 32), WgmmaConfig(64, 64, 2), 1, {"out_dtype": "float32", "saturate": True}),
        # The last block of the last cluster lies beyond the edge.
        ((264, 32, 32), WgmmaConfig(128, 64, 2, cluster=2), 2, {"x_dtype": "uint8"}),
        ((136, 96, 416), Tcgen05Config(64, 2), 1, {"residual_dtype": "int8"}),
        ((8, 160, 48), Tcgen05Config(128, 2), 1, {"batch": (3,), "x_dtype": "uint8", "residual_dtype": "uint8"}),
    ],
)
def test_kernel_equals_reference(shape, config, cores, kwargs):
    args = operands(*shape, **kwargs)
    out_dtype = kwargs.get("out_dtype", "int8")
    assert supports(*args, out_dtype=out_dtype) is None
    check(args, config, out_dtype, cores, with_offset="batch" in kwargs)


# Up to three tiles along M, two along N, five slots along K: interpreted, each access takes a millisecond.
SMALL_SIZES = (
    st.sampled_from([*range(1, 8), *range(8, 137, 8)]),
    st.sampled_from([16, *range(32, 129, 32)]),
    st.sampled_from([*range(16, 129, 16), 160, 192, 256, 384]),
)


@st.composite
def problems(draw, most=None):
    """(shape, keywords of `operands`) that the kernel takes: of small sizes, or of any up to 8 * most."""
    kwargs = {
        "batch": draw(st.sampled_from([(), (2,), (1, 2)])),
        "x_dtype": draw(st.sampled_from(["int8", "uint8"])),
        "out_dtype": draw(st.sampled_from([*RANGES, "int32"])),
    }
    if kwargs["out_dtype"] != "int32":
        kwargs["residual_dtype"] = draw(st.sampled_from([None, *RANGES]))
    if most is None:
        return tuple(map(draw, SMALL_SIZES)), kwargs
    m = draw(st.integers(1, 8) | st.integers(1, most).map(lambda i: 8 * i))
    n = draw(st.just(16) | st.integers(1, most // 3).map(lambda i: 32 * i))
    k = draw(st.integers(1, 8).map(lambda i: 16 * i) | st.integers(1, 9).map(lambda i: 32 * i))
    return (m, n, k), kwargs


@needs_kernel
@pytest.mark.slow
@pytest.mark.parametrize("chunk", interpreting.CHUNKS)
@pytest.mark.parametrize("kernel", KERNELS.values())
def test_kernel_equals_reference_on_drawn_shapes(kernel, chunk):
    def check_draw(problem, saturate, cores, with_offset, data):
        shape, kwargs = problem
        args = operands(*shape, **kwargs, saturate=saturate)
        out_dtype = kwargs["out_dtype"]
        assert supports(*args, out_dtype=out_dtype) is None
        configs = data.draw(st.sampled_from([SMALL[kernel], kernel.candidates(*args, out_dtype=out_dtype)]))
        config = data.draw(st.sampled_from(configs))
        check(args, config, out_dtype, max(cores, config.cluster), with_offset=with_offset)

    booleans = {"saturate": st.booleans(), "with_offset": st.booleans()}
    cores, data = st.integers(1, 4), st.data()
    interpreting.check_draws(chunk, check_draw, problem=problems(), cores=cores, data=data, **booleans)


@needs_kernel
def test_vmap():
    x, w, epilogue = operands(8, 32, 32, batch=(2,), residual_dtype="int8")
    axes = (0, None, Epilogue(*[None] * 4, 0, None))
    args = x, w[0], epilogue
    kernel = functools.partial(by_wgmma.run, out_dtype="int8", config=WgmmaConfig(64, 64, 2), interpret=True)
    with compat.gpu_target(num_cores=1):
        actual = cheap.jit(jax.vmap(kernel, axes))(*args)
    reference = functools.partial(matmul_reference, out_dtype="int8")
    assert_same_bits(actual, jax.jit(jax.vmap(reference, axes))(*args))


@needs_kernel
def test_shard_map():
    args = operands(8, 32, 32)
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    kernel = functools.partial(by_wgmma.run, out_dtype="int8", config=WgmmaConfig(64, 64, 2), interpret=True)
    sharded = jax.shard_map(kernel, mesh=mesh, in_specs=(P("d"), P(), P()), out_specs=P("d"))
    reference = jax.jit(functools.partial(matmul_reference, out_dtype="int8"))
    assert_same_bits(cheap.jit(sharded)(*args), reference(*args))


# ---------------------------------------------------------------------------------------------------------- compiled


def abstract(*shape, **kwargs):
    return jax.eval_shape(functools.partial(_arrays, *shape, **kwargs))


def _arrays(m, n, k, *, batch=(), x_dtype="int8", residual_dtype=None, out_dtype="int8"):
    x, w = jnp.zeros((*batch, m, k), x_dtype), jnp.zeros((*batch, n, k), "int8")
    residual = None if residual_dtype is None else jnp.zeros((*batch, m, n), residual_dtype)
    factor = None if residual is None else jnp.float32(1)
    epilogue = None if out_dtype == "int32" else Epilogue(*[jnp.zeros(n, jnp.float32)] * 4, residual, factor)
    return x, w, epilogue


def compiled(args, out_dtype, config):
    target, instruction = {
        WgmmaConfig: ("h100", r"wgmma\.mma_async\S+\.s32\.s8\.s8"),
        Tcgen05Config: ("b200", r"tcgen05\.mma\S+\.kind::i8"),
    }[type(config)]
    run = functools.partial(KERNELS[type(config)].run, out_dtype=out_dtype, config=config)
    kernels = aot.compile(target, run, *args)
    [kernel] = [kernel for kernel in kernels if "matmul" in kernel.name]
    assert re.search(instruction, kernel.ptx)
    assert "cp.async.bulk.tensor" in kernel.ptx
    assert ("multicast::cluster" in kernel.ptx) == (config.cluster > 1)
    assert "serialized" not in kernel.ptxas  # ptxas waits after each wgmma where it cannot tell registers apart
    assert kernel.spill_bytes == 0
    assert kernel.shared_bytes <= shared_bytes(config, args[2], out_dtype) + 2048 <= 232_448
    # Products are rounded before they are added.
    assert not re.search(r"\bfma\.|\bmul\.f32", kernel.ptx)
    assert ("mul.rn.f32" in kernel.ptx) == (out_dtype != "int32")
    assert ("cvt.rni.sat" in kernel.ptx) == (out_dtype in ("int8", "uint8"))
    return kernel


@aot.required
@needs_kernel
@pytest.mark.parametrize("kernel", KERNELS.values())
def test_compiles(kernel):
    args = abstract(4096, 4096, 4096, residual_dtype="int8")
    compiled(args, "int8", kernel.candidates(*args, out_dtype="int8")[0])


@aot.required
@needs_kernel
@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS.values())
@pytest.mark.parametrize("shape", [(4096, 4096, 4096), (512, 4096, 4096), (128, 11008, 4096), (16, 4096, 4096)])
def test_all_candidates_compile(kernel, shape):
    args = abstract(*shape)
    for config in kernel.candidates(*args, out_dtype="int8"):
        compiled(args, "int8", config)


@aot.required
@needs_kernel
@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS.values())
@settings(max_examples=60, deadline=None, derandomize=True)
@given(problem=problems(most=600))
def test_all_that_is_supported_compiles(kernel, problem):
    shape, kwargs = problem
    args = abstract(*shape, **kwargs)
    assert supports(*args, out_dtype=kwargs["out_dtype"]) is None
    compiled(args, kwargs["out_dtype"], kernel.candidates(*args, out_dtype=kwargs["out_dtype"])[0])


# ----------------------------------------------------------------------------------------------------------- tactics


@pytest.mark.parametrize("kernel", KERNELS.values())
@given(problem=problems(most=4000))
def test_candidates_are_distinct_and_fit(kernel, problem):
    shape, kwargs = problem
    args = abstract(*shape, **kwargs)
    configs = kernel.candidates(*args, out_dtype=kwargs["out_dtype"])
    assert len(set(configs)) == len(configs)
    assert all(shared_bytes(config, args[2], kwargs["out_dtype"]) + 2048 <= 232_448 for config in configs)


def test_large_products_share_w_in_clusters():
    config = by_wgmma.candidates(*abstract(4096, 4096, 4096), out_dtype="int8")[0]
    assert config == WgmmaConfig(128, 256, stages=4, cluster=2, group=8)
    assert by_wgmma.candidates(*abstract(64, 4096, 4096), out_dtype="int8")[0].tile_m == 64


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ((96, 128, 4), "tile_m must be 64, 128 or 256"),
        ((128, 48, 4), "multiple of 32"),
        ((128, 512, 4), "up to 256"),
        ((256, 256, 4), "accumulators"),
        ((128, 128, 1), "stages"),
        ((128, 128, 4, 4), "cluster"),
        ((128, 128, 4, 2, 0), "group"),
        ((64, 65, 2), "multiple of 32"),
        ((128, 256, 8), "the ring of 393216 bytes"),
    ],
)
def test_invalid(numbers, reason):
    with pytest.raises(ValueError, match=reason):
        WgmmaConfig(*numbers)


@pytest.mark.parametrize("numbers", [(192, 4), (128, 1), (128, 4, 0), (256, 5)])
def test_invalid_for_tcgen05(numbers):
    with pytest.raises(ValueError, match=r"tile_n must be 64, 128 or 256|the ring of 245760 bytes"):
        Tcgen05Config(*numbers)


@needs_kernel
def test_what_does_not_fit_with_the_epilogue_is_refused():
    args = abstract(256, 256, 256, residual_dtype="float32")
    with compat.gpu_target("NVIDIA B200", 148), pytest.raises(UnsupportedShapeError, match="with this epilogue"):
        jax.eval_shape(functools.partial(matmul, out_dtype="float32", config=Tcgen05Config(256, 4)), *args)


@needs_kernel
@pytest.mark.parametrize(
    ("shape", "kwargs", "reason"),
    [
        ((64, 64, 40), {}, "K in multiples of 32"),
        ((64, 64, 144), {}, "K in multiples of 32"),
        ((9, 64, 64), {}, "M and N in multiples of 8"),
        ((64, 24, 64), {}, "rows are multiples of 32 bytes, not 24 columns"),
        ((64, 40, 64), {"out_dtype": "float32", "residual_dtype": "int8"}, "rows are multiples of 32 bytes"),
        ((0, 64, 64), {}, "nothing"),
        ((8, 32, 150_016), {"out_dtype": "float32"}, "split"),
    ],
)
def test_errors_say_why(shape, kwargs, reason):
    assert reason in supports(*abstract(*shape, **kwargs), out_dtype=kwargs.get("out_dtype", "int8"))


@pytest.mark.skipif(HAS_KERNEL, reason="of old versions of jax")
def test_old_versions_of_jax():
    assert "need jax 0.11" in supports(*abstract(64, 64, 64), out_dtype="int8")
