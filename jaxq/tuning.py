"""Whole networks side by side: the last word of tuning."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from jaxq.plan import tactics, tune
from jaxq.plan.alone import Call
from jaxq.plan.timing import TimingCache
from jaxq.plan.tune import Budget, Twins
from jaxq.qmodel import QuantizedModel
from jaxq.report import Tuning


def best(
    models: Mapping[str, QuantizedModel],
    twins: Twins,
    batch: int,
    cache: TimingCache,
    budget: Budget,
    function: Callable[..., Call] | None = None,
    will_do: Callable[[QuantizedModel], bool] = lambda _: True,
) -> QuantizedModel:
    """The fastest of the models, each by the tactics of its nodes; int8 by the default tactics, too, where its own are
    others, as what a node gains alone may be lost in the network.

    Args:
      models: by their precisions: "int8", "float", "mixed", ...
      function: arguments to a call of the user's own function, for comparison.
      will_do: whether a model may be chosen.
    """
    models = {name: _by_tactics(model, batch, cache, budget) for name, model in models.items()}
    int8 = models["int8"].plan
    args = tune.arguments(int8.graph, int8.in_tree, batch)
    if int8.tactics is not None and int8.tactics.by_name:
        models["int8, default tactics"] = models["int8"].with_tactics(replace(int8.tactics, by_name={}))
    cache.save()
    calls: dict[str, Call] = {name: partial(model, *args) for name, model in models.items()}
    if function is not None:
        calls["function"] = function(*args)
    found = tune.fastest(calls, budget.networks)
    chosen = next(name for name in tune.choices(found) if will_do(models[name]))
    tuning = Tuning(cache.device, batch, found, chosen, twins.layers(), cache.used, cache.failed)
    return models[chosen].with_summary(replace(models[chosen].summary(), tuning=tuning))


def _by_tactics(model: QuantizedModel, batch: int, cache: TimingCache, budget: Budget) -> QuantizedModel:
    return model.with_tactics(tactics.measure(model.plan.graph, batch, cache, budget.tactics, budget.is_patient))
