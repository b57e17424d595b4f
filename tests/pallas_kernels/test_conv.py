import dataclasses
import functools

import cheap
import interpreting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolutions import window
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pallas_kernels import Dot4Config as MatmulConfig
from pallas_kernels import UnsupportedShapeError
from pallas_kernels.compat import gpu_target
from pallas_kernels.conv import (
    ConvChannelConfig,
    ConvDot4Config,
    ConvMmaConfig,
    Window,
    candidates,
    conv,
    conv_reference,
    default_config,
    supports,
)
from pallas_kernels.epilogue import Epilogue

RANGES = {"int8": (-127, 127), "uint8": (0, 255)}


def numbers(rng, shape, dtype):
    lo, hi = RANGES[np.dtype(dtype).name]
    return rng.integers(lo, hi + 1, shape).astype(dtype)


def operands(x_shape, w_shape, window, *, x_dtype=np.int8, out_dtype=jnp.int8, residual=None, table=False, seed=0):
    """x, w and an epilogue whose outputs fill the range of out_dtype and partly saturate; None for int32 out."""
    rng = np.random.default_rng(seed)
    x, w = numbers(rng, x_shape, x_dtype), numbers(rng, w_shape, np.int8)
    if out_dtype == jnp.int32:
        return *jax.device_put((x, w)), None
    features = w_shape[0]
    lo, hi = RANGES.get("int8" if table else jnp.dtype(out_dtype).name, (-1e30, 1e30))
    vectors = (
        rng.uniform(0.2, 2, features) / (60 * np.sqrt(np.prod(w_shape[1:]) + 1)),
        rng.normal(0, 30, features),
        np.where(rng.random(features) < 0.3, max(lo, 0), lo),  # some channels with ReLU
        np.full(features, hi),
    )
    epilogue = Epilogue(*map(np.float32, vectors))
    if residual is not None:
        shape = (x_shape[0], *out_sizes(x_shape, w_shape, window), features)
        values = numbers(rng, shape, residual) if residual != jnp.float32 else rng.normal(0, 50, shape)
        factor = np.float32(rng.uniform(0.1, 1))
        epilogue = dataclasses.replace(epilogue, residual=values.astype(residual), residual_multiplier=factor)
    if table:
        epilogue = dataclasses.replace(epilogue, table=rng.integers(0, 100, 256).astype(out_dtype))
    return jax.device_put((x, w, epilogue))


def out_sizes(x_shape, w_shape, window):
    """Of the output, independent of the library."""
    moves = (window.strides, window.padding, window.dilation, window.input_dilation)
    return [
        max(0, (max(0, (size - 1) * step + 1) + lo + hi - (taps - 1) * apart - 1) // stride + 1)
        for size, taps, stride, (lo, hi), apart, step in zip(x_shape[1:-1], w_shape[1:-1], *moves, strict=True)
    ]


def numpy_conv(x, w, window):
    """Independent of the library: an output pixel, a tap and a channel at a time, in int64."""
    x, w = np.asarray(x, np.int64), np.asarray(w, np.int64)
    moves = (window.strides, window.padding, window.dilation, window.input_dilation)
    axes = [*zip(x.shape[1:-1], w.shape[1:-1], *moves, strict=True)]
    out = out_sizes(x.shape, w.shape, window)
    depth, features = w.shape[-1], w.shape[0] // window.groups
    y = np.zeros((x.shape[0], *out, w.shape[0]), np.int64)
    for pixel in np.ndindex(*out):
        for tap in np.ndindex(w.shape[1:-1]):
            at = [o * axis[2] + t * axis[4] - axis[3][0] for o, t, axis in zip(pixel, tap, axes, strict=True)]
            inside = (0 <= a <= (axis[0] - 1) * axis[5] and a % axis[5] == 0 for a, axis in zip(at, axes, strict=True))
            if all(inside):
                under = x[:, *(a // axis[5] for a, axis in zip(at, axes, strict=True))]
                for group in range(window.groups):
                    channels = slice(group * features, (group + 1) * features)
                    part = under[:, group * depth : (group + 1) * depth]
                    y[:, *pixel, channels] += part @ w[channels, *tap].T
    return y


def assert_same_bits(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(*(a.view(f"u{a.itemsize}") for a in (actual, expected)))


def check(x, w, epilogue, window, out_dtype, config, with_offset=False):
    offset = 128 * np.asarray(w).sum(tuple(range(1, w.ndim)), dtype=np.int32) if with_offset else None

    @cheap.jit
    def both(x, w, epilogue, offset):
        kernel = conv(x, w, epilogue, window=window, out_dtype=out_dtype, offset=offset, config=config, interpret=True)
        return kernel, conv_reference(x, w, epilogue, window=window, out_dtype=out_dtype)

    assert_same_bits(*both(x, w, epilogue, offset))


@st.composite
def geometries(draw, groups, depths, features):
    """Shapes of x and w, and a window."""
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    axis = st.tuples(
        st.integers(1, 9 if rank < 3 else 4),  # size
        st.integers(1, 3),  # taps
        st.integers(1, 3),  # stride
        st.tuples(st.integers(-1, 5), st.integers(-1, 5)),  # padding, also more than the kernel, also negative
        st.integers(1, 2),  # dilation
        st.sampled_from([1, 1, 1, 2]),  # input dilation
    )
    sizes, taps, strides, padding, dilation, input_dilation = zip(*(draw(axis) for _ in range(rank)), strict=True)
    groups, depth = draw(groups), draw(depths)
    x_shape = (draw(st.integers(1, 2)), *sizes, groups * depth)
    w_shape = (groups * draw(features), *taps, depth)
    window = Window(strides, padding, dilation, input_dilation, groups)
    assume(0 not in out_sizes(x_shape, w_shape, window))
    return x_shape, w_shape, window


dense = geometries(st.just(1), st.sampled_from([1, 3, 4, 5, 16, 33, 40]), st.integers(1, 20))
grouped = geometries(st.integers(1, 3), st.sampled_from([1, 4, 16, 20]), st.integers(1, 20))
depthwise = geometries(st.sampled_from([1, 3, 4, 8, 20]), st.just(1), st.sampled_from([1, 1, 2, 3]))
in_fours = geometries(st.sampled_from([4, 8, 12, 20, 36]), st.just(1), st.just(1))
any_of_these = st.one_of(dense, grouped, depthwise)
kinds = {
    "x_dtype": st.sampled_from([np.int8, np.uint8]),
    "out_dtype": st.sampled_from([jnp.int8, jnp.uint8, jnp.float32, jnp.bfloat16, jnp.int32]),
    "residual": st.sampled_from([None, jnp.int8, jnp.float32]),
    "table": st.booleans(),
    "data": st.data(),
}
SMALL = (
    ConvMmaConfig(16, 16, 32),
    ConvMmaConfig(16, 16, 32, merge_taps=True),
    ConvChannelConfig(8, 4, 1),
    ConvChannelConfig(32, 16, 1),
    ConvDot4Config(16, 8, 1),
)


def equals_reference(geometry, x_dtype, out_dtype, residual, table, data):
    x_shape, w_shape, window = geometry
    x, w, epilogue = operands(
        x_shape, w_shape, window, x_dtype=x_dtype, out_dtype=out_dtype, residual=residual, table=table
    )
    configs = data.draw(st.sampled_from([SMALL, candidates(x, w, epilogue, window=window, out_dtype=out_dtype)]))
    config = data.draw(st.sampled_from(configs))
    if config in SMALL and not goes_with(config, w_shape, window):
        with pytest.raises(UnsupportedShapeError, match="taps merge only|dp4a takes"):
            conv(x, w, epilogue, window=window, out_dtype=out_dtype, config=config)
        return
    check(x, w, epilogue, window, out_dtype, config, with_offset=data.draw(st.booleans()))


def goes_with(config, w_shape, window):
    if isinstance(config, ConvDot4Config):
        return w_shape[-1] == 1 and w_shape[0] == window.groups and w_shape[0] % 4 == 0
    return not getattr(config, "merge_taps", False) or (
        window.groups == 1 and window.dilation[-1] == 1 and w_shape[-2] > 1
    )


@settings(max_examples=10, deadline=None, derandomize=True)
@given(geometry=dense, **kinds)
def test_dense_equals_reference(geometry, **kinds):
    equals_reference(geometry, **kinds)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(geometry=grouped, **kinds)
def test_grouped_equals_reference(geometry, **kinds):
    equals_reference(geometry, **kinds)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(geometry=depthwise, **kinds)
def test_depthwise_equals_reference(geometry, **kinds):
    equals_reference(geometry, **kinds)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", interpreting.CHUNKS)
@pytest.mark.parametrize(
    ("kind", "geometries"),
    [(ConvMmaConfig, any_of_these), (ConvChannelConfig, any_of_these), (ConvDot4Config, in_fours)],
)
def test_kernel_equals_reference_over_many_shapes(kind, geometries, chunk):
    def check_draw(geometry, x_dtype, out_dtype, residual, table, data):
        x_shape, w_shape, window = geometry
        args = operands(x_shape, w_shape, window, x_dtype=x_dtype, out_dtype=out_dtype, residual=residual, table=table)
        call = {"window": window, "out_dtype": out_dtype}
        with gpu_target("Tesla T4", 40):
            of_cuda_cores = candidates(*args, **call)
        found = [
            [config for config in configs if type(config) is kind and goes_with(config, w_shape, window)]
            for configs in (SMALL, (*candidates(*args, **call), *of_cuda_cores))
        ]
        config = data.draw(st.sampled_from(data.draw(st.sampled_from([configs for configs in found if configs]))))
        check(*args, window, out_dtype, config, with_offset=data.draw(st.booleans()))

    interpreting.check_draws(chunk, check_draw, geometry=geometries, **kinds)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(geometry=any_of_these, x_dtype=kinds["x_dtype"])
def test_reference_equals_numpy(geometry, x_dtype):
    x_shape, w_shape, window = geometry
    x, w, _ = operands(x_shape, w_shape, window, x_dtype=x_dtype, out_dtype=jnp.int32)
    sums = cheap.jit(functools.partial(conv_reference, window=window, out_dtype=jnp.int32))(x, w)
    assert_same_bits(sums, numpy_conv(x, w, window).astype(np.int32))


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "window"),
    [
        ((2, 7, 7, 36), (40, 1, 1, 36), window(stride=2)),  # a product of every other pixel
        ((2, 5, 3), (4, 1, 3), window(1)),
        ((1, 7, 6, 3), (20, 5, 5, 3), window(stride=2, padding=2)),  # a first layer
        ((1, 6, 5, 64), (24, 3, 3, 64), window(padding=(0, 1))),
        ((1, 4, 4, 40), (40, 3, 3, 1), window(padding=1, groups=40)),
        ((1, 5, 4, 8), (8, 6, 7, 1), window(padding=3, groups=8)),  # so many taps that they are a loop
        ((1, 4, 4, 8), (16, 3, 3, 2), window(padding=1, groups=4)),
        ((1, 4, 4, 6), (4, 2, 2, 6), window(stride=1, padding=1, input_dilation=2)),  # transposed
    ],
)
def test_default_equals_reference(x_shape, w_shape, window):
    x, w, epilogue = operands(x_shape, w_shape, window, x_dtype=np.uint8, out_dtype=jnp.uint8, residual=jnp.int8)
    check(x, w, epilogue, window, jnp.uint8, None)


@pytest.mark.parametrize("config", SMALL)
def test_saturating_inputs(config):
    groups = 1 if isinstance(config, ConvMmaConfig) else 12
    around = window(padding=1, groups=groups)
    x, w = jnp.full((1, 3, 3, 12), 255, jnp.uint8), jnp.full((12, 2, 2, 12 // groups), -127, jnp.int8)
    check(x, w, None, around, jnp.int32, config)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "padding"),
    [
        ((0, 4, 4, 3), (5, 3, 3, 3), 1),
        ((2, 4, 4, 3), (0, 3, 3, 3), 1),
        ((2, 4, 4, 0), (5, 3, 3, 0), 1),
        ((2, 2, 2, 3), (5, 3, 3, 3), 0),
        ((2, 0, 4, 3), (5, 3, 3, 3), 2),
        ((2, 0, 4, 3), (5, 3, 3, 3), 0),
        ((2, 0, 4, 32), (5, 3, 3, 32), 2),
    ],
)
def test_zero_sizes(x_shape, w_shape, padding):
    x, w, epilogue = operands(x_shape, w_shape, window(padding=padding))
    sums = numpy_conv(x, w, window(padding=padding))
    reference = functools.partial(conv_reference, window=window(padding=padding))
    assert_same_bits(cheap.jit(functools.partial(reference, out_dtype=jnp.int32))(x, w), sums.astype(np.int32))
    check(x, w, epilogue, window(padding=padding), jnp.int8, None)


@pytest.mark.parametrize("config", [ConvMmaConfig(16, 16, 32), ConvChannelConfig(8, 8, 1), ConvDot4Config(8, 8, 1)])
def test_vmap_and_shard_map(config):
    around = window(padding=1, groups=8)
    x, w, epilogue = operands((3, 4, 4, 8), (8, 2, 2, 1), around)
    f = functools.partial(conv, window=around, out_dtype=jnp.int8, config=config, interpret=True)
    expected = jax.jit(functools.partial(conv_reference, window=around, out_dtype=jnp.int8))(x, w, epilogue)
    one_by_one = jax.vmap(lambda x: f(x[None], w, epilogue)[0])
    assert_same_bits(cheap.jit(one_by_one)(x), expected)
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    batch, whole = jax.P("batch"), jax.P()
    sharded = jax.shard_map(f, mesh=mesh, in_specs=(batch, whole, whole), out_specs=batch, check_vma=False)
    assert_same_bits(cheap.jit(sharded)(x, w, epilogue), expected)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"x": jnp.zeros((2, 4), jnp.int8)}, "x and w must be"),
        ({"w": jnp.zeros((8, 3, 4), jnp.int8)}, "x and w must be"),
        ({"x": jnp.zeros((2, 5, 5, 4), jnp.int32)}, "x must be int8 or uint8, not int32"),
        ({"w": jnp.zeros((8, 3, 3, 4), jnp.uint8)}, "w must be int8, not uint8"),
        ({"w": jnp.zeros((8, 3, 0, 4), jnp.int8)}, "empty"),
        ({"w": jnp.zeros((8, 3, 3, 2), jnp.int8)}, "do not go into 1 groups"),
        ({"window": window(1)}, "must have 2 numbers"),
        ({"window": window(stride=0)}, "must be positive"),
        ({"window": window(groups=3)}, "do not go into 3 groups"),
        ({"out_dtype": jnp.int8}, "int32 accumulator"),
        ({"config": MatmulConfig(8, 8, 64)}, "of a matrix product"),
        ({"config": ConvDot4Config(8, 8)}, "dp4a takes"),
        ({"config": ConvMmaConfig(16, 16, 32, merge_taps=True), "window": window(dilation=2)}, "taps merge only"),
    ],
)
def test_errors_say_why(changed, reason):
    given = {"x": jnp.zeros((2, 5, 5, 4), jnp.int8), "w": jnp.zeros((8, 3, 3, 4), jnp.int8)}
    given |= {"window": window(), "out_dtype": jnp.int32} | changed
    with pytest.raises(UnsupportedShapeError, match=reason):
        conv(given.pop("x"), given.pop("w"), **given)


def test_supports_says_what_int32_does_not_hold():
    w = jax.ShapeDtypeStruct((4, 3, 3, 7368), jnp.int8)
    x = jax.ShapeDtypeStruct((1, 4, 4, 7368), jnp.uint8)
    assert "66312 products" in supports(x, w, window=window(), out_dtype=jnp.int32)
    assert supports(jax.ShapeDtypeStruct(x.shape, jnp.int8), w, window=window(), out_dtype=jnp.int32) is None
    large, w = jax.ShapeDtypeStruct((2**17, 128, 128, 1), jnp.int8), jax.ShapeDtypeStruct((4, 3, 3, 1), jnp.int8)
    assert "cut the batch" in supports(large, w, window=window(), out_dtype=jnp.int32)


@pytest.mark.parametrize("blocks", [(8, 16, 32), (16, 16, 16), (16, 24, 32), (256, 256, 32), (16, 16, 32, 3)])
def test_invalid_tiles_of_the_tensor_cores(blocks):
    with pytest.raises(ValueError, match=r"powers of two|accumulators"):
        ConvMmaConfig(*blocks)
    for stages in (0, 256):
        with pytest.raises(ValueError, match="stage"):
            ConvMmaConfig(16, 16, 32, num_stages=stages)


def test_a_tile_that_does_not_fit_into_the_gpu_is_refused():
    x, w, _ = operands((1, 8, 8, 64), (64, 3, 3, 64), window(), out_dtype=jnp.int32)
    run = functools.partial(conv, window=window(), out_dtype=jnp.int32, config=ConvMmaConfig(128, 128, 128, 8, 4))
    with gpu_target("NVIDIA A10G", 80), pytest.raises(UnsupportedShapeError, match="the GPU gives a block 101376"):
        run(x, w)


@pytest.mark.parametrize("config", [ConvChannelConfig, ConvDot4Config])
@pytest.mark.parametrize("blocks", [(0, 8), (8, 12), (256, 128), (8, 8, 3)])
def test_invalid_tiles_of_the_cuda_cores(config, blocks):
    with pytest.raises(ValueError, match=r"powers of two|accumulators"):
        config(*blocks)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(geometry=any_of_these, batch=st.integers(1, 512))
def test_candidates_are_distinct_and_the_default_is_the_first(geometry, batch):
    x_shape, w_shape, window = geometry
    x = jax.ShapeDtypeStruct((batch, *x_shape[1:]), jnp.int8)
    w = jax.ShapeDtypeStruct(w_shape, jnp.int8)
    configs = candidates(x, w, window=window, out_dtype=jnp.int32)  # __post_init__ has checked them
    assert configs[0] == default_config(x, w, window=window, out_dtype=jnp.int32)
    assert len(set(configs)) == len(configs)
    assert all(c.shared_bytes <= 96 * 1024 for c in configs if isinstance(c, ConvMmaConfig))


def test_no_tensor_cores_for_int8_before_sm_80():
    x, w = jax.ShapeDtypeStruct((1, 8, 8, 64), jnp.int8), jax.ShapeDtypeStruct((64, 3, 3, 64), jnp.int8)
    with gpu_target("Tesla T4", 40):
        assert isinstance(default_config(x, w, window=window(), out_dtype=jnp.int32), ConvChannelConfig)
