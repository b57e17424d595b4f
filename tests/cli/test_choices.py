"""The commands on a plan whose values have scales by channel and zero points."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chosen import by_channel, model_from, state_of
from networks import decibels, images

import jaxq
from jaxq.cli import main

SHAPES = {"stem": (3, 3, 3, 8), "next": (3, 3, 8, 8), "last": (1, 1, 8, 8), "head": (8, 5)}
PARAMS = {name: images(*shape, seed=i) / np.float32(4) for i, (name, shape) in enumerate(SHAPES.items())}


def conv(x, weight, stride):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, weight, (stride, stride), "SAME", dimension_numbers=numbers)


def network(params, x):
    x = jax.nn.silu(conv(x, params["stem"], 1))
    x = jax.nn.relu6(conv(x, params["next"], 2))
    x = jax.nn.relu(conv(x, params["last"], 1))
    return jnp.mean(x, (1, 2)) @ params["head"]


X = images(8, 9, 8, 3)


@pytest.fixture(scope="module")
def models():
    one = jaxq.quantize(network, PARAMS, [X], config=jaxq.QuantConfig(method="mse"))
    state = state_of(one)
    choices = by_channel(state, np.random.default_rng(0), spread=2.0)
    assert sum(np.ndim(qtype.scale) for qtype in choices.qtypes.values()) == 3
    assert sum(qtype.zero_point > 0 for qtype in choices.qtypes.values()) == 1
    return one, model_from(replace(state, choices=choices), one)


@pytest.fixture(scope="module")
def paths(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("choices")
    found = [str(folder / f"{name}.jaxq") for name in ("one", "by_channel")]
    for path, qmodel in zip(found, models, strict=True):
        qmodel.save(path)
    return found


def test_verify(paths, capsys):
    assert main(["verify", paths[1], "--batch", "3"]) == 0
    assert capsys.readouterr().out.endswith("result head: every bit the same\n")


def test_inspect(paths, capsys):
    assert main(["inspect", paths[1], "--json"]) == 0
    layers = {row["name"]: row for row in json.loads(capsys.readouterr().out)["layers"]}
    assert layers["next"]["scale"] is None and layers["stem"]["scale"] is not None
    assert main(["inspect", paths[1]]) == 0


def test_diff(paths, capsys):
    assert main(["diff", paths[1], paths[1]]) == 0
    assert main(["diff", *paths, "--json"]) == 1
    found = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    assert {"next", "reduce_sum", "input/quantize"} <= {each["name"] for each in found["scales"]}
    assert main(["diff", *paths]) == 1


def test_report(paths, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXQ_CACHE_DIR", str(tmp_path))
    calibration = jaxq.calibrate(network, PARAMS, [X], config=jaxq.QuantConfig(method="mse"))
    calibration.save(tmp_path / "c.jaxqcal")
    page = tmp_path / "page.html"
    options = ["--calibration", str(tmp_path / "c.jaxqcal"), "--time", "1"]
    assert main(["report", paths[1], "-o", str(page), *options]) == 0
    assert "next" in page.read_text()


def test_tune(paths, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXQ_CACHE_DIR", str(tmp_path))
    tuned = tmp_path / "tuned.jaxq"
    assert main(["tune", paths[1], "-o", str(tuned), "--budget", "2"]) == 0
    exact = jax.jit(network)(PARAMS, X)
    assert decibels(exact, jaxq.load(tuned)(X)) > decibels(exact, jaxq.load(paths[1])(X)) - 3
