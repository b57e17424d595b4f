"""What a user hands in, a Linen module, an NNX module or a function, as one thing: `fun(params, *args)`.

Flax is never imported here: a Flax model can only exist where Flax is already loaded.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxq.errors import TraceError, UnsupportedError


def is_nnx(model: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(model, nnx.Module)


def is_linen(model: Any) -> bool:
    linen = sys.modules.get("flax.linen")
    return linen is not None and isinstance(model, linen.Module)


def as_function(model: Any, variables: Any, static_kwargs: Mapping[str, Any]) -> tuple[Callable[..., Any], Any]:
    """(fun, params) of the model, where fun(params, *args) is what it computes.

    Args:
      model: a Linen module (variables are its collections), an NNX module (variables are None: its state is taken from
        it), or any function of parameters and arrays.
      variables: the pytree of parameters.
      static_kwargs: keyword arguments of every call, fixed.

    Raises:
      UnsupportedError: the model is none of these, or its variables are missing.
    """
    if is_nnx(model):
        return _nnx_function(model, static_kwargs)
    if is_linen(model):
        if not isinstance(variables, Mapping) or not any(isinstance(part, Mapping) for part in variables.values()):
            raise UnsupportedError(
                "variables: a Linen module takes the dict of collections that model.init returned, such as "
                f"{{'params': ...}}, not {_describe(variables)}"
            )
        return (lambda params, *args: model.apply(params, *args, **static_kwargs)), variables
    if isinstance(model, type):
        raise UnsupportedError(f"model: {model.__name__} is a class; hand in an instance, {model.__name__}(...)")
    if not callable(model):
        raise UnsupportedError(f"model: takes a Flax module or a function of (params, *args), not {_describe(model)}")
    if variables is None:
        raise UnsupportedError("variables: missing; a function is quantized by quantize(fun, params, batches)")
    return (lambda params, *args: model(params, *args, **static_kwargs)), variables


def _nnx_function(model: Any, static_kwargs: Mapping[str, Any]) -> tuple[Callable[..., Any], Any]:
    nnx = sys.modules["flax.nnx"]
    graph_def, state = nnx.split(model)

    def fun(state: Any, *args: Any) -> Any:
        module = nnx.merge(graph_def, state)
        before = {path: variable.get_value() for path, variable in nnx.to_flat_state(nnx.state(module))}
        result = module(*args, **static_kwargs)
        for path, variable in nnx.to_flat_state(nnx.state(module)):
            if variable.get_value() is not before.get(path):
                raise TraceError(_changed("/".join(map(str, path)), variable))
        return result

    return fun, state


def _changed(path: str, variable: Any) -> str:
    kind = type(variable).__name__
    if kind == "BatchStat":
        return f"layer {path!r} updates its batch statistics: the model is in training mode; call model.eval() first"
    if kind.startswith("Rng"):
        return f"layer {path!r} draws random numbers: dropout is on; call model.eval() first"
    return (
        f"{path!r} ({kind}) changes during the call; make it an argument and a result of a function of "
        "(params, *args) and quantize that"
    )


def shown(tree: Any) -> str:
    """The structure with its leaves as stars: (*, {'mask': *})."""
    return str(jax.tree.unflatten(tree, ["*"] * tree.num_leaves)).replace("'*'", "*")


def _describe(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


# What Flax raises, by the name of the error class, and the mend.
ADVICE = {
    "ModifyScopeVariableError": "the model is in training mode: use_running_average=True, or static_kwargs="
    "{'train': False} where the model takes it",
    "InvalidRngError": "dropout is on: deterministic=True, or static_kwargs={'train': False} where the model takes it",
    "ScopeParamNotFoundError": "the variables do not fit the model: a parameter is missing",
    "ScopeParamShapeError": "the variables or the batch do not fit the model: a parameter has another shape",
    "ScopeCollectionNotFound": "the variables do not fit the model: a collection is missing",
    "ScopeVariableNotFoundError": "the variables do not fit the model: a variable is missing",
}
