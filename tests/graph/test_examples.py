"""Which functions keep the examples of a batch apart."""

import cheap
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax, nn
from networks import images

from jaxq import passes
from jaxq.graph.examples import mixing
from jaxq.graph.trace import trace

W = {"w": images(6, 6), "table": images(9, 6, seed=1), "kernel": images(3, 6, 6, seed=2)}
X = images(4, 5, 6)

APART = {
    "elementwise": lambda p, x: jnp.clip(jnp.exp(x) + x * 2, 0, 6),
    "dot": lambda p, x: x @ p["w"],
    "norm": lambda p, x: nn.softmax((x - x.mean(-1, keepdims=True)) * lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1)),
    "conv": lambda p, x: lax.conv_general_dilated(
        x, p["kernel"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    ),
    "attention": lambda p, x: nn.softmax(jnp.einsum("bqc,bkc->bqk", x, x)) @ x,
    "rows": lambda p, x: (x.reshape(-1, 6) @ p["w"]).reshape(-1, 5, 6),
    "pool": lambda p, x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 1), (1, 2, 1), "SAME"),
    "reductions": lambda p, x: jnp.stack([x.sum((1, 2)), x.max((1, 2)), x.argmax(1).sum(-1).astype(jnp.float32)], 1),
    "embedding": lambda p, x: jnp.asarray(p["table"])[jnp.abs(x[..., 0]).astype(jnp.int32) % 9],
    "layout": lambda p, x: jnp.concatenate([x.transpose(0, 2, 1)[:, ::-1, 1:3], jnp.zeros((len(x), 6, 1))], -1),
    "features": lambda p, x: x[..., jnp.array([3, 1, 1])],
    "frequencies": lambda p, x: jnp.fft.rfft2(x).real,
    "order": lambda p, x: lax.top_k(jnp.sort(jnp.cumsum(x, 1), 1), 2)[0],
    "broadcast": lambda p, x: jnp.broadcast_to(x[:, None], (len(x), 3, 5, 6)) + p["w"][0],
}
MIXING = {
    "maximum": lambda p, x: x - x.max(0),
    "everything": lambda p, x: x / jnp.abs(x).max(),
    "neighbour": lambda p, x: x + jnp.roll(x, 1, 0),
    "place": lambda p, x: x + jnp.arange(len(x), dtype=np.float32)[:, None, None],
    "sum over examples": lambda p, x: jnp.cumsum(x, 0),
    "sort": lambda p, x: jnp.sort(x, 0),
    "frequencies": lambda p, x: jnp.fft.fftn(x).real,
    "products of examples": lambda p, x: x[:, 0] @ x[:, 0].T @ x[:, 0],
    "first": lambda p, x: x + x[0],
    "window": lambda p, x: lax.reduce_window(x, -jnp.inf, lax.max, (3, 1, 1), (1, 1, 1), "SAME"),
    "loop": lambda p, x: lax.fori_loop(0, 3, lambda i, y: y + 1.0, x),
    "batch behind": lambda p, x: x.transpose(1, 0, 2),
    "summary": lambda p, x: x.sum(),
}


def graph(fun):
    traced = trace(fun, W, (X,))
    assert traced.fixed_because is None
    return traced.graph


@pytest.mark.parametrize("name", APART)
def test_apart(name):
    """As traced and as simplified; and what is apart gives each example what it gets alone."""
    for found in (graph(APART[name]), passes.simplify(graph(APART[name]))):
        assert mixing(found) is None

    @cheap.jit
    def both(p, x):
        return APART[name](p, x), jax.vmap(lambda x: APART[name](p, x[None])[0])(x)

    np.testing.assert_allclose(*both(W, X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MIXING)
def test_mixing(name):
    assert mixing(graph(MIXING[name])) is not None


def test_without_a_batch():
    traced = trace(lambda p, x: x.reshape(4, 30), W, (X,))
    assert mixing(traced.graph) == "no argument has a batch axis that may vary"
