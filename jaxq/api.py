"""quantize, fake_quantize, calibrate, load: composition only."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp

from jaxq import accuracy, build
from jaxq.accuracy import Demand, Metric
from jaxq.build import Network
from jaxq.calibration import distributed
from jaxq.calibration.batches import Batches
from jaxq.calibration.result import Calibration
from jaxq.config import QuantConfig
from jaxq.errors import CalibrationError, TraceError, UnsupportedError
from jaxq.models import is_nnx
from jaxq.plan import artifact
from jaxq.plan.tune import Budget
from jaxq.qat import FakeQuantized
from jaxq.qmodel import QuantizedModel, model_of


def quantize(
    model: Any,
    variables: Any = None,
    batches: Any = None,
    *,
    calibration: Calibration | None = None,
    config: QuantConfig | None = None,
    static_kwargs: Mapping[str, Any] | None = None,
    allow_stale: bool = False,
    tune: str | float = "off",
    tune_batch: int | None = None,
    max_drop: float | None = None,
    metric: Metric | None = None,
) -> QuantizedModel:
    """The same function in int8.

        quantize(linen_module, variables, batches)
        quantize(nnx_module, batches)
        quantize(fun, params, batches)              any fun(params, *args)
        quantize(model, variables, calibration=c)   what `calibrate` returned serves for the batches
        quantize(fake, trained)                     what `fake_quantize` returned, and its trained variables

    Args:
      model: a Flax Linen module, a Flax NNX module (in inference mode), or a function of parameters and arrays.
      variables: the pytree of parameters; for an NNX module the batches stand here.
      batches: an iterable of calibration batches, read once. An item that is a tuple is the function's positional
        arguments, anything else its one argument; the leading axis is the batch, of any size.
      calibration: of this model with these variables, instead of batches.
      config: methods and rules.
      static_kwargs: keyword arguments of every call, fixed, such as {"train": False}.
      allow_stale: take the calibration although the model or the variables have changed since.
      tune: "off" leaves in int8 all that can be. "fast", "full" or a number of seconds (30 and 300) measures each layer
        in int8 and in float on this machine, and then whole networks: int8, float, and the mix that keeps in float the
        regions where int8 loses. The fastest is taken; `summary()` says what it took.
      tune_batch: the batch size to measure at; that of the first calibration batch unless given.
      max_drop: keeps the fewest layers in float with which `metric` is at most so much lower than that of the float
        function; what is measured on the way is written to stderr, and stands in `summary()`.
      metric: takes a function of the model's arguments, and returns how good it is, the higher the better:
        lambda predict: float((predict(images).argmax(-1) == labels).mean())

    Raises:
      TraceError: the function does not trace, or is in training mode.
      CalibrationError: batches are missing, empty, malformed or not finite, or the calibration is of another network.
      UnsupportedError: the arguments fit no form above, or the function has nothing to quantize.
      PlanError: trained variables of another structure than `fake.variables`.
    """
    if isinstance(model, FakeQuantized):
        others = (batches, calibration, config, static_kwargs, tune_batch, max_drop, metric)
        if tune != "off" or any(other is not None for other in others):
            raise UnsupportedError(
                "quantize(fake, trained) takes nothing else: fake_quantize took the calibration and the config, and "
                "what was trained for int8 is int8"
            )
        return model.quantized(variables)
    config, seconds, demand = _checked(config), _budget(tune, tune_batch), _demand(max_drop, metric)
    variables, batches = _arguments(model, variables, batches)
    network, calibration = _calibrated(
        model, variables, batches, calibration, config, static_kwargs, allow_stale, sampled=demand is not None
    )
    _warn_of_unmatched_rules(network, config)
    network, calibration = build.refined(network, config, calibration)
    if demand is not None:
        return _accurate(network, config, calibration, demand, seconds, tune_batch)
    if seconds:
        return build.tuned(network, config, calibration, Budget(seconds), tune_batch)
    return build.quantized(network, config, calibration)


def fake_quantize(
    model: Any,
    variables: Any = None,
    batches: Any = None,
    *,
    calibration: Calibration | None = None,
    config: QuantConfig | None = None,
    static_kwargs: Mapping[str, Any] | None = None,
    allow_stale: bool = False,
) -> FakeQuantized:
    """The same function with the numbers of the int8 plan, to be trained further: quantization-aware training.

        fake = jaxq.fake_quantize(model, variables, calibration)
        loss = lambda variables: loss_of(fake(variables, images), labels)       from `fake.variables` on
        qmodel = jaxq.quantize(fake, trained)

    `fake(variables, *args)` is an ordinary JAX function, for any transform, optimizer and training loop: values and
    weights are rounded as in int8, and gradients pass the rounding straight through. Batch norms are folded into the
    weights that are trained. Of a recipe the scales and biases are where training starts; it rounds weights to the
    nearest level, whatever "polish" found. See `jaxq.qat` for the method and its sources.

    Args:
      model, variables, batches, calibration, config, static_kwargs, allow_stale: as `quantize` takes them; what
        `calibrate` returned may stand in the place of the batches, too.

    Raises:
      As `quantize` does.
    """
    config = _checked(config)
    variables, batches = _arguments(model, variables, batches)
    if isinstance(batches, Calibration) and calibration is None:
        batches, calibration = None, batches
    network, calibration = _calibrated(model, variables, batches, calibration, config, static_kwargs, allow_stale)
    _warn_of_unmatched_rules(network, config)
    network, calibration = build.refined(network, config, calibration)
    placement = network.place(config, calibration.statistics.unseen)
    choices, _ = build.choose(network, config, calibration, placement)
    return FakeQuantized(network, placement, choices, config)


def _calibrated(
    model: Any,
    variables: Any,
    batches: Any,
    calibration: Calibration | None,
    config: QuantConfig,
    static_kwargs: Mapping[str, Any] | None,
    allow_stale: bool,
    sampled: bool = False,
) -> tuple[Network, Calibration]:
    """The function as traced, and its calibration: the given one, or made of the batches."""
    if calibration is None:
        stream = Batches(batches)
        network = build.network(model, variables, static_kwargs, stream.signature)
        return network, build.calibrate(network, network.place(config), config, stream, sampled=sampled)
    if batches is not None:
        raise CalibrationError("batches: takes no batches beside a calibration; hand in one of the two")
    if not isinstance(calibration, Calibration):
        raise CalibrationError(f"calibration: takes what jaxq.calibrate returned, not a {type(calibration).__name__}")
    try:
        network = build.network(model, variables, static_kwargs, calibration.signature)
    except TraceError as error:
        raise CalibrationError(f"calibration: its batches do not fit this network: {error}") from error
    calibration.check(network.fingerprint, allow_stale=allow_stale)
    return network, calibration


def _accurate(
    network: Network,
    config: QuantConfig,
    calibration: Calibration,
    demand: Demand,
    seconds: float,
    batch: int | None,
) -> QuantizedModel:
    """The plan that meets the demand; the fastest such one, where there are seconds to measure."""
    twins = None
    if seconds:
        placement = network.place(config, calibration.statistics.unseen)
        twins = build.timed(network, config, calibration, placement, Budget(seconds), batch).twins
    held = accuracy.hold(network, config, calibration, demand, twins)
    if seconds:
        will_do = partial(held.is_accurate, demand)
        model = build.tuned(network, config, calibration, Budget(seconds), batch, held.in_float, will_do)
    else:
        model = build.quantized(network, config, calibration, held.in_float)
    return model.with_summary(replace(model.summary(), accuracy=held.accuracy))


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
        network = build.network(model, variables, static_kwargs, stream.signature)
        placement = network.place(config)
    _warn_of_unmatched_rules(network, config)
    return build.calibrate(network, placement, config, stream, mesh, until, checkpoint)


def _checked(config: QuantConfig | None) -> QuantConfig:
    config = QuantConfig() if config is None else config
    if not isinstance(config, QuantConfig):
        raise UnsupportedError(f"config: takes a QuantConfig, such as QuantConfig(method='entropy'), not {config!r}")
    return config


# Seconds that `tune` measures for.
BUDGETS = {"off": 0.0, "fast": 30.0, "full": 300.0}


def _budget(tune: str | float, batch: int | None) -> float:
    if batch is not None and not (isinstance(batch, int) and batch > 0):
        raise UnsupportedError(f"tune_batch: takes a positive integer, not {batch!r}")
    if isinstance(tune, str) and tune in BUDGETS:
        return BUDGETS[tune]
    if isinstance(tune, int | float) and not isinstance(tune, bool) and 0 < tune < float("inf"):
        return float(tune)
    raise UnsupportedError(f"tune: takes one of {tuple(BUDGETS)} or a number of seconds, not {tune!r}")


def _demand(max_drop: float | None, metric: Metric | None) -> Demand | None:
    if max_drop is None and metric is None:
        return None
    if isinstance(max_drop, bool) or not isinstance(max_drop, int | float) or not 0 <= max_drop < float("inf"):
        raise UnsupportedError(f"max_drop: takes a number from 0 on, not {max_drop!r}")
    if not callable(metric):
        raise UnsupportedError(f"metric: takes a function of the model that returns a number, not {metric!r}")
    return Demand(float(max_drop), metric)


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


def _warn_of_unmatched_rules(network: Network, config: QuantConfig) -> None:
    for rule in network.unmatched(config):
        warnings.warn(
            f"LayerRule({rule.pattern!r}) matched no layer that is left after folding; summary() lists them",
            stacklevel=3,
        )


def load(path: str | PathLike[str], *, trusted: bool = False) -> QuantizedModel:
    """The model in a file that `QuantizedModel.save` wrote; needs neither Flax nor the model's code.

    Args:
      path: of the file. It is data, and safe to load whoever wrote it, unless the model has a JAX primitive for which
        jaxq has no data: such a one is StableHLO in the file, which XLA compiles and runs.
      trusted: whether to load StableHLO, too.

    Raises:
      PlanError: the file is damaged, foreign, or from a newer jaxq, or holds StableHLO and is not trusted.
    """
    return model_of(*artifact.load(path, trusted))
