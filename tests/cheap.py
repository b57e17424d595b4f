"""A jit for what a test runs once: an oracle, a model in float, an interpreted kernel.

XLA takes longer to optimize such a function than to run it, and longer still to compile its operations one by one, as
it does eagerly. Unoptimized, integers are exact as ever, and each operation on floats is rounded by itself; only exp
and the like, which are approximated, have other last bits. What a test is about is compiled as a user compiles it.
"""

import functools

import jax

_OPTIONS: dict[str, bool | int] = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
if jax.__version_info__ < (0, 11):  # later ones have no such option
    _OPTIONS["xla_cpu_use_fusion_emitters"] = False

jit = functools.partial(jax.jit, compiler_options=_OPTIONS)


def oracle(qmodel, *args):
    """What the quantized model, whose float nodes hold no exp or the like, gives by the definition of its nodes."""
    return jit(qmodel.plan.evaluate)(qmodel.params, args)
