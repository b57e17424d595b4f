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


def bits(array):
    array = np.asarray(array)
    return array.view(f"u{array.itemsize}")


@st.composite
def cases(draw):
    shape = tuple(draw(st.lists(st.integers(0, 13), max_size=4)))
    channels = shape[-1:] if draw(st.booleans()) else ()
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    block = draw(st.sampled_from([None, 1, 16, 512]))
    config = None if block is None else BorderConfig(block, 1)
    return shape, jnp.asarray(np.asarray(rng.uniform(0.01, 3, channels), np.float32)), rng, config


def check_quantize(case, source, target):
    shape, multiplier, rng, config = case
    x = np.asarray(rng.normal(0, 100, shape))
    x = np.where(rng.random(shape) < 0.3, np.round(x) / 2, x)  # ties
    x = np.where(rng.random(shape) < 0.1, rng.choice([np.nan, np.inf, -np.inf, 3e38, 0.0], shape), x)
    with np.errstate(over="ignore"):
        x = jnp.asarray(x.astype(np.float32)).astype(source)
    ours = quantize(x, multiplier, dtype=target, config=config, interpret=True)
    np.testing.assert_array_equal(ours, borders.quantize_reference(x, multiplier, dtype=target))
    np.testing.assert_array_equal(ours, numerics.quantize(x, multiplier, dtype=target))
    assert ours.dtype == target


def check_dequantize(case, source, target):
    shape, scale, rng, config = case
    q = jnp.asarray(np.asarray(rng.integers(0, 256, shape), np.uint8).view(source))
    ours = dequantize(q, scale, dtype=target, config=config, interpret=True)
    np.testing.assert_array_equal(bits(ours), bits(borders.dequantize_reference(q, scale, dtype=target)))
    np.testing.assert_array_equal(bits(ours), bits(numerics.dequantize(q, scale, dtype=jnp.dtype(target))))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(cases(), FLOATS, INTEGERS)
def test_quantize(case, source, target):
    check_quantize(case, source, target)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(cases(), INTEGERS, FLOATS)
def test_dequantize(case, source, target):
    check_dequantize(case, source, target)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, derandomize=True)
@given(cases(), FLOATS, INTEGERS)
def test_many_borders(case, floating, integer):
    check_quantize(case, floating, integer)
    check_dequantize(case, integer, floating)


@pytest.mark.parametrize("channels", [(), (7,)])
def test_vmap(channels):
    x = jnp.asarray(np.random.default_rng(0).normal(0, 60, (3, 5, 7)).astype(np.float32))
    multiplier = jnp.full(channels, 1.5, jnp.float32)
    ours = jax.vmap(lambda x: quantize(x, multiplier, dtype="int8", interpret=True))(x)
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
