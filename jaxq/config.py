"""What a user chooses: the calibration method and per-layer rules. Frozen data, no behaviour beyond matching."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from jaxq.errors import UnsupportedError
from jaxq.numerics import GROUP_STEP

METHODS = ("auto", "entropy", "mse", "percentile", "amax")
WEIGHT_METHODS = ("amax", "mse")
WEIGHT_SCALES = ("channel", "tensor")
WEIGHT_BITS = (8, 4)
ACTIVATION_SCALES = ("auto", "tensor", "channel", "token")

# The steps of refinement, in order (`jaxq/refine`), and the recipes that name several.
STEPS = ("attention", "biases", "channels", "outliers", "weights", "gptq", "polish")
RECIPES = {"auto": tuple(step for step in STEPS if step != "polish"), "polish": STEPS}


def check_method(method: str, where: str) -> None:
    """Raises UnsupportedError, which says where it was given, unless `method` is one of `METHODS`."""
    _check_one_of(METHODS, method, "method", where)


def _check_one_of(known: tuple[Any, ...], value: Any, name: str, where: str) -> None:
    if type(value) is not type(known[0]) or value not in known:
        raise UnsupportedError(f"{where}: {name}={value!r} is not known; take one of {known}")


@dataclass(frozen=True)
class Weights:
    """How the weights of one layer are quantized: see `QuantConfig`'s arguments of these names."""

    weight_method: str
    weight_scales: str
    weight_bits: int
    weight_only: bool
    group_size: int


_WEIGHTS = {field.name for field in fields(Weights)}


def _check_weights(choices: Mapping[str, Any], where: str) -> None:
    known = {
        "weight_method": WEIGHT_METHODS,
        "weight_scales": WEIGHT_SCALES,
        "weight_bits": WEIGHT_BITS,
        "weight_only": (True, False),
    }
    for name, value in choices.items():
        if name in known:
            _check_one_of(known[name], value, name, where)
        elif type(value) is not int or value <= 0 or value % GROUP_STEP:
            raise UnsupportedError(f"{where}: {name}={value!r} is no positive multiple of {GROUP_STEP}")


def _check_recipe(recipe: Any) -> None:
    steps = recipe if isinstance(recipe, tuple) else () if recipe is None else (recipe,)
    for step in steps:
        _check_one_of((*RECIPES, *STEPS) if steps is not recipe else STEPS, step, "recipe", "QuantConfig")


@dataclass(frozen=True)
class LayerRule:
    """What holds for the layers whose path `pattern` finds (`re.search` on the full path; the first match wins).

    `quantize=False` keeps the layer in float. `method` chooses the threshold of the value that the layer produces,
    `weight_method`, `weight_scales`, `weight_bits`, `weight_only` and `group_size` how its weights are quantized,
    `activation_scales` how what it reads is, as in `QuantConfig`. None leaves it to the config.
    """

    pattern: str
    quantize: bool = True
    method: str | None = None
    weight_method: str | None = None
    weight_scales: str | None = None
    weight_bits: int | None = None
    weight_only: bool | None = None
    group_size: int | None = None
    activation_scales: str | None = None

    def __post_init__(self) -> None:
        where = f"LayerRule({self.pattern!r})"
        if not isinstance(self.quantize, bool):
            raise UnsupportedError(f"{where}: quantize={self.quantize!r} is neither True nor False")
        if self.method is not None:
            check_method(self.method, where)
        _check_weights({name: value for name in _WEIGHTS if (value := getattr(self, name)) is not None}, where)
        if self.activation_scales is not None:
            _check_one_of(ACTIVATION_SCALES, self.activation_scales, "activation_scales", where)
        try:
            re.compile(self.pattern)
        except (re.error, TypeError) as error:
            raise UnsupportedError(f"LayerRule: {self.pattern!r} is not a regular expression: {error}") from error

    def matches(self, path: str) -> bool:
        return re.search(self.pattern, path) is not None


@dataclass(frozen=True)
class QuantConfig:
    """How to quantize.

    Args:
      method: the calibration method of every activation: "auto" takes per value the threshold that disturbs the
        consuming layers least, measured on calibration samples (in the bodies of loops and branches, where it cannot
        measure, that of "mse"); "entropy", "mse", "percentile" and "amax" are those of `jaxq.calibration.thresholds`.
      rules: exceptions by layer path; the first that matches a path holds.
      percentile: the percentage of values that lie within the threshold of method "percentile".
      weight_method: "amax" clips no weight; "mse" clips those of each scale where that makes their squared error least.
      weight_scales: "channel" gives every output channel a scale of its own, "tensor" one to all.
      weight_bits: 8, or 4: weights of 15 levels, [-7, 7] times their scale, computed by the same int8 kernels; of a
        weight-only dot 16 levels, [-8, 7].
      weight_only: only weights are quantized, those of dots, and activations stay in float: for a network whose time
        goes into reading its weights, as that of a language model that decodes. A convolution, or a product of two
        activations, has no such form and stays in float.
      group_size: so many of a weight-only dot's inputs share a scale for each output channel, whatever `weight_scales`
        says; a multiple of 16.
      activation_scales: "tensor" gives every activation one scale, from the calibration. "auto" gives those a zero
        point that are skewed, such as gelu's and silu's results, and "channel" what a layer reads a scale for each
        channel, where the layer before can give it one (`jaxq/refine/channels.py`). "token" gives each
        row that a dot product with weights reads a scale of its own, from the row itself, in every call: for values
        whose rows, or channels, differ widely, as a transformer's do. All else, products of two activations among it,
        is as with "auto".
      recipe: "auto" takes the steps that make the results more accurate one after the other, and keeps each that lowers
        their error on calibration examples that were held back; or a tuple of `STEPS`, or one. None takes none.
    """

    method: str = "auto"
    rules: tuple[LayerRule, ...] = ()
    percentile: float = 99.99
    weight_method: str = "amax"
    weight_scales: str = "channel"
    weight_bits: int = 8
    weight_only: bool = False
    group_size: int = 128
    activation_scales: str = "auto"
    recipe: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_method(self.method, "QuantConfig")
        _check_recipe(self.recipe)
        _check_weights({name: getattr(self, name) for name in _WEIGHTS}, "QuantConfig")
        _check_one_of(ACTIVATION_SCALES, self.activation_scales, "activation_scales", "QuantConfig")
        if not isinstance(self.rules, Iterable) or not all(isinstance(rule, LayerRule) for rule in self.rules):
            raise UnsupportedError(f"QuantConfig: rules takes a tuple of LayerRule objects, not {self.rules!r}")
        object.__setattr__(self, "rules", tuple(self.rules))
        if not isinstance(self.percentile, int | float) or not 0 < self.percentile <= 100:
            raise UnsupportedError(f"QuantConfig: percentile={self.percentile!r} is no number within (0, 100]")

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps of the recipe, in order; scales by channel among them where the config or a rule asks for these, or
        for rows with scales of their own."""
        recipe = self.recipe or ()
        named = RECIPES.get(recipe, (recipe,)) if isinstance(recipe, str) else recipe
        by_channel = {"channel", "token"} & self._activation_scales
        return tuple(step for step in STEPS if step in named or (step == "channels" and by_channel))

    @property
    def wants_channels(self) -> bool:
        """Whether it asks for scales by channel of any layer."""
        return "channel" in self._activation_scales

    @property
    def demands_steps(self) -> bool:
        """Whether a step is asked for. (Rows' own scales are better by channel, too, but do without.)"""
        return self.recipe is not None or self.wants_channels

    @property
    def _activation_scales(self) -> set[str | None]:
        return {self.activation_scales, *(rule.activation_scales for rule in self.rules)}

    def rule(self, path: str) -> LayerRule | None:
        """The first rule that matches the layer path, if any."""
        return next((rule for rule in self.rules if rule.matches(path)), None)

    def quantizes(self, path: str) -> bool:
        rule = self.rule(path)
        return rule is None or rule.quantize

    def named_method(self, path: str) -> str | None:
        """The method that a rule gives the value which the layer makes, if any."""
        rule = self.rule(path)
        return None if rule is None else rule.method

    def for_weights(self, path: str) -> Weights:
        """How the layer's weights are quantized."""
        rule = self.rule(path) or LayerRule("")
        ruled = {name: getattr(rule, name) for name in _WEIGHTS}
        return Weights(**{name: getattr(self, name) if value is None else value for name, value in ruled.items()})

    def for_activations(self, path: str) -> str:
        """activation_scales of what the layer reads."""
        rule = self.rule(path) or LayerRule("")
        return rule.activation_scales or self.activation_scales

    def unmatched(self, paths: Iterable[str]) -> tuple[LayerRule, ...]:
        """The rules that match none of the paths."""
        paths = tuple(paths)
        return tuple(rule for rule in self.rules if not any(map(rule.matches, paths)))
