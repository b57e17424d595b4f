"""on_cuda: a kernel on NVIDIA GPUs, its jnp form on every other platform, both in one function.

`lax.platform_dependent` is that too, but lowers each of its branches for all platforms of a multi-platform export, and
no Pallas kernel for GPUs lowers for a CPU. The primitive here lowers each of its two functions for its own platforms.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import batching, mlir

from pallas_kernels import compat

# Triton-Pallas counts an array's elements in int32. Kernels refuse more themselves, but not what vmap stacks.
_MOST_ELEMENTS = (1 << 31) - 1

_on_cuda_p = core.Primitive("on_cuda")
_on_cuda_p.multiple_results = True


def on_cuda(kernel: Callable[..., Any], default: Callable[..., Any]) -> Callable[..., Any]:
    """The function of arrays that is `kernel` where it runs on an NVIDIA GPU and `default` elsewhere.

    Composes with jit, vmap, scan, shard_map and export (of several platforms, too); it has no derivative.

    Raises:
      TypeError: the two give results of other structures, shapes or dtypes.
    """

    def run(*operands: Any) -> Any:
        leaves, tree = jax.tree.flatten(operands)

        def traced(function: Callable[..., Any], leaves: Sequence[Any]) -> tuple[Any, Any]:
            def flat(*leaves: Any) -> Any:
                return function(*jax.tree.unflatten(tree, leaves))

            return jax.make_jaxpr(flat, return_shape=True)(*leaves)

        theirs, other = traced(default, leaves)
        with _target():
            ours, result = traced(kernel, [_type(leaf) for leaf in leaves])
        if jax.tree.map(_type, result) != jax.tree.map(_type, other):
            raise TypeError(f"the kernel gives {result}, its form for other platforms {other}")
        return jax.tree.unflatten(jax.tree.structure(other), _on_cuda_p.bind(*leaves, kernel=ours, default=theirs))

    # Of a call outside of any jit, too, the second is not compiled again.
    return jax.jit(run, inline=True)


def _type(x: Any) -> Any:
    # Without the axes of a `shard_map` that it varies over: `pallas_call` has to be told its outputs', and parts of a
    # Mosaic kernel take no operand that varies. A kernel is of one device: it need not know.
    return jax.ShapeDtypeStruct(jnp.shape(x), jax.dtypes.result_type(x))


@_on_cuda_p.def_abstract_eval
def _abstract_eval(*avals: Any, kernel: Any, default: Any) -> Any:
    del avals, kernel
    return default.out_avals


@_on_cuda_p.def_impl
def _impl(*operands: Any, **functions: Any) -> Any:
    # Reached where jit is disabled: `on_cuda` gives a function that is compiled.
    with jax.disable_jit(False):
        return jax.jit(functools.partial(_on_cuda_p.bind, **functions))(*operands)


def _batch(operands: Sequence[Any], axes: Sequence[Any], *, kernel: Any, default: Any) -> tuple[Any, Any]:
    by_kernel, by_default = (jax.vmap(core.jaxpr_as_fun(jaxpr), tuple(axes)) for jaxpr in (kernel, default))
    arrays = (*operands, *jax.eval_shape(by_default, *operands))
    if max(math.prod(jnp.shape(array)) for array in arrays) > _MOST_ELEMENTS:
        by_kernel = by_default
    results = on_cuda(by_kernel, by_default)(*operands)
    return results, [0] * len(results)


batching.primitive_batchers[_on_cuda_p] = _batch


def _target() -> contextlib.AbstractContextManager[None]:
    """The GPU that kernels are traced for where there is none and nobody named one: sm_80, so that every later one can
    run what was chosen for it."""
    mesh = jax.sharding.get_abstract_mesh()
    if jax.default_backend() == "gpu" or mesh.abstract_device is not None or not mesh.empty:
        return contextlib.nullcontext()
    return compat.gpu_target("NVIDIA A100-SXM4-80GB", 108)


def _lower(of: str) -> Any:
    def rule(context: Any, *operands: Any, **functions: Any) -> Any:
        function = functions[of]
        context = context.replace(avals_in=function.in_avals, avals_out=function.out_avals)
        return mlir.lower_fun(core.jaxpr_as_fun(function))(context, *operands)

    return rule


# A rule of its own for each platform: JAX then lowers each for that platform alone, also what depends on the platform
# inside it.
for _platform in ("cpu", "tpu", "rocm"):
    mlir.register_lowering(_on_cuda_p, _lower("default"), platform=_platform)
mlir.register_lowering(_on_cuda_p, _lower("kernel"), platform="cuda")
