"""quantize, calibrate, load, QuantizedModel: composition only."""

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq import backends, passes
from jaxq.calibration import distributed, session
from jaxq.calibration.batches import Batches, Signature
from jaxq.calibration.observe import Statistics
from jaxq.calibration.report import report
from jaxq.calibration.result import Calibration
from jaxq.calibration.select import Errors, Tensor, candidates, select
from jaxq.config import LayerRule, QuantConfig
from jaxq.errors import CalibrationError, TraceError, UnsupportedError
from jaxq.graph.fingerprint import Fingerprint, fingerprint
from jaxq.graph.node import WEIGHTED, Graph
from jaxq.graph.trace import Traced, trace
from jaxq.graph.verify import verify
from jaxq.models import as_function, is_nnx
from jaxq.passes import scales
from jaxq.passes.measure import measure_errors
from jaxq.passes.place import Placement, place
from jaxq.plan import artifact
from jaxq.plan.plan import Plan
from jaxq.report import Summary, rows

# Examples kept to measure the error that each candidate threshold makes. To measure on one takes as long as up to five
# go forward.
NUM_SAMPLES = 6


def quantize(
    model: Any,
    variables: Any = None,
    batches: Any = None,
    *,
    calibration: Calibration | None = None,
    config: QuantConfig | None = None,
    static_kwargs: Mapping[str, Any] | None = None,
    allow_stale: bool = False,
) -> "QuantizedModel":
    """The same function in int8.

        quantize(linen_module, variables, batches)
        quantize(nnx_module, batches)
        quantize(fun, params, batches)              any fun(params, *args)
        quantize(model, variables, calibration=c)   what `calibrate` returned serves for the batches

    Args:
      model: a Flax Linen module, a Flax NNX module (in inference mode), or a function of parameters and arrays.
      variables: the pytree of parameters; for an NNX module the batches stand here.
      batches: an iterable of calibration batches, read once. An item that is a tuple is the function's positional
        arguments, anything else its one argument; the leading axis is the batch, of any size.
      calibration: of this model with these variables, instead of batches.
      config: methods and rules.
      static_kwargs: keyword arguments of every call, fixed, such as {"train": False}.
      allow_stale: take the calibration although the model or the variables have changed since.

    Raises:
      TraceError: the function does not trace, or is in training mode.
      CalibrationError: batches are missing, empty, malformed or not finite, or the calibration is of another network.
      UnsupportedError: the arguments fit no form above, or the function has nothing to quantize.
    """
    config = _checked(config)
    variables, batches = _arguments(model, variables, batches)
    if calibration is None:
        stream = Batches(batches)
        network = _network(model, variables, static_kwargs, stream.signature)
        calibration = _calibrate(network, network.place(config), config, stream)
    else:
        if batches is not None:
            raise CalibrationError("batches: takes no batches beside a calibration; hand in one of the two")
        if not isinstance(calibration, Calibration):
            raise CalibrationError(
                f"calibration: takes what jaxq.calibrate returned, not a {type(calibration).__name__}"
            )
        try:
            network = _network(model, variables, static_kwargs, calibration.signature)
        except TraceError as error:
            raise CalibrationError(f"calibration: its batches do not fit this network: {error}") from error
        calibration.check(network.fingerprint, allow_stale=allow_stale)
    _warn_of_unmatched_rules(network, config)
    return _quantized(network, config, calibration)


def calibrate(
    model: Any,
    variables: Any = None,
    batches: Any = None,
    *,
    config: QuantConfig | None = None,
    static_kwargs: Mapping[str, Any] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    until: str | None = None,
    checkpoint: str | PathLike[str] | None = None,
) -> Calibration:
    """Observes the model's activations on the batches: one forward pass of each, in constant memory.

    The result serves every method and all rules: `quantize(model, variables, calibration=c, config=...)`.

    Args:
      model, variables, batches, static_kwargs: as `quantize` takes them.
      config: the error of every candidate threshold is measured where it says method "auto".
      mesh: devices that share each batch. Where they are of several processes (`jax.distributed`), every process
        hands in batches of its own, and each gets what all counted.
      until: "settled" ends the pass as soon as twice as many examples hardly changed a threshold
        (`Report.settled`); by the config's method, and by "mse" for "auto".
      checkpoint: a file in which the pass keeps what it has counted, every half minute and when it stops for Ctrl-C or
        an error. Given the same file again, it goes on there: batches already counted are recognised by their
        digests. The file holds the few examples kept to measure errors, which `Calibration.save` leaves out. Of several
        processes, each needs a file of its own.

    Raises:
      TraceError: the function does not trace, or is in training mode.
      CalibrationError: batches are missing, empty, malformed or not finite, or the checkpoint is of another network.
      UnsupportedError: the arguments fit no form above, or the function has nothing to quantize.
    """
    config = _checked(config)
    if until not in (None, "settled"):
        raise UnsupportedError(f"until: takes 'settled' or None, not {until!r}")
    if not isinstance(checkpoint, str | PathLike | None):
        raise UnsupportedError(f"checkpoint: takes a path or None, not a {type(checkpoint).__name__}")
    variables, batches = _arguments(model, variables, batches)
    with distributed.together(mesh, f"{config}, until={until!r}"):
        stream = Batches(batches)
        network = _network(model, variables, static_kwargs, stream.signature)
        placement = network.place(config)
    _warn_of_unmatched_rules(network, config)
    return _calibrate(network, placement, config, stream, mesh, until, checkpoint)


def _checked(config: QuantConfig | None) -> QuantConfig:
    config = QuantConfig() if config is None else config
    if not isinstance(config, QuantConfig):
        raise UnsupportedError(f"config: takes a QuantConfig, such as QuantConfig(method='entropy'), not {config!r}")
    return config


def _arguments(model: Any, variables: Any, batches: Any) -> tuple[Any, Any]:
    """The variables and the batches, which for an NNX module stand in the place of the variables."""
    if isinstance(jnp.zeros(()), jax.core.Tracer):
        raise UnsupportedError(
            "quantize and calibrate compute with numbers, which there are none inside jax.jit and other transforms: "
            "call them outside, and their result inside"
        )
    if not is_nnx(model):
        return variables, batches
    if variables is not None and batches is not None:
        raise CalibrationError(
            "batches: an NNX module brings its own state, so that its second argument is the batches: "
            "quantize(model, batches)"
        )
    return None, variables if batches is None else batches


@dataclass(frozen=True, eq=False)
class _Network:
    """A traced function, its simplified float graph, and its variables."""

    traced: Traced
    graph: Graph
    variables: Any
    signature: Signature

    @cached_property
    def fingerprint(self) -> Fingerprint:
        return fingerprint(self.traced.graph)

    def place(self, config: QuantConfig, unseen: Collection[str] = ()) -> Placement:
        placement = place(self.graph, config, unseen)
        if not any(node.op in WEIGHTED for node in placement.int8):
            raise UnsupportedError(
                f"the function has nothing to quantize: {_why_nothing(self.graph, placement.reasons)}"
            )
        return placement

    def unmatched(self, config: QuantConfig) -> tuple[LayerRule, ...]:
        return config.unmatched(node.name for node in self.graph.all_nodes if not node.is_constant)


def _warn_of_unmatched_rules(network: _Network, config: QuantConfig) -> None:
    for rule in network.unmatched(config):
        warnings.warn(
            f"LayerRule({rule.pattern!r}) matched no layer that is left after folding; summary() lists them",
            stacklevel=3,
        )


def _network(model: Any, variables: Any, static_kwargs: Mapping[str, Any] | None, signature: Signature) -> _Network:
    fun, params = as_function(model, variables, static_kwargs or {})
    _check_variables(params)
    traced = trace(fun, params, signature.args)
    return _Network(traced, verify(passes.simplify(traced.graph), "float"), params, signature)


def _calibrate(
    network: _Network,
    placement: Placement,
    config: QuantConfig,
    stream: Batches,
    mesh: jax.sharding.Mesh | None = None,
    until: str | None = None,
    checkpoint: str | PathLike[str] | None = None,
) -> Calibration:
    methods = scales.methods(placement, config)
    automatic = [tensor for tensor, method in methods.items() if method == "auto"]

    def settled(statistics: Statistics) -> bool:
        by = {tensor: "mse" if method == "auto" else method for tensor, method in methods.items()}
        chosen = select(by, statistics.histograms, {}, config.percentile)
        return report(statistics, chosen, config.percentile).settled

    statistics = session.calibrate(
        network.graph,
        scales.observed(place(network.graph, QuantConfig())),  # what any rules may need
        stream,
        NUM_SAMPLES if automatic else 0,
        network.fingerprint,
        backends.calibration(),
        mesh=mesh,
        settled=settled if until == "settled" else None,
        checkpoint=checkpoint,
    )
    tensors = scales.methods(place(network.graph, config, statistics.unseen), config)
    calibration = Calibration(network.fingerprint, stream.signature, tuple(tensors), statistics, {})
    return replace(calibration, errors=_errors(network, placement, automatic, calibration, config.percentile))


def _errors(
    network: _Network, placement: Placement, tensors: Sequence[Tensor], calibration: Calibration, percentile: float
) -> Errors:
    """The errors of the tensors' candidates: as the calibration holds them, measured where it holds the samples."""
    samples = calibration.statistics.samples
    same = {tensor.name for tensor in tensors if tensor in calibration.tensors}  # by a rule, a name may be of another
    stored = {name: errors for name, errors in calibration.errors.items() if name in same}
    if not samples:
        return stored
    histograms = scales.histograms_of(network.graph, tensors, calibration.histograms)
    if stored:
        known = scales.measured_sums(network.graph, placement, stored)
        found = {tensor.name: set(candidates(tensor, histograms, percentile).values()) for tensor in tensors}
        if all(len(by) == 1 or by <= known.get(name, {}).keys() for name, by in found.items()):
            return stored
    kernels = backends.calibration()
    measured = measure_errors(network.graph, placement, tensors, histograms, samples, percentile, kernels)
    return {**stored, **measured}


def _quantized(network: _Network, config: QuantConfig, calibration: Calibration) -> "QuantizedModel":
    placement = network.place(config, calibration.statistics.unseen)
    methods = scales.methods(placement, config)
    histograms = scales.histograms_of(network.graph, methods, calibration.histograms)
    automatic = [tensor for tensor, method in methods.items() if method == "auto"]
    errors = _errors(network, placement, automatic, calibration, config.percentile)
    chosen = select(methods, histograms, scales.measured_sums(network.graph, placement, errors), config.percentile)
    thresholds = {tensor.name: threshold for tensor, (_, threshold) in chosen.items()}
    int8 = verify(passes.quantize(network.graph, placement, thresholds, config), "quantized")

    traced = network.traced
    summary = Summary(
        nodes=rows(int8),
        float_bytes=_size(jax.tree.leaves(network.variables)),
        int8_bytes=_size(int8.params.values()),
        fixed_because=traced.fixed_because,
        methods=dict(Counter(method for method, _ in chosen.values()).most_common()),
        unmatched_rules=tuple(rule.pattern for rule in network.unmatched(config)),
    )
    plan = Plan(int8, traced.in_tree, traced.out_tree, summary)
    return _model(plan, int8.params)


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
    refused = [f"{node.name}: {reasons[node]}" for node in graph.all_nodes if node.op in candidates]
    return "; ".join(refused[:3]) if refused else "it has no convolution or dot product with constant weights"


def _size(arrays: Any) -> int:
    return sum(getattr(array, "nbytes", 0) for array in arrays)


def load(path: str | PathLike[str]) -> "QuantizedModel":
    """The model in a file that `QuantizedModel.save` wrote; needs neither Flax nor the model's code.

    Raises:
      PlanError: the file is damaged, foreign, or from a newer jaxq.
    """
    plan, params = artifact.load(path)
    return _model(plan, params)


def _model(plan: Plan, params: Mapping[str, Any]) -> "QuantizedModel":
    packed = backends.prepare(plan.gathered, params)
    return QuantizedModel(jax.tree.map(jnp.asarray, packed), plan)


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
