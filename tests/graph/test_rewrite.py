"""What a rule may rely on: how often a node is read, also where a rule gave back a node that was there before."""

import jax.numpy as jnp
import numpy as np

from jaxq.graph.rewrite import rewrite
from jaxq.graph.trace import trace

X = np.ones((4, 6), np.float32)


def uses(fun):
    """How often a rule sees the exponential read, after another rule took the negations of negations away."""
    seen = []

    def twice_negative(match):
        (x,) = match.node.inputs
        return x.inputs[0] if x.op == "neg" else None

    def look(match):
        seen.append(match.uses[match.node.inputs[0]])

    rewrite(trace(fun, {}, (X,)).graph, (("neg", twice_negative), ("tanh", look)))
    return seen


def test_a_node_that_a_rule_gives_back_is_read_by_what_read_the_replaced_one():
    def sole(params, x):
        return jnp.tanh(jnp.negative(-jnp.exp(x)))

    def beside(params, x):
        y = jnp.exp(x)
        return jnp.tanh(jnp.negative(-y)), jnp.sin(y)

    def half_way(params, x):
        y = -jnp.exp(x)
        return jnp.tanh(-y), jnp.sin(y)

    assert [uses(fun) for fun in (sole, beside, half_way)] == [[1], [2], [2]]
