"""`jaxq tune`: a file's layers in float where that is faster. Times are made up: the choice is what they make it."""

import json
import re

import made_up
import numpy as np
import pytest
from networks import decibels, images

import jaxq
from jaxq.cli import main
from jaxq.graph.node import is_int8
from jaxq.plan import tune

X = images(4, 9, 8, 3)


@pytest.fixture
def times(monkeypatch, tmp_path):
    """Sets what whole networks take, and layers and borders by the first regular expression that matches, or 1 ms."""
    monkeypatch.setenv("JAXQ_CACHE_DIR", str(tmp_path))

    def set_times(whole, **by_pattern):
        alone = lambda what: next((s for p, s in by_pattern.items() if re.match(p, what)), 1e-3)  # noqa: E731
        made_up.set_times(monkeypatch, alone, whole)

    return set_times


def tuned(files, tmp_path, *options):
    path = tmp_path / "tuned.jaxq"
    assert main(["tune", files.cnn, "-o", str(path), *options]) == 0
    return jaxq.load(path)


def precisions(qmodel):
    return {node.name: is_int8(node) for node in qmodel.plan.graph.nodes if node.op in ("conv", "dot")}


def test_int8_stays_as_it_is(files, times, tmp_path, capsys):
    times({"int8": 1.0})
    qmodel, before = tuned(files, tmp_path), jaxq.load(files.cnn)
    np.testing.assert_array_equal(qmodel(X), before(X))
    assert qmodel.summary().nodes == before.summary().nodes
    assert qmodel.summary().tuning.chosen == "int8"
    out = capsys.readouterr().out
    assert "tuned: int8, at batch 1 on" in out and "0 layers in float; written to" in out


def test_float_where_int8_never_pays(files, times, tmp_path):
    times({"float": 1.0})
    qmodel = tuned(files, tmp_path, "--batch", "4")
    assert not any(precisions(qmodel).values())
    assert decibels(files.exact(X), qmodel(X)) > max(40, decibels(files.exact(X), jaxq.load(files.cnn)(X)))
    assert qmodel.summary().tuning.batch == 4


def test_the_layers_where_int8_loses(files, times, tmp_path, capsys):
    """The 1 x 1 convolution alone, and no border."""
    name, pointwise = "pointwise", r"conv .*weightint8\[1, 1"
    faster = {f"in float: {pointwise}": 1e-3, pointwise: 9e-3, "in float": 3e-3, "quantize": 1e-5, "dequantize": 1e-5}
    times({"mixed": 1.0}, **faster)
    qmodel = tuned(files, tmp_path, "--json")
    found = precisions(qmodel)
    assert not found.pop(name) and all(found.values())
    assert decibels(files.exact(X), qmodel(X)) > 25
    data = json.loads(capsys.readouterr().out)
    assert data["chosen"] == "mixed" and data["mixed_ms"] == 1e3
    (layer,) = [layer for layer in data["layers"] if layer["name"] == name]
    assert (layer["int8_ms"], layer["float_ms"], layer["precision"]) == (9.0, 1.0, "float")
    (row,) = [row for row in qmodel.summary().nodes if row.name == name]
    assert row.reason == "float is faster: 1 ms alone, 9 ms quantized"


def test_real_times(files, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("JAXQ_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tune.Budget, "networks", 0.5)
    assert main(["tune", files.mlp, "--budget", "20", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {layer["name"] for layer in data["layers"]} == {"0", "1"}
    assert data["chosen"] in ("int8", "float", "mixed")
