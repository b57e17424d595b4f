"""A function's way to its plan, step by step: traced and simplified, calibrated, quantized, tuned."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq import backends, passes, tuning
from jaxq.calibration import session
from jaxq.calibration.batches import Batches, Signature
from jaxq.calibration.histogram import Histogram, from_samples
from jaxq.calibration.observe import Statistics
from jaxq.calibration.report import report
from jaxq.calibration.result import Calibration
from jaxq.calibration.select import Errors, Tensor, candidates, select
from jaxq.calibration.step import leading_size
from jaxq.calibration.step import rows as sample_rows
from jaxq.config import LayerRule, QuantConfig
from jaxq.errors import CalibrationError, UnsupportedError
from jaxq.graph.fingerprint import Fingerprint, fingerprint
from jaxq.graph.node import WEIGHTED, Graph
from jaxq.graph.trace import Traced, trace
from jaxq.graph.verify import verify
from jaxq.models import as_function
from jaxq.passes import scales
from jaxq.passes.choices import Choices
from jaxq.passes.floors import floors
from jaxq.passes.measure import measure_errors
from jaxq.passes.place import Placement, ScaleGroup, place
from jaxq.plan import tune
from jaxq.plan.plan import Plan
from jaxq.plan.timing import TimingCache
from jaxq.plan.tune import Budget
from jaxq.qmodel import Origin, QuantizedModel, model_of
from jaxq.refine import recipe
from jaxq.refine.gain import Gain
from jaxq.refine.state import Samples, State
from jaxq.report import Summary, rows

# Examples kept to measure the error that each candidate threshold makes. To measure on one takes as long as up to five
# go forward.
NUM_SAMPLES = 6

# Examples kept to refine with, and to judge by.
REFINING_SAMPLES = 64

# Below so many examples only what the config demands is refined by them.
FEWEST_SAMPLES = 32


@dataclass(frozen=True, eq=False)
class Network:
    """A function of its variables, as traced, and its simplified float graph."""

    function: Callable[..., Any]
    traced: Traced
    graph: Graph
    variables: Any
    signature: Signature
    refinement: "Refinement | None" = None

    @cached_property
    def fingerprint(self) -> Fingerprint:
        return fingerprint(self.traced.graph)

    def place(self, config: QuantConfig, unseen: Collection[str] = ()) -> Placement:
        """The placement without regard to speed."""
        placement = place(self.graph, config, unseen)
        if not any(node.op in WEIGHTED for node in placement.quantized):
            raise UnsupportedError(
                f"the function has nothing to quantize: {_why_nothing(self.graph, placement.reasons)}"
            )
        return placement

    def unmatched(self, config: QuantConfig) -> tuple[LayerRule, ...]:
        return config.unmatched(node.name for node in self.graph.all_nodes if not node.is_constant)


@dataclass(frozen=True, eq=False)
class Refinement:
    """What refinement chose for all that can be in int8, and what each of its steps brought."""

    choices: Choices
    gains: tuple[Gain, ...]

    def covers(self, group: ScaleGroup) -> bool:
        """Whether it holds what the group stands for, which may differ where more layers are in float."""
        qtype = self.choices.qtypes.get(group.name)
        return qtype is not None and qtype.dtype == group.dtype and bool(qtype.zero_point) <= group.has_zero_point

    def choices_for(self, placement: Placement, others: Choices) -> Choices:
        """With those of the other groups; of the weights those whose inputs stand for what they did."""
        kept = {group.name: self.choices.qtypes[group.name] for group in placement.scale_groups if self.covers(group)}
        layers = {node for node in placement.quantized if node.op in WEIGHTED}
        of_floats = placement.by_row | placement.weight_only
        read = {node.name: placement.groups[node.operand("x")] for node in layers - of_floats}
        same = {name for name, group in read.items() if group.exact or group.name in kept}
        same |= {node.name for node in layers & of_floats}
        weights = {name: weight for name, weight in self.choices.weights.items() if name in same}
        biases = {name: bias for name, bias in self.choices.biases.items() if name in same}
        rows = self.choices.rows
        return replace(others, qtypes={**others.qtypes, **kept}, rows=rows, weights=weights, biases=biases)


def network(model: Any, variables: Any, static_kwargs: Mapping[str, Any] | None, signature: Signature) -> Network:
    """The user's function of batches like that one."""
    fun, params = as_function(model, variables, static_kwargs or {})
    _check_variables(params)
    traced = trace(fun, params, signature.args)
    return Network(fun, traced, verify(passes.simplify(traced.graph), "float"), params, signature)


def calibrate(
    network: Network,
    placement: Placement,
    config: QuantConfig,
    stream: Batches,
    mesh: jax.sharding.Mesh | None = None,
    until: str | None = None,
    checkpoint: str | PathLike[str] | None = None,
    sampled: bool = False,
) -> Calibration:
    """One pass over the stream, and the errors that "auto" needs; some examples are kept for it, or if `sampled`."""
    methods = scales.methods(placement, config)
    automatic = [tensor for tensor, method in methods.items() if method == "auto"]

    def settled(statistics: Statistics) -> bool:
        by = {tensor: "mse" if method == "auto" else method for tensor, method in methods.items()}
        chosen = select(by, statistics.histograms, {}, config.percentile)
        return report(statistics, chosen, config.percentile).settled

    statistics = session.calibrate(
        network.graph,
        scales.observed(network.graph, place(network.graph, QuantConfig())),  # what any rules may need
        stream,
        REFINING_SAMPLES if config.steps else NUM_SAMPLES if automatic or sampled else 0,
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
    network: Network, placement: Placement, tensors: Sequence[Tensor], calibration: Calibration, percentile: float
) -> Errors:
    """The errors of the tensors' candidates: as the calibration holds them, measured where it holds the samples."""
    samples = calibration.statistics.samples and sample_rows(
        network.graph, calibration.statistics.samples, slice(NUM_SAMPLES)
    )
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


def refined(network: Network, config: QuantConfig, calibration: Calibration) -> tuple[Network, Calibration]:
    """The network and its calibration after the steps that the config names.

    Raises:
      CalibrationError: there are steps, and the calibration keeps no examples to refine by.
      UnsupportedError: the function returns no floats to judge them by.
    """
    leaves, unseen = calibration.statistics.samples, calibration.statistics.unseen
    enough = bool(leaves) and leading_size(network.graph, leaves) >= FEWEST_SAMPLES
    if not config.steps or not (enough or config.demands_steps):
        return network, calibration
    if not any(node.aval.is_float for node in network.graph.outputs):
        if not config.demands_steps:
            return network, calibration
        raise UnsupportedError("recipe: the function returns no floats, whose error could be measured")
    if not leaves:
        raise CalibrationError(
            f"recipe: this calibration keeps no examples for {', '.join(config.steps)}, as one from a file or made "
            "without a recipe does not; hand in batches, or calibrate with this config"
        )
    placement = network.place(config, unseen)
    choices, _ = choose(network, config, calibration, placement)
    state = State(network.graph, placement, choices, config, lambda graph: place(graph, config, unseen))
    samples = Samples.split(network.graph, leaves)
    state, gains = recipe.run(state, samples, config.steps)
    statistics = calibration.statistics.with_histograms(_histograms(state, samples, calibration.histograms))
    network = replace(network, graph=verify(state.graph, "float"), refinement=Refinement(state.choices, gains))
    return network, replace(calibration, statistics=statistics)


def _histograms(state: State, samples: Samples, known: Collection[str]) -> dict[str, Histogram]:
    """Those of values that refinement made, on the examples."""
    sources = {source.name for group in state.placement.scale_groups for source in group.sources}
    made = sources - set(known)
    values = samples.values(state.graph) if made else {}
    floor_of = {node.name: floor for node, floor in floors(state.graph).items()}
    floored = {name: np.maximum(values[name], floor_of.get(name, -np.inf)) for name in sorted(made & values.keys())}
    return {name: from_samples(jnp.asarray(value)) for name, value in floored.items()}


def quantized(
    network: Network, config: QuantConfig, calibration: Calibration, in_float: Mapping[str, str] | None = None
) -> QuantizedModel:
    """The plan of all that can be in int8, but the nodes `in_float`: {name: why}."""
    unseen = calibration.statistics.unseen
    placement = place(network.graph, config, unseen, in_float) if in_float else network.place(config, unseen)
    choices, chosen = choose(network, config, calibration, placement)
    return planned(network, Origin(network.graph, placement, choices, config), chosen)


def planned(network: Network, origin: Origin, methods: Sequence[str]) -> QuantizedModel:
    """The plan of the network's function that the origin makes.

    Args:
      methods: that of each scale group, for the summary.
    """
    int8 = verify(passes.quantize(origin.graph, origin.placement, origin.choices, origin.config), "quantized")
    traced = network.traced
    summary = Summary(
        nodes=rows(int8),
        float_bytes=_size(jax.tree.leaves(network.variables)),
        int8_bytes=_size(int8.params.values()),
        fixed_because=traced.fixed_because,
        methods=dict(Counter(methods).most_common()),
        unmatched_rules=tuple(rule.pattern for rule in network.unmatched(origin.config)),
        recipe=network.refinement.gains if network.refinement else (),
    )
    plan = Plan(int8, traced.in_tree, traced.out_tree, summary)
    return model_of(plan, int8.params, origin)


def choose(
    network: Network, config: QuantConfig, calibration: Calibration, placement: Placement
) -> tuple[Choices, list[str]]:
    """What the integers of every scale group stand for, and the methods that made their thresholds."""
    refinement = network.refinement
    known = {group.name for group in placement.scale_groups if refinement is not None and refinement.covers(group)}
    methods = {
        tensor: method for tensor, method in scales.methods(placement, config).items() if tensor.name not in known
    }
    histograms = scales.histograms_of(network.graph, methods, calibration.histograms)
    automatic = [tensor for tensor, method in methods.items() if method == "auto"]
    errors = _errors(network, placement, automatic, calibration, config.percentile) if automatic else {}
    sums = scales.measured_sums(network.graph, placement, errors)
    chosen = select(methods, histograms, sums, config.percentile)
    thresholds = {tensor.name: threshold for tensor, (_, threshold) in chosen.items()}
    choices = scales.choices_of(placement, thresholds)
    names = [method for method, _ in chosen.values()] + ["recipe"] * len(known)
    return choices if refinement is None else refinement.choices_for(placement, choices), names


@dataclass(frozen=True)
class Timings:
    """What each layer takes on this machine at the batch size, and where that is kept."""

    twins: tune.Twins
    batch: int
    cache: TimingCache


def timed(
    network: Network,
    config: QuantConfig,
    calibration: Calibration,
    placement: Placement,
    budget: Budget,
    batch: int | None,
) -> Timings:
    """The times of the layers that are placed in int8, there and in float; at that batch size, or at the first
    calibration batch's."""
    graph = network.graph
    choices, _ = choose(network, config, calibration, placement)
    apart = passes.quantize(graph, placement, choices, config, merging=False)
    leaves = zip(graph.inputs, calibration.signature.leaves, strict=True)
    batch = batch or next((leaf.shape[0] for node, leaf in leaves if node.aval.leads_batch), 1)
    cache = TimingCache()
    layers = tune.layers_of(graph, placement, apart, batch)
    twins = tune.time_layers(layers, batch, cache, budget.layers, budget.is_patient)
    return Timings(twins, batch, cache)


def tuned(
    network: Network,
    config: QuantConfig,
    calibration: Calibration,
    budget: Budget,
    batch: int | None,
    held: Mapping[str, str] | None = None,
    is_accurate: Callable[[QuantizedModel], bool] = lambda _: True,
) -> QuantizedModel:
    """The fastest of int8, float and mixes of both, by what each takes on this machine.

    Args:
      held: {node that stays in float in all of them: why}.
      is_accurate: whether a model will do.
    """
    graph, unseen, held = network.graph, calibration.statistics.unseen, held or {}
    placement = place(graph, config, unseen, held) if held else network.place(config, unseen)
    timings = timed(network, config, calibration, placement, budget, batch)
    twins = timings.twins

    def model(in_float: Collection[str]) -> QuantizedModel:
        return quantized(network, config, calibration, {**held, **{name: twins.reason(name) for name in in_float}})

    mixes = tune.precisions(tune.flow_of(graph, placement), twins, budget)
    models = {name: model(in_float) for name, in_float in mixes.items()}

    def function(*args: Any) -> Any:
        return partial(jax.jit(network.function), jax.device_put(network.variables), *args)

    return tuning.best(models, twins, timings.batch, timings.cache, budget, function, is_accurate)


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
