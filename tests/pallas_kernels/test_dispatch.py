import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from pallas_kernels import by_platform, on_cuda
from pallas_kernels.compat import compute_capability, gpu_target

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def twice(x, pair):
    return {"sum": x + pair[0], "platform": lax.platform_dependent(x, cpu=lambda x: x, default=lambda x: -x)}


def thrice(x, pair):
    return {"sum": x + pair[1], "platform": 2 * x}


BOTH = on_cuda(thrice, twice)
ARGS = (X, (np.float32(1), np.float32(2)))


def test_elsewhere_it_is_the_default():
    for run in (BOTH, jax.jit(BOTH)):
        np.testing.assert_array_equal(run(*ARGS)["sum"], X + 1)
        np.testing.assert_array_equal(run(*ARGS)["platform"], X)


def test_calls_are_compiled_once(caplog):
    run = on_cuda(lambda x: x * 3, lambda x: x + 2)
    with jax.log_compiles():
        run(X)
        compiled = caplog.text.count("Finished XLA compilation")
        run(X)
    assert compiled == caplog.text.count("Finished XLA compilation") == 1


def test_without_jit():
    with jax.disable_jit():
        np.testing.assert_array_equal(BOTH(*ARGS)["sum"], X + 1)


@pytest.mark.parametrize(("size", "is_kernel"), [(1, True), (1 << 15, False)])
def test_what_vmap_stacks_beyond_int32_is_the_default(size, is_kernel):
    run = on_cuda(lambda x, y: x * y, lambda x, y: x - y)
    args = jax.ShapeDtypeStruct((1 << 16, size), jnp.int8), jax.ShapeDtypeStruct((size,), jnp.int8)
    with gpu_target():
        text = jax.jit(jax.vmap(run, (0, None))).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    assert ("multiply" in text, "subtract" in text) == (is_kernel, not is_kernel)


def test_vmap_and_scan():
    np.testing.assert_array_equal(jax.vmap(BOTH, (0, None))(*ARGS)["sum"], X + 1)
    np.testing.assert_array_equal(jax.vmap(BOTH, (1, (None, 0)))(X, (np.float32(1), X[0]))["sum"], X.T + 1)
    scanned = jax.jit(lambda x: lax.scan(lambda total, row: (BOTH(total, ARGS[1])["sum"], row), x[0], x))
    np.testing.assert_array_equal(scanned(X)[0], X[0] + 2)


def test_on_cuda_it_is_the_kernel():
    with gpu_target():
        text = jax.jit(BOTH).trace(*ARGS).lower(lowering_platforms=("cuda",)).as_text()
    assert "multiply" in text and "negate" not in text


@pytest.mark.parametrize("platforms", [("cpu", "cuda", "tpu"), ("tpu", "cuda", "cpu"), ("cuda", "cpu")])
def test_one_export_holds_both(platforms):
    """What depends on the platform inside of a form, too, is that of the platform it runs on."""
    exported = export.export(jax.jit(BOTH), platforms=platforms)(*ARGS)
    assert "multiply" in exported.mlir_module()
    np.testing.assert_array_equal(exported.call(*ARGS)["sum"], X + 1)
    np.testing.assert_array_equal(exported.call(*ARGS)["platform"], X)


def test_the_forms_must_agree():
    for kernel in (lambda x: x.astype(jnp.int8), lambda x: (x, x)):
        traced = jax.jit(on_cuda(kernel, lambda x: x)).trace(X)
        traced.lower()
        with pytest.raises(TypeError, match="the form for cuda gives"):
            traced.lower(lowering_platforms=("cuda",))


def test_a_form_is_traced_where_it_is_lowered():
    """For its own platform, in the context that it was called in: what the kernel is for."""
    seen = []

    def kernel(x):
        seen.append(compute_capability())
        return x * 2

    run = jax.jit(jax.vmap(on_cuda(kernel, lambda x: x + 1)))
    np.testing.assert_array_equal(run(X), X + 1)
    assert not seen
    with gpu_target("NVIDIA B200"):
        traced = run.trace(X)
    traced.lower()
    assert not seen
    assert "multiply" in traced.lower(lowering_platforms=("cuda",)).as_text()
    run.trace(X).lower(lowering_platforms=("cuda",))
    assert seen == [100, 80]


def test_a_platform_without_a_form_has_the_default():
    run = by_platform({"tpu": lambda x: x * 2, "default": lambda x: x + 1})
    np.testing.assert_array_equal(run(X), X + 1)
    text = jax.jit(run).trace(X).lower(lowering_platforms=("tpu",)).as_text()
    assert "multiply" in text and "add" not in text


def test_there_is_no_derivative():
    with pytest.raises(NotImplementedError, match="by_platform"):
        jax.grad(lambda x: BOTH(x, ARGS[1])["sum"].sum())(X)
