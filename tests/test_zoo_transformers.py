"""What becomes of the zoo's transformers, in numbers that follow from their architecture.

Each test says in full which ops compute in int8, what their epilogues hold, and which float ops are left. (Ops that
only move values are not counted.) With NNX, or with the layers as a scan, the numbers are the same. They are those of
the networks at any depth and width: fast with two layers, slow with as many as were published.
"""

from collections import Counter

import jax
import numpy as np
import pytest
from networks import nnx_module, variables
from zoo import bert, gpt, mixer, scanned, vit
from zoo.counts import Counts, count

from jaxq.graph.node import LAYOUT

NARROW = {"width": 48, "heads": 6}
MOVES = LAYOUT - {"reduce_max", "gather"} | {"dynamic_update_slice", "scatter"}


def shape(*dims, dtype=np.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


def depths(published):
    return pytest.mark.parametrize("layers", [2, pytest.param(published, marks=pytest.mark.slow)])


def check(
    found: Counts, *, int8: dict, bias: int, gelu: int, residual: int, requantized: int, merges: dict, left: Counter
):
    """`left`: the float ops whose result is float; those on indices and masks are not counted."""
    computing = Counter({op: number for op, number in found.int8.items() if op not in MOVES})
    assert computing == Counter(int8)
    assert found.fixed_because is None
    words = Counter(bias=bias, gelu=gelu, residual=residual, requantize=requantized)
    assert found.fused == +words
    assert found.merges == Counter(merges)
    floats = (row for row in found.rows if row.precision == "float" and row.dtypes[1] == "float32")
    assert Counter(row.op for row in floats if row.op not in MOVES) == left


def check_attention(found: Counts, layers: int, queries: str):
    """Q K^T is of two int8 values and ends in float, for the softmax; P V is of the uint8 softmax and int8 values, and
    ends in int8. `queries`: a part of the names of the dots that make Q, K and V, merged."""
    matmuls = [row for row in found.rows if row.op == "matmul"]
    kinds = Counter((row.dtypes[0][:2], row.dtypes[1]) for row in matmuls)
    assert kinds == {(("int8", "int8"), "float32"): layers, (("uint8", "int8"), "int8"): layers}
    merged = [row for row in found.rows if "merged:3" in row.fused]
    assert len(merged) == layers
    assert all(queries in row.name and row.dtypes == (("int8",), "int8") for row in merged)


def check_vit(found, layers):
    check(
        found,
        int8={"conv": 1, "dot": 4 * layers + 1, "matmul": 2 * layers},  # qkv, out, up, down; the head
        bias=4 * layers + 2,
        gelu=layers,
        residual=2 * layers,
        requantized=3 * layers,  # qkv, P V, up; the other dots go to the stream, which is float
        merges={3: layers},
        left=Counter(layer_norm=2 * layers + 1, softmax=layers, add=1),  # positions
    )
    check_attention(found, layers, "{")
    assert all(row.fused == ("bias", "gelu", "requantize") for row in found.rows if "gelu" in row.fused)


@depths(12)
def test_vit(layers):
    x, model = shape(2, 224, 224, 3), vit.ViT(layers=layers, **NARROW)
    check_vit(count(model, variables(model, x), x), layers)


@depths(12)
def test_vit_in_nnx(layers):
    model = nnx_module(lambda rngs: vit.NnxViT(layers=layers, **NARROW, rngs=rngs))
    check_vit(count(model, None, shape(2, 224, 224, 3)), layers)


def check_mixer(found, layers):
    check(
        found,
        int8={"conv": 1, "dot": 4 * layers + 1},
        bias=4 * layers + 2,
        gelu=2 * layers,
        residual=layers,  # of the channels; the sum over tokens stands behind a transpose, and is the add that is left
        requantized=2 * layers,
        merges={},
        left=Counter(layer_norm=2 * layers + 1, add=layers, pool=1),
    )


@depths(8)
def test_mixer(layers):
    x, model = shape(2, 224, 224, 3), mixer.Mixer(width=48, layers=layers)
    check_mixer(count(model, variables(model, x), x), layers)


@depths(8)
def test_mixer_in_nnx(layers):
    model = nnx_module(lambda rngs: mixer.NnxMixer(width=48, layers=layers, rngs=rngs))
    check_mixer(count(model, None, shape(2, 224, 224, 3)), layers)


@depths(6)
def test_bert(layers):
    tokens, model = shape(2, 32, dtype=np.int32), bert.Bert(layers=layers, vocabulary=99, hidden=192, **NARROW)
    found = count(model, variables(model, tokens, tokens), tokens, tokens)
    embeddings = Counter(gather=2, add=2)  # of words and kinds; the positions' are a constant, two sums
    pooling = Counter(mul=1, pool=2, div=1)  # tokens times mask; the sums of both; their ratio
    norm = Counter(mul=1, reduce_sum=1, sqrt=1, div=1)
    check(
        found,
        int8={"dot": 4 * layers, "matmul": 2 * layers},
        bias=4 * layers,
        gelu=layers,  # the exact one
        residual=3 * layers,  # out, down, and the mask in the epilogue of Q K^T
        requantized=3 * layers,
        merges={3: layers},
        left=Counter(layer_norm=2 * layers + 1, softmax=layers)
        + embeddings
        + pooling
        + norm
        + Counter(select_n=1),  # 0 or the lowest number, from the mask
    )
    check_attention(found, layers, "attention/{")


def check_scanned(found, layers):
    check(
        found,
        int8={"dot": 4 * layers + 1, "matmul": 2 * layers},
        bias=4 * layers + 1,
        gelu=layers,
        residual=2 * layers,
        requantized=3 * layers,
        merges={3: layers},
        left=Counter(layer_norm=2 * layers + 1, softmax=layers),
    )
    check_attention(found, layers, "attention/{")


@depths(12)
def test_scanned_layers_are_those_of_the_unrolled_network(layers):
    x = shape(2, 64, 48)
    v = variables(scanned.Scanned(layers), x)
    unrolled = count(scanned.Unrolled(layers), scanned.unstacked(v), x)
    check_scanned(unrolled, layers)
    in_scan = count(scanned.Scanned(layers), v, x)
    check_scanned(in_scan, layers)
    assert (in_scan.int8, in_scan.float, in_scan.fused) == (unrolled.int8, unrolled.float, unrolled.fused)
    assert sum(row.macs for row in in_scan.rows) == sum(row.macs for row in unrolled.rows)


@depths(12)
def test_scanned_layers_of_a_plain_function(layers):
    x = shape(2, 64, 48)
    check_scanned(count(scanned.plain, variables(scanned.Scanned(layers), x), x), layers)


@depths(6)
def test_gpt(layers):
    model, tokens = gpt.GPT(layers=layers, **NARROW), shape(2, 64, dtype=np.int32)
    found = count(model, variables(model, tokens), tokens)
    check(
        found,
        int8={"dot": 4 * layers + 1, "matmul": 2 * layers},
        bias=4 * layers + 1,  # the head is the transposed embedding, and has the bias of the norm before it
        gelu=layers,
        residual=2 * layers,
        requantized=3 * layers,
        merges={3: layers},
        # Words, positions; the causal masks.
        left=Counter(layer_norm=2 * layers + 1, softmax=layers, gather=1, add=1, select_n=layers),
    )
    check_attention(found, layers, "attention/{")


def check_decoding(found, layers):
    """K and V go to the cache, which is float: they are one dot, and Q, which is read in int8 only, another."""
    check(
        found,
        int8={"dot": 5 * layers + 1, "matmul": 2 * layers},
        bias=5 * layers + 1,
        gelu=layers,
        residual=2 * layers,
        requantized=3 * layers,  # q, P V, up
        merges={2: layers},
        left=Counter(layer_norm=2 * layers + 1, softmax=layers, gather=2, add=1, select_n=layers),
    )
    matmuls = [row for row in found.rows if row.op == "matmul"]
    kinds = Counter((row.dtypes[0][:2], row.dtypes[1]) for row in matmuls)
    assert kinds == {(("int8", "int8"), "float32"): layers, (("uint8", "int8"), "int8"): layers}


@depths(6)
def test_gpt_with_a_cache(layers):
    model = gpt.GPT(layers=layers, **NARROW, decode=True)
    params = variables(model.clone(decode=False), shape(2, 4, dtype=np.int32))["params"]
    check_decoding(count(gpt.step(model), params, gpt.empty_cache(model, 2), shape(2, 1, dtype=np.int32)), layers)


@depths(6)
def test_gpt_with_a_plain_cache(layers):
    model = gpt.GPT(layers=layers, **NARROW)
    params = variables(model, shape(2, 4, dtype=np.int32))["params"]
    cache = gpt.plain_cache(model, 2)
    check_decoding(count(gpt.plain_step(model.heads), params, cache, shape(2, 1, dtype=np.int32)), layers)
