import dataclasses
import functools

import cheap
import interpreting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec as P

from pallas_kernels import (
    Dot4Config,
    Epilogue,
    MmaConfig,
    UnsupportedShapeError,
    candidates,
    matmul,
    matmul_reference,
    shift,
    supports,
)
from pallas_kernels.compat import gpu_target
from pallas_kernels.matmul import by_dot4, by_mma
from pallas_kernels.matmul.reference import PART

RANGES = {"int8": (-127, 127), "uint8": (0, 255), "float32": (-1e30, 1e30), "bfloat16": (-1e30, 1e30)}
OUT_DTYPES = (jnp.int8, jnp.uint8, jnp.float32, jnp.bfloat16)
KERNELS = {Dot4Config: by_dot4, MmaConfig: by_mma}
SMALL = (
    Dot4Config(2, 4, 8, 1),
    Dot4Config(4, 16, 64, 1, splits=3),
    MmaConfig(16, 16, 32),
    MmaConfig(16, 32, 64, splits=3),
)


def integers(rng, dtype, shape):
    lo, hi = RANGES[np.dtype(dtype).name]
    return rng.integers(lo, hi + 1, shape).astype(dtype)


def draw(
    m,
    n,
    k,
    *,
    batch=(),
    x_dtype=np.int8,
    w_dtype=np.int8,
    residual_dtype=None,
    table=False,
    by_row=False,
    out_dtype=jnp.int8,
    seed=0,
):
    """Random x, w, epilogue whose outputs fill the range of out_dtype (behind a table, int8) and partly saturate."""
    rng = np.random.default_rng(seed)
    lo, hi = RANGES["int8" if table else np.dtype(out_dtype).name]
    x, w = integers(rng, x_dtype, (*batch, m, k)), integers(rng, w_dtype, (*batch, n, k))
    epilogue = Epilogue(
        multiplier=(rng.uniform(0.2, 2, n) / (60 * np.sqrt(k + 1))).astype(np.float32),
        bias=rng.normal(0, 30, n).astype(np.float32),
        lo=np.where(rng.random(n) < 0.3, max(lo, 0), lo).astype(np.float32),  # some channels with ReLU
        hi=np.full(n, hi, np.float32),
    )
    if residual_dtype is not None:
        floating = jnp.issubdtype(residual_dtype, jnp.floating)
        shape = (*batch, m, n)
        residual = rng.normal(0, 50, shape) if floating else integers(rng, residual_dtype, shape)
        residual = residual.astype(residual_dtype)
        epilogue = dataclasses.replace(epilogue, residual=residual, residual_multiplier=np.float32(rng.uniform(0.1, 1)))
    if by_row:
        row_scale = np.exp(rng.normal(0, 1, (*batch, m))).astype(np.float32)
        row_scale[..., 0] = RANGES["float32"][1]  # no product with it is finite
        epilogue = dataclasses.replace(epilogue, row_scale=row_scale)
    if table:
        epilogue = dataclasses.replace(epilogue, table=rng.integers(-100, 100, 256).astype(out_dtype))
    return jax.device_put((x, w, epilogue))


def numpy_matmul(x, w, epilogue, *, out_dtype):
    """Independent of the library: int64, then float32 with a rounding after each operation."""
    x, w, e = jax.tree.map(np.asarray, (x, w, epilogue))
    acc = x.astype(np.int64) @ np.swapaxes(w.astype(np.int64), -1, -2)
    y = acc.astype(np.float32) * e.multiplier
    if e.row_scale is not None:
        largest = np.finfo(np.float32).max
        with np.errstate(over="ignore"):
            y = np.clip(y * e.row_scale[..., None], -largest, largest)
    y = y + e.bias
    if e.residual is not None:
        y = y + e.residual.astype(np.float32) * e.residual_multiplier
    y = np.clip(y, e.lo, e.hi)
    if e.table is not None:
        return e.table[np.rint(y).astype(np.int8).view(np.uint8)]
    return (y if jnp.issubdtype(out_dtype, jnp.floating) else np.rint(y)).astype(out_dtype)


def assert_same_bits(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(*(a.view(f"u{a.itemsize}") for a in (actual, expected)))


def kernel_equals_reference(kind, data, largest):
    """A drawn product, with or without an epilogue, by a drawn config: of its candidates or of small, ragged tiles."""
    m, n, k = (data.draw(st.integers(1, size)) for size in largest)
    batch = data.draw(st.sampled_from([(), (), (2,), (2, 3)]))
    dtypes = st.sampled_from([np.int8, np.uint8])
    out_dtype = data.draw(st.sampled_from((*OUT_DTYPES, jnp.int32)))
    x, w, epilogue = draw(
        m,
        n,
        k,
        batch=batch,
        x_dtype=data.draw(dtypes),
        w_dtype=data.draw(dtypes),
        residual_dtype=data.draw(st.sampled_from([None, np.int8, np.uint8, np.float32, jnp.bfloat16])),
        table=data.draw(st.booleans()),
        by_row=data.draw(st.booleans()),
        out_dtype=np.int8 if out_dtype == jnp.int32 else out_dtype,
    )
    epilogue = None if out_dtype == jnp.int32 else epilogue
    if data.draw(st.booleans()):  # the largest sums
        x = np.full(x.shape, RANGES[x.dtype.name][1], x.dtype)
        w = np.full(w.shape, 255 if w.dtype == np.uint8 else -127, w.dtype)
    is_given = w.dtype == np.int8 and data.draw(st.booleans())
    offset = 128 * np.asarray(w).sum(-1, dtype=np.int32) if is_given else None
    small = [config for config in SMALL if type(config) is kind]
    configs = data.draw(st.sampled_from([small, KERNELS[kind].candidates(x, w, epilogue, out_dtype=out_dtype)]))
    config = data.draw(st.sampled_from(configs))

    @cheap.jit
    def both(x, w, epilogue, offset):
        kernel = matmul(x, w, epilogue, out_dtype=out_dtype, offset=offset, config=config, interpret=True)
        return kernel, matmul_reference(x, w, epilogue, out_dtype=out_dtype)

    assert_same_bits(*both(x, w, epilogue, offset))


@pytest.mark.parametrize("kind", KERNELS)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(data=st.data())
def test_kernel_equals_reference(kind, data):
    kernel_equals_reference(kind, data, (20, 40, 300))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", interpreting.CHUNKS)
@pytest.mark.parametrize("kind", KERNELS)
def test_kernel_equals_reference_over_many_shapes(kind, chunk):
    def check_draw(data):
        kernel_equals_reference(kind, data, (80, 150, 700))

    interpreting.check_draws(chunk, check_draw, data=st.data())


@pytest.mark.parametrize("out_dtype", OUT_DTYPES)
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"x_dtype": np.uint8, "residual_dtype": np.int8},
        {"residual_dtype": np.float32},
        {"table": True},
        {"by_row": True},
    ],
)
def test_reference_equals_numpy(kwargs, out_dtype):
    # More than a million outputs: XLA's contraction to a fused multiply-add would change a few of them by one.
    args = draw(1100, 1000, 16, out_dtype=out_dtype, **kwargs)
    expected = numpy_matmul(*args, out_dtype=out_dtype)
    assert_same_bits(matmul_reference(*args, out_dtype=out_dtype), expected)
    assert_same_bits(jax.jit(functools.partial(matmul_reference, out_dtype=out_dtype))(*args), expected)


def test_inputs_of_these_tests_reveal_a_fused_multiply_add():
    args = draw(1100, 1000, 16, out_dtype=jnp.float32)
    expected = numpy_matmul(*args, out_dtype=np.float32)
    x, w, e = jax.tree.map(np.asarray, args)
    acc = x.astype(np.int64) @ w.astype(np.int64).T
    fused = np.clip((acc * e.multiplier.astype(np.float64) + e.bias).astype(np.float32), e.lo, e.hi)
    assert np.mean(fused != expected) > 0.01


@pytest.mark.parametrize("config", [Dot4Config(1, 2, 16384), MmaConfig(16, 16, 4096, num_stages=1)])
@pytest.mark.parametrize(("x_dtype", "w_dtype", "k"), [(np.int8, np.int8, 133_144), (np.uint8, np.int8, 66_311)])
def test_longest_sum_that_int32_holds(x_dtype, w_dtype, k, config):
    x = jnp.full((1, k), RANGES[np.dtype(x_dtype).name][1], x_dtype)
    w = jnp.full((2, k), 127, w_dtype) * jnp.array([[1], [-1]], w_dtype)
    expected = np.asarray(x, np.int64) @ np.asarray(w, np.int64).T
    for splits in (1, 3):
        split = dataclasses.replace(config, splits=splits)
        kernel = functools.partial(matmul, out_dtype=jnp.int32, config=split, interpret=True)
        actual = cheap.jit(kernel)(x, w)
        np.testing.assert_array_equal(np.asarray(actual, np.int64), expected)
    longer = jax.ShapeDtypeStruct((1, k + 1), x_dtype), jax.ShapeDtypeStruct((2, k + 1), np.int8)
    assert "needs an epilogue" in supports(*longer, out_dtype=jnp.int32)


@pytest.mark.parametrize(
    ("dtypes", "config"),
    [
        ((np.uint8, np.int8), Dot4Config(2, 2, 16384)),
        ((np.uint8, np.int8), MmaConfig(16, 16, 4096, num_stages=1)),
        ((np.int8, np.uint8), MmaConfig(16, 16, 4096, num_stages=1)),
        ((np.uint8, np.uint8), MmaConfig(16, 16, 4096, num_stages=1, splits=2)),
    ],
)
def test_longer_sums_are_added_in_float32(dtypes, config):
    k = 2 * PART + 775
    x, w, epilogue = draw(3, 2, k, x_dtype=dtypes[0], w_dtype=dtypes[1], residual_dtype=np.int8, out_dtype=jnp.float32)
    acc = np.zeros((3, 2), np.float32)
    for start in range(0, k, PART):
        part = (np.asarray(v, np.int64)[:, start : start + PART] for v in (x, w))
        acc = acc + (next(part) @ next(part).T).astype(np.float32)
    e = jax.tree.map(np.asarray, epilogue)
    expected = np.clip(acc * e.multiplier + e.bias + np.float32(e.residual) * e.residual_multiplier, e.lo, e.hi)
    kernel = functools.partial(matmul, out_dtype=jnp.float32, config=config, interpret=True)
    reference = functools.partial(matmul_reference, out_dtype=jnp.float32)
    for run in (cheap.jit(kernel), jax.jit(reference)):
        assert_same_bits(run(x, w, epilogue), expected)


@pytest.mark.parametrize("shape", [(0, 5, 8), (3, 0, 8), (3, 5, 0), (0, 0, 0)])
@pytest.mark.parametrize("batch", [(), (2,), (0,)])
def test_zero_sizes(shape, batch):
    args = draw(*shape, batch=batch, residual_dtype=np.int8)
    expected = numpy_matmul(*args, out_dtype=np.int8)
    run = cheap.jit(functools.partial(matmul, out_dtype=jnp.int8))
    assert_same_bits(run(*args), expected)  # without a GPU: no kernel is launched


def test_nan_becomes_zero_in_integers_and_stays_in_floats():
    x, w, epilogue = draw(3, 5, 8, residual_dtype=np.float32)
    epilogue = dataclasses.replace(epilogue, residual=epilogue.residual.at[1, 2].set(jnp.nan))
    kernels = (functools.partial(matmul, config=config, interpret=True) for config in (None, MmaConfig(16, 16, 32)))
    for jit, f in ((jax.jit, matmul_reference), *((cheap.jit, kernel) for kernel in kernels)):
        of_all_dtypes = jit(lambda *args, f=f: [f(*args, out_dtype=out_dtype) for out_dtype in OUT_DTYPES])
        for out in map(np.asarray, of_all_dtypes(x, w, epilogue)):
            assert np.isnan(out[1, 2]) if jnp.issubdtype(out.dtype, jnp.floating) else out[1, 2] == 0


@pytest.mark.parametrize("residual_dtype", [np.float32, jnp.bfloat16])
def test_products_beyond_the_finite_floats(residual_dtype):
    """A mask's. Split K, which ends outside of the kernel, does not differ."""
    x, w, epilogue = draw(3, 4, 200, residual_dtype=residual_dtype, out_dtype=jnp.float32)
    largest = np.finfo(np.float32).max
    masked = np.array([-largest, -np.inf, np.inf, 0.5 * largest], np.float32).astype(residual_dtype)
    bounds = np.full((2, 4), np.inf, np.float32) * np.array([[-1], [1]], np.float32)
    factor = np.float32(1.37)
    epilogue = dataclasses.replace(
        epilogue,
        lo=jnp.asarray(bounds[0]),
        hi=jnp.asarray(bounds[1]),
        residual=jnp.broadcast_to(masked, (3, 4)),
        residual_multiplier=factor,
    )
    with np.errstate(over="ignore"):
        residual = np.clip(masked.astype(np.float32) * factor, -largest, largest)
    acc = (np.asarray(x, np.int64) @ np.asarray(w, np.int64).T).astype(np.float32)
    expected = acc * np.asarray(epilogue.multiplier) + np.asarray(epilogue.bias) + residual
    kernels = (functools.partial(matmul, config=config, interpret=True) for config in SMALL)
    for jit, f in ((jax.jit, matmul_reference), *((cheap.jit, kernel) for kernel in kernels)):
        assert_same_bits(jit(functools.partial(f, out_dtype=jnp.float32))(x, w, epilogue), expected)


@pytest.mark.parametrize("config", SMALL)
@pytest.mark.parametrize("batched_weights", [False, True])
def test_vmap(batched_weights, config):
    args = [draw(5, 9, 22, residual_dtype=np.int8, seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *args)
    x, w, epilogue = stacked if batched_weights else (stacked[0], *args[0][1:])
    axes = (0, 0, 0) if batched_weights else (0, None, None)
    actual, expected = (
        cheap.jit(jax.vmap(functools.partial(f, out_dtype=jnp.int8), axes))(x, w, epilogue)
        for f in (functools.partial(matmul, interpret=True, config=config), matmul_reference)
    )
    assert_same_bits(actual, expected)


@pytest.mark.parametrize("config", SMALL)
def test_shard_map(config):
    x, w, epilogue = draw(6, 9, 22)
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    f = functools.partial(matmul, out_dtype=jnp.int8, config=config, interpret=True)
    # check_vma: interpret mode mixes constants of the interpreter's with varying values.
    sharded = jax.shard_map(f, mesh=mesh, in_specs=(P("rows"), P(), P()), out_specs=P("rows"), check_vma=False)
    reference = jax.jit(functools.partial(matmul_reference, out_dtype=jnp.int8))
    assert_same_bits(cheap.jit(sharded)(x, w, epilogue), reference(x, w, epilogue))


def test_platform_dependent_takes_the_reference_on_a_cpu():
    args = draw(5, 9, 22)

    @jax.jit
    def dispatch(*args):
        return lax.platform_dependent(
            *args,
            cuda=functools.partial(matmul, out_dtype=jnp.int8),
            default=functools.partial(matmul_reference, out_dtype=jnp.int8),
        )

    assert_same_bits(dispatch(*args), jax.jit(functools.partial(matmul_reference, out_dtype=jnp.int8))(*args))


def test_a_given_offset_is_not_computed_again():
    x, w, epilogue = draw(16, 16, 64, x_dtype=np.uint8)
    run = functools.partial(matmul, out_dtype=jnp.int8, config=MmaConfig(16, 16, 32), interpret=True)
    assert "reduce_sum" in str(jax.make_jaxpr(run)(x, w, epilogue))
    assert "reduce_sum" not in str(jax.make_jaxpr(run)(x, w, epilogue, offset=shift.offset(w, -1)))
    with pytest.raises(UnsupportedShapeError, match=r"offset must be int32 \(16,\)"):
        run(x, w, epilogue, offset=jnp.zeros(16))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x": jnp.zeros((2, 3, 8), jnp.int8)}, "same leading axes"),
        ({"x": jnp.zeros((3, 7), jnp.int8)}, "differ in K"),
        ({"x": jnp.zeros((3, 8), jnp.int16)}, "x must be int8 or uint8, not int16"),
        ({"w": jnp.zeros((5, 8), jnp.int32)}, "w must be int8 or uint8, not int32"),
        ({"multiplier": jnp.zeros(4, jnp.float32)}, "multiplier, bias, lo and hi"),
        ({"bias": jnp.zeros(5, jnp.bfloat16)}, "multiplier, bias, lo and hi"),
        ({"residual": jnp.zeros((5, 3), jnp.int8)}, "residual must be"),
        ({"residual": jnp.zeros((3, 5), jnp.int16)}, "residual must be"),
        ({"residual": None}, "given together"),
        ({"residual_multiplier": jnp.ones(5, jnp.float32)}, "float32 scalar"),
        ({"table": jnp.ones(255, jnp.int8)}, "table must be"),
        ({"table": jnp.ones(256, jnp.float32)}, "table must be"),
    ],
)
@pytest.mark.parametrize("function", [matmul, matmul_reference, candidates])
def test_errors_say_why(function, change, reason):
    x, w, epilogue = draw(3, 5, 8, residual_dtype=np.int8)
    in_epilogue = {name: value for name, value in change.items() if name not in "xw"}
    epilogue = dataclasses.replace(epilogue, **in_epilogue)
    with pytest.raises(UnsupportedShapeError, match=reason):
        function(change.get("x", x), change.get("w", w), epilogue, out_dtype=jnp.int8)


def test_supports():
    x, w, epilogue = draw(3, 5, 8)
    assert supports(x, w, epilogue, out_dtype=jnp.bfloat16) is None
    assert supports(x, w, out_dtype=jnp.int32) is None
    assert "output must be one of" in supports(x, w, epilogue, out_dtype=jnp.int32)
    assert "int32 accumulator" in supports(x, w, out_dtype=jnp.int8)
    huge = jax.ShapeDtypeStruct((1 << 17, 1 << 14), jnp.int8), jax.ShapeDtypeStruct((8, 1 << 14), jnp.int8)
    assert "less than 2**31" in supports(*huge, out_dtype=jnp.int32)
    vectors = Epilogue(*[jax.ShapeDtypeStruct((32_000,), jnp.float32)] * 4)
    split = [jax.ShapeDtypeStruct((32_000, 66_400), dtype) for dtype in (jnp.uint8, jnp.int8)]  # in three parts
    assert "less than 2**31" in supports(*split, vectors, out_dtype=jnp.int8)


def test_config_of_another_gpu_is_refused():
    x, w, epilogue = draw(3, 5, 8)
    with gpu_target("NVIDIA A10G", 80), pytest.raises(UnsupportedShapeError, match="the GPU gives a block 101376"):
        matmul(x, w, epilogue, out_dtype=jnp.int8, config=MmaConfig(128, 128, 128, 8, 4))
    with gpu_target("Tesla T4", 40), pytest.raises(UnsupportedShapeError, match="the GPU is sm_75"):
        matmul(x, w, epilogue, out_dtype=jnp.int8, config=MmaConfig(16, 16, 32))
