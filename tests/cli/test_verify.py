"""`jaxq verify`: every network's bits are right, and a node that is not is found."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from networks import images

import jaxq
from jaxq import backends
from jaxq.cli import main
from jaxq.cli.probe import decibels
from jaxq.cli.verify import Result


def test_a_small_network(files, capsys):
    assert main(["verify", files.cnn, "--batch", "3"]) == 0
    out, err = capsys.readouterr()
    assert out == "11 int8 nodes: every bit the same\nresult head: every bit the same\n"
    assert "computing 11 int8 nodes in NumPy\n" in err


def test_weight_only(files, capsys):
    """Its sums are of floats: the result alone is compared."""
    assert main(["verify", files.int4, "--batch", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["right"] and found["nodes"] == 0
    assert [result["bound_by"] for result in found["results"]] == ["decibels"]


def loops(params, batch):
    """Bytes, products of two values, functions in tables, float nodes, integers that floats choose, and loops."""
    x = batch["bytes"].astype(jnp.float32) @ params["in"]
    x = jax.nn.gelu(x) * jax.nn.sigmoid(x @ params["square"])
    x = jnp.sort(x, -1) @ params["square"]
    count, y = lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(c[1] @ params["square"])), (0, x))
    return {"y": y, "top": lax.top_k(x, 2)[1], "count": count}


@pytest.fixture(scope="module")
def loops_file(tmp_path_factory):
    params = {"in": images(4, 6), "square": images(6, 6)}
    batch = {"bytes": np.random.default_rng(0).integers(0, 256, (8, 4)).astype(np.uint8)}
    path = tmp_path_factory.mktemp("loops") / "loops.jaxq"
    jaxq.quantize(loops, params, [batch], config=jaxq.QuantConfig(method="mse")).save(path)
    return str(path)


def test_loops_and_float_nodes(loops_file, capsys):
    assert main(["verify", loops_file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["right"] and found["differences"] == []
    assert found["nodes"] > 4 and found["nodes_in_loops"] > 0
    # In the order of the keys of the result: count, top, y.
    assert [result["bound_by"] for result in found["results"]] == ["nothing", "nothing", "decibels"]


def test_a_wrong_node_is_found(files, monkeypatch, capsys):
    """One element of layer 0 is one too large; layer 1, which reads it, is right all the same."""
    right = backends.choose

    def wrong(node):
        run = right(node)
        return run if node.name != "0" else lambda *operands: run(*operands).at[0, 2].add(1)

    monkeypatch.setattr(backends, "gather", lambda graph: graph)
    monkeypatch.setattr(backends, "prepare", lambda graph, params: dict(params))
    monkeypatch.setattr(backends, "choose", wrong)
    assert main(["verify", files.mlp, "--batch", "2", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    (difference,) = found["differences"]
    assert (difference["name"], difference["count"], difference["size"]) == ("0", 1, 10)
    assert (difference["index"], difference["largest"]) == ([0, 2], 1.0)
    assert difference["found"] == difference["expected"] + 1
    assert main(["verify", files.mlp, "--batch", "2"]) == 1
    assert capsys.readouterr().out.startswith("1 int8 node of 3 differ; the first is '0'\n")


def test_results_that_differ():
    a, b = np.array([1.0, 2.0, np.nan]), np.array([1.0, 2.001, np.nan])
    assert decibels(a, a) == np.inf
    assert decibels(a, b) == pytest.approx(10 * np.log10(5 / 1e-6))
    assert decibels(a, np.array([1.0, np.nan, np.nan])) == -np.inf
    assert decibels(np.zeros(3), b) == -np.inf
    assert decibels(np.array([np.inf, 1.0]), np.array([np.inf, 1.1])) == pytest.approx(20)
    difference = jaxq.cli.probe.Difference("x", "dot", 1, 3, (1,), 2.0, 2.001, 0.001)
    assert not Result("x", "bits", 67.0, difference).is_right
    assert Result("x", "decibels", 67.0, difference).is_right
    assert not Result("x", "decibels", 29.0, difference).is_right
    assert Result("x", "nothing", 29.0, difference).is_right
    assert "67.0 dB, of which 30 are right" in str(Result("x", "decibels", 67.0, difference))


def test_a_fixed_batch_size(tmp_path, capsys):
    def fixed(params, x):
        return (x @ params["w"]) * x.shape[0]

    path = str(tmp_path / "fixed.jaxq")
    jaxq.quantize(fixed, {"w": images(6, 4)}, [images(8, 6)]).save(path)
    assert main(["verify", path]) == 0
    assert main(["verify", path, "--batch", "4"]) == 2
    assert "--batch: the plan's batch size is fixed" in capsys.readouterr().err
