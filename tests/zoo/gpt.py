"""A small GPT (pre-norm, causal) that makes one token at a time from a KV cache: with Linen's decode=True, whose cache
is a mutable collection, and as a plain function with a plain cache."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.scanned import normalised


class Block(nn.Module):
    heads: int
    decode: bool

    @nn.compact
    def __call__(self, x, mask):
        width = x.shape[-1]
        attention = nn.MultiHeadDotProductAttention(self.heads, decode=self.decode, name="attention")
        x = x + attention(nn.LayerNorm(name="norm1")(x), mask=mask)
        y = nn.gelu(nn.Dense(4 * width, name="up")(nn.LayerNorm(name="norm2")(x)))
        return x + nn.Dense(width, name="down")(y)


class GPT(nn.Module):
    """Tokens (N, T) to logits (N, T, vocabulary). The defaults are the size of nanoGPT on one GPU, its tokens bytes.

    With decode=True, T is 1, and the collection "cache" holds keys, values and the position.
    """

    vocabulary: int = 256
    length: int = 256
    width: int = 384
    layers: int = 6
    heads: int = 6
    decode: bool = False

    @nn.compact
    def __call__(self, tokens):
        positions, mask = jnp.arange(tokens.shape[1]), nn.make_causal_mask(tokens)
        if self.decode:
            started = self.has_variable("cache", "position")
            position = self.variable("cache", "position", lambda: jnp.zeros((), jnp.int32))
            if started:
                positions, mask = position.value + positions, None
                position.value = position.value + 1
        embed = nn.Embed(self.vocabulary, self.width, name="words")
        x = embed(tokens) + nn.Embed(self.length, self.width, name="positions")(positions)
        for i in range(self.layers):
            x = Block(self.heads, self.decode, name=f"block{i}")(x, mask)
        return embed.attend(nn.LayerNorm(name="norm")(x))


def step(model):
    """fun(params, cache, token (N, 1)) -> (logits (N, 1, vocabulary), cache) of a `GPT` with decode=True."""

    def fun(params, cache, token):
        logits, changed = model.apply({"params": params, "cache": cache}, token, mutable=["cache"])
        return logits, changed["cache"]

    return fun


def empty_cache(model, batch):
    """The collection "cache" of a `GPT` with decode=True before its first token: nothing but zeros."""
    tokens = jnp.zeros((batch, model.length), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["cache"]
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def plain_cache(model, batch):
    """The cache of `plain_step` before the first token."""
    shape = (batch, model.layers, model.length, model.heads, model.width // model.heads)
    return {
        "position": np.zeros(batch, np.int32),
        "keys": np.zeros(shape, np.float32),
        "values": np.zeros(shape, np.float32),
    }


def plain_step(heads):
    """`step` as a plain function of the params of a `GPT`, each example at a position of its own."""

    def dense(p, x):
        return jnp.dot(x, p["kernel"].reshape(x.shape[-1], -1)) + p["bias"].reshape(-1)

    def write(layer):
        return jax.vmap(lambda cache, row, position: cache.at[layer, position].set(row))

    def fun(params, cache, token):
        batch, length = token.shape[0], cache["keys"].shape[2]
        position = cache["position"]
        x = params["words"]["embedding"][token[:, 0]] + params["positions"]["embedding"][position]
        seen = jnp.arange(length) <= position[:, None]
        keys, values = cache["keys"], cache["values"]
        for i in range(keys.shape[1]):
            p = params[f"block{i}"]
            attention, y = p["attention"], normalised(p["norm1"], x)
            query, key, value = (
                dense(attention[name], y).reshape(batch, heads, -1) for name in ("query", "key", "value")
            )
            keys, values = write(i)(keys, key, position), write(i)(values, value, position)
            scores = jnp.einsum("nhd,nthd->nht", query, keys[:, i]) / np.sqrt(query.shape[-1]).astype(x.dtype)
            weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf))
            context = jnp.einsum("nht,nthd->nhd", weights, values[:, i]).reshape(batch, -1)
            out = attention["out"]
            x = x + context @ out["kernel"].reshape(context.shape[-1], -1) + out["bias"]
            x = x + dense(p["down"], jax.nn.gelu(dense(p["up"], normalised(p["norm2"], x))))
        logits = normalised(params["norm"], x) @ params["words"]["embedding"].T
        return logits[:, None], {"position": position + 1, "keys": keys, "values": values}

    return fun
