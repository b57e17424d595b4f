"""quantize, load, QuantizedModel: composition only."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq import passes
from jaxq.calibration.batches import Batches
from jaxq.calibration.observe import calibrate
from jaxq.config import QuantConfig
from jaxq.errors import CalibrationError, UnsupportedError
from jaxq.graph.node import WEIGHTED
from jaxq.graph.trace import trace
from jaxq.graph.verify import verify
from jaxq.models import as_function, is_nnx
from jaxq.passes.place import place
from jaxq.passes.scales import method_of, select
from jaxq.plan import artifact
from jaxq.plan.plan import Plan
from jaxq.report import Summary, rows

# Examples kept to measure the error that each candidate threshold makes.
NUM_SAMPLES = 16


def quantize(
    model: Any,
    variables: Any = None,
    batches: Any = None,
    *,
    config: QuantConfig | None = None,
    static_kwargs: Mapping[str, Any] | None = None,
) -> "QuantizedModel":
    """The same function in int8.

        quantize(linen_module, variables, batches)
        quantize(nnx_module, batches)
        quantize(fun, params, batches)          any fun(params, *args)

    Args:
      model: a Flax Linen module, a Flax NNX module (in inference mode), or a function of parameters and arrays.
      variables: the pytree of parameters; for an NNX module the batches stand here.
      batches: an iterable of calibration batches, read once. An item that is a tuple is the function's positional
        arguments, anything else its one argument; the leading axis is the batch, of any size.
      config: methods and rules.
      static_kwargs: keyword arguments of every call, fixed, such as {"train": False}.

    Raises:
      TraceError: the function does not trace, or is in training mode.
      CalibrationError: batches are missing, empty, malformed or not finite.
      UnsupportedError: the arguments fit no form above, or the function has nothing to quantize.
    """
    config = QuantConfig() if config is None else config
    if not isinstance(config, QuantConfig):
        raise UnsupportedError(f"config: takes a QuantConfig, such as QuantConfig(method='entropy'), not {config!r}")
    if is_nnx(model):
        if variables is not None and batches is not None:
            raise CalibrationError(
                "batches: an NNX module brings its own state, so that its second argument is the batches: "
                "quantize(model, batches)"
            )
        variables, batches = None, variables if batches is None else batches
    fun, params = as_function(model, variables, static_kwargs or {})
    stream = Batches(batches)
    _check_variables(params)
    traced = trace(fun, params, stream.example)
    graph = verify(passes.simplify(traced.graph), "float")
    placement = place(graph, config)
    if not any(node.op in WEIGHTED for node in placement.int8):
        raise UnsupportedError(f"the function has nothing to quantize: {_why_nothing(graph, placement.reasons)}")

    observed = {source for group in placement.scale_groups for source in group.sources}
    automatic = any(method_of(group, config) == "auto" for group in placement.scale_groups)
    statistics = calibrate(graph, observed, stream, NUM_SAMPLES if automatic else 0)
    chosen = select(graph, placement, statistics.histograms, statistics.samples, config)
    thresholds = {name: threshold for name, (_, threshold) in chosen.items()}
    int8 = verify(passes.quantize(graph, placement, thresholds), "quantized")

    unmatched = config.unmatched(node.name for node in graph.nodes if not node.is_constant)
    for rule in unmatched:
        warnings.warn(
            f"LayerRule({rule.pattern!r}) matched no layer that is left after folding; summary() lists them",
            stacklevel=2,
        )
    summary = Summary(
        nodes=rows(int8),
        float_bytes=_size(jax.tree.leaves(params)),
        int8_bytes=_size(int8.params.values()),
        fixed_because=traced.fixed_because,
        methods=dict(Counter(method for method, _ in chosen.values()).most_common()),
        unmatched_rules=tuple(rule.pattern for rule in unmatched),
    )
    plan = Plan(int8, traced.in_tree, traced.out_tree, summary)
    return QuantizedModel({name: jnp.asarray(value) for name, value in int8.params.items()}, plan)


def _check_variables(params: Any) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
            continue
        if not (jnp.issubdtype(array.dtype, np.number) or array.dtype == bool):
            raise UnsupportedError(f"variables: {name!r} is a {type(leaf).__name__}, not an array of numbers")
        if jnp.issubdtype(array.dtype, np.floating) and not np.all(np.isfinite(np.asarray(array, np.float32))):
            raise CalibrationError(f"variables: {name!r} holds NaN or Inf; no scale fits it")


def _why_nothing(graph: Any, reasons: Mapping[Any, str]) -> str:
    candidates = (*WEIGHTED, "dot_general", "conv_general_dilated", "scan", "while", "cond")
    refused = [f"{node.name}: {reasons[node]}" for node in graph.nodes if node.op in candidates]
    return "; ".join(refused[:3]) if refused else "it has no convolution or dot product with constant weights"


def _size(arrays: Any) -> int:
    return sum(getattr(array, "nbytes", 0) for array in arrays)


def load(path: str | PathLike[str]) -> "QuantizedModel":
    """The model in a file that `QuantizedModel.save` wrote; needs neither Flax nor the model's code.

    Raises:
      PlanError: the file is damaged, foreign, or from a newer jaxq.
    """
    plan, params = artifact.load(path)
    return QuantizedModel({name: jnp.asarray(value) for name, value in params.items()}, plan)


@jax.tree_util.register_pytree_node_class
class QuantizedModel:
    """A quantized function: callable, a pytree whose leaves are its `params`, and hashed by identity for `jax.jit`.

    It takes the arguments of the function it was made from, at any batch size; one example without the batch axis is
    taken too, and gives a result without it.

    Attributes:
      params: {parameter name: array}: int8 weights, multipliers, biases and what stayed in float.
      plan: what computes with them.
    """

    def __init__(self, params: Mapping[str, Any], plan: Plan) -> None:
        self.params = dict(params)
        self.plan = plan

    def __call__(self, *args: Any) -> Any:
        """The result, compiled by `jax.jit`.

        Raises:
          PlanError: the arguments have another structure, shape or dtype than the plan takes.
        """
        return self.plan(self.params, *args)

    @property
    def apply(self) -> Callable[..., Any]:
        """The pure form, with the weights as an argument: `qmodel.apply(qmodel.params, *args)`."""
        return self.plan

    def summary(self) -> Summary:
        """What was fused, in which precision, and what stayed in float and why: print it, or read its `nodes`."""
        return self.plan.summary

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the plan and its weights to one file, atomically.

        Raises:
          UnsupportedError: the function holds a primitive or a pytree type that a file cannot.
          PlanError: the file cannot be written.
        """
        artifact.save(path, self.plan, self.params)

    def tree_flatten(self) -> tuple[tuple[dict[str, Any]], Plan]:
        return (self.params,), self.plan

    @classmethod
    def tree_unflatten(cls, plan: Plan, children: tuple[dict[str, Any]]) -> "QuantizedModel":
        model = object.__new__(cls)
        model.params, model.plan = children[0], plan
        return model

    def __repr__(self) -> str:
        int8 = sum(row.precision == "int8" for row in self.plan.summary.nodes)
        return f"QuantizedModel({int8} of {len(self.plan.summary.nodes)} nodes in int8)"
