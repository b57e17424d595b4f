"""Arguments for a plan, drawn of the shapes and dtypes that it takes."""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq.errors import PlanError
from jaxq.graph.node import Aval, Dim, bind
from jaxq.plan.plan import Plan


def batch_size(text: str) -> int:
    """One size, from the command line."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a batch size is a whole number from 1 on, not {text!r}")
    return int(text)


def batch_sizes(text: str) -> list[int]:
    """Sizes such as 1,8,32, from the command line."""
    return [batch_size(part) for part in text.split(",")]


def seconds(text: str) -> float:
    """A time, from the command line."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < 1e6:
        raise argparse.ArgumentTypeError(f"seconds are a number above 0, not {text!r}")
    return found


def seed(text: str) -> int:
    """A seed, from the command line."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a seed is a whole number from 0 on, not {text!r}")
    return int(text)


def check_batch(plan: Plan, given: Any) -> None:
    """A batch size is given only for a plan that takes any.

    Raises:
      PlanError: the plan's is fixed.
    """
    if given is not None and not follows_batch(plan):
        raise PlanError(f"--batch: the plan's batch size is {batch_of(plan)}; leave --batch out")


def follows_batch(plan: Plan) -> bool:
    """Whether any argument has a batch of any size."""
    return any(node.aval.follows_batch for node in plan.graph.inputs)


def batch_of(plan: Plan) -> str:
    """The batch size in words: "any", or "fixed" and why."""
    because = plan.summary.fixed_because
    return "any" if follows_batch(plan) else f"fixed, {because}" if because else "fixed"


def draw(plan: Plan, batch: int, seed: int) -> Any:
    """The positional arguments: floats of the standard normal distribution, all levels of bytes, and of other integers
    0 and 1, which index any embedding and are a mask."""
    rng = np.random.default_rng(seed)
    leaves = [array(rng, bind(node.aval, batch)) for node in plan.graph.inputs]
    return jax.tree.unflatten(plan.in_tree, leaves)


def array(rng: np.random.Generator, aval: Aval) -> jax.Array:
    """One array of that shape and dtype."""
    if aval.dtype.name in ("int8", "uint8"):
        lo, hi = (-127, 128) if aval.dtype.name == "int8" else (0, 256)
        return jnp.asarray(rng.integers(lo, hi, aval.shape), aval.dtype)
    if jnp.issubdtype(aval.dtype, np.integer) or aval.dtype == bool:
        return jnp.asarray(rng.integers(0, 2, aval.shape), aval.dtype)
    return jnp.asarray(rng.normal(size=aval.shape).astype(np.float32), aval.dtype)


def shown(aval: Aval) -> dict[str, Any]:
    """Shape and dtype as data: {"dtype": "float32", "shape": ["batch", 224, 224, 3]}."""
    shape = ["batch" if dim == Dim(1, 0) else dim if isinstance(dim, int) else str(dim) for dim in aval.shape]
    return {"dtype": str(aval.dtype), "shape": shape}
