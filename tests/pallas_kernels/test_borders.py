import cheap
import interpreting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxq import numerics
from pallas_kernels import UnsupportedShapeError, borders
from pallas_kernels.borders import BorderConfig, candidates, default_config, dequantize, quantize, supports

FLOATS = st.sampled_from(borders.FLOATS)
INTEGERS = st.sampled_from(["int8", "uint8"])


@st.composite
def cases(draw):
    shape = tuple(draw(st.lists(st.integers(0, 13), max_size=4)))
    channels = shape[-1:] if draw(st.booleans()) else ()
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    block = draw(st.sampled_from([None, 1, 16, 512]))
    config = None if block is None else BorderConfig(block, 1)
    return shape, np.asarray(rng.uniform(0.01, 3, channels), np.float32), rng, config


def check_quantize(case, source, target):
    shape, multiplier, rng, config = case
    x = np.asarray(rng.normal(0, 100, shape))
    x = np.where(rng.random(shape) < 0.3, np.round(x) / 2, x)  # ties
    x = np.where(rng.random(shape) < 0.1, rng.choice([np.nan, np.inf, -np.inf, 3e38, 0.0], shape), x)
    with np.errstate(over="ignore"):
        x = x.astype(np.float32).astype(jnp.dtype(source))
    check((quantize, borders.quantize_reference, numerics.quantize), x, multiplier, target, config)


def check_dequantize(case, source, target):
    shape, scale, rng, config = case
    q = np.asarray(rng.integers(0, 256, shape), np.uint8).view(source)
    check((dequantize, borders.dequantize_reference, numerics.dequantize), q, scale, jnp.dtype(target), config)


def check(functions, x, vector, dtype, config):
    """The kernel, its reference and jaxq's own function are equal in every bit."""
    kernel, *others = functions

    @cheap.jit
    def run(x, vector):
        ours = kernel(x, vector, dtype=dtype, config=config, interpret=True)
        return ours, *(other(x, vector, dtype=dtype) for other in others)

    ours, *expected = map(np.asarray, run(x, vector))
    for other in expected:
        assert (ours.dtype, ours.shape) == (other.dtype, other.shape) == (jnp.dtype(dtype), x.shape)
        np.testing.assert_array_equal(*(a.view(f"u{a.itemsize}") for a in (ours, other)))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(cases(), FLOATS, INTEGERS)
def test_quantize(case, source, target):
    check_quantize(case, source, target)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(cases(), INTEGERS, FLOATS)
def test_dequantize(case, source, target):
    check_dequantize(case, source, target)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", interpreting.CHUNKS)
def test_many_borders(chunk):
    def check_draw(case, floating, integer):
        check_quantize(case, floating, integer)
        check_dequantize(case, integer, floating)

    interpreting.check_draws(chunk, check_draw, case=cases(), floating=FLOATS, integer=INTEGERS)


@pytest.mark.parametrize("channels", [(), (7,)])
def test_vmap(channels):
    x = jnp.asarray(np.random.default_rng(0).normal(0, 60, (3, 5, 7)).astype(np.float32))
    multiplier = jnp.full(channels, 1.5, jnp.float32)
    ours = cheap.jit(jax.vmap(lambda x: quantize(x, multiplier, dtype="int8", interpret=True)))(x)
    np.testing.assert_array_equal(ours, borders.quantize_reference(x, multiplier, dtype="int8"))


def test_configs():
    for size in (0, 1, 5, 1000, 10**6):
        assert candidates(size)[0] == default_config(size)
        assert len(set(candidates(size))) == len(candidates(size))
    with pytest.raises(ValueError, match="powers of two"):
        BorderConfig(48)


@pytest.mark.parametrize(
    ("shape", "source", "multiplier", "target", "reason"),
    [
        ((3, 5), "float32", (), "int32", "one dtype must be"),
        ((3, 5), "int8", (), "uint8", "one dtype must be"),
        ((3, 5), "float32", (3,), "int8", r"a scalar or \(5,\)"),
        ((2**16, 2**15), "float32", (), "int8", "int32 counts"),
    ],
)
def test_what_is_refused(shape, source, multiplier, target, reason):
    x, vector = jax.ShapeDtypeStruct(shape, source), jax.ShapeDtypeStruct(multiplier, jnp.float32)
    function = quantize if source == "float32" else dequantize
    with pytest.raises(UnsupportedShapeError, match=reason):
        function(x, vector, dtype=target)


def test_supports():
    vector = jax.ShapeDtypeStruct((), jnp.float32)
    assert supports(jax.ShapeDtypeStruct((), jnp.bfloat16), vector, dtype="uint8") is None
    assert supports(jax.ShapeDtypeStruct((2, 0), jnp.uint8), vector, dtype="float16") is None
