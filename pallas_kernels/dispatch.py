"""A function that has another form on each platform, such as a kernel on NVIDIA GPUs and jnp elsewhere.

`lax.platform_dependent` is that too, but traces every branch wherever it is called, and lowers each for all platforms
of a multi-platform export, where no Pallas kernel for GPUs lowers for a CPU. The primitive here traces and lowers a
form where its own platform is lowered for: to trace the kernels of a network takes many times as long as to trace the
network.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import batching, mlir

from pallas_kernels import compat

# Triton-Pallas counts an array's elements in int32. Kernels refuse more themselves, but not what vmap stacks.
_MOST_ELEMENTS = (1 << 31) - 1

_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

_by_platform_p = core.Primitive("by_platform")
_by_platform_p.multiple_results = True


def on_cuda(kernel: Callable[..., Any], default: Callable[..., Any]) -> Callable[..., Any]:
    """The function of arrays that is `kernel` where it runs on an NVIDIA GPU and `default` elsewhere; see
    `by_platform`."""
    return by_platform({"default": default, "cuda": kernel})


def by_platform(functions: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The function of arrays that is, on each platform, the one of its name ("cpu", "cuda", "rocm", "tpu"), or else the
    one that is named "default".

    The first is traced where the whole is, and says what the results are; the others where they are lowered, when a
    TypeError tells that theirs have another structure, shape or dtype. What they need must be among the operands.
    Composes with jit, vmap, scan, shard_map and export (of several platforms, too); it has no derivative.
    """

    def run(*operands: Any) -> Any:
        leaves, tree = jax.tree.flatten(operands)

        def flat(function: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *leaves: function(*jax.tree.unflatten(tree, leaves))

        (first, function), *others = functions.items()
        traced, result = jax.make_jaxpr(flat(function), return_shape=True)(*leaves)
        structure = jax.tree.structure(result)
        mesh = jax.sharding.get_abstract_mesh()
        forms = {first: traced} | {name: _Form(flat(other), structure, mesh) for name, other in others}
        return jax.tree.unflatten(structure, _by_platform_p.bind(*leaves, forms=tuple(forms.items())))

    # Of a call outside of any jit, too, the second is not compiled again.
    return jax.jit(run, inline=True)


@dataclass(frozen=True, eq=False)
class _Form:
    """A function of arrays that is not traced yet, the structure that its result is to have, and the mesh in whose
    context it was called."""

    function: Callable[..., Any]
    structure: Any
    mesh: Any

    def traced(self, avals: Sequence[Any], results: Sequence[Any], platform: str) -> Any:
        target = _target(self.mesh) if platform == "cuda" else contextlib.nullcontext()
        with jax.sharding.use_abstract_mesh(self.mesh), target:
            traced, result = jax.make_jaxpr(self.function, return_shape=True)(*map(_type, avals))
        expected = jax.tree.unflatten(self.structure, map(_type, results))
        if jax.tree.structure(result) != self.structure or jax.tree.map(_type, result) != expected:
            raise TypeError(f"the form for {platform} gives {result}, that of other platforms {expected}")
        return traced


def _type(x: Any) -> Any:
    # Without the axes of a `shard_map` that it varies over: `pallas_call` has to be told its outputs', and parts of a
    # Mosaic kernel take no operand that varies. A kernel is of one device: it need not know.
    return jax.ShapeDtypeStruct(jnp.shape(x), jax.dtypes.result_type(x))


@_by_platform_p.def_abstract_eval
def _abstract_eval(*avals: Any, forms: Any) -> Any:
    del avals
    return forms[0][1].out_avals


@_by_platform_p.def_impl
def _impl(*operands: Any, forms: Any) -> Any:
    # Reached where jit is disabled: `by_platform` gives a function that is compiled.
    with jax.disable_jit(False):
        return jax.jit(functools.partial(_by_platform_p.bind, forms=forms))(*operands)


def _batch(operands: Sequence[Any], axes: Sequence[Any], *, forms: Any) -> tuple[Any, Any]:
    def batched(form: Any) -> Callable[..., Any]:
        function = form.function if isinstance(form, _Form) else core.jaxpr_as_fun(form)
        return jax.vmap(lambda *leaves: jax.tree.leaves(function(*leaves)), tuple(axes))

    functions = {name: batched(form) for name, form in forms}
    arrays = (*operands, *jax.eval_shape(functions[forms[0][0]], *operands))
    if max(math.prod(jnp.shape(array)) for array in arrays) > _MOST_ELEMENTS:
        functions.pop("cuda", None)
    results = by_platform(functions)(*operands)
    return results, [0] * len(results)


batching.primitive_batchers[_by_platform_p] = _batch


def _target(mesh: Any) -> contextlib.AbstractContextManager[None]:
    """The GPU that kernels are traced for where there is none and nobody named one: sm_80, so that every later one can
    run what was chosen for it."""
    if jax.default_backend() == "gpu" or mesh.abstract_device is not None or not mesh.empty:
        return contextlib.nullcontext()
    return compat.gpu_target("NVIDIA A100-SXM4-80GB", 108)


def _lower(platform: str) -> Any:
    def rule(context: Any, *operands: Any, forms: Any) -> Any:
        given = dict(forms)
        form = given[platform if platform in given else "default"]
        if isinstance(form, _Form):
            form = form.traced(context.avals_in, context.avals_out, platform)
        context = context.replace(avals_in=form.in_avals, avals_out=form.out_avals)
        return mlir.lower_fun(core.jaxpr_as_fun(form))(context, *operands)

    return rule


# A rule of its own for each platform: JAX then lowers each for that platform alone, also what depends on the platform
# inside it.
for _platform in _PLATFORMS:
    mlir.register_lowering(_by_platform_p, _lower(_platform), platform=_platform)
