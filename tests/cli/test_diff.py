"""`jaxq diff`."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from networks import images

import jaxq
from jaxq.cli import main
from jaxq.cli.compare import compare
from jaxq.graph.node import Graph, constant


def differences(old, new, capsys):
    code = main(["diff", old, new, "--json"])
    data = json.loads(capsys.readouterr().out)
    assert data["differ"] == bool(code)
    return data


def test_a_plan_is_the_same_as_itself(files, capsys):
    assert main(["diff", files.mlp, files.mlp]) == 0
    assert capsys.readouterr().out == "no difference\n"
    assert differences(files.mlp, files.mlp, capsys)["compared_arrays"] > 0


def test_weights(files, capsys):
    data = differences(files.mlp, files.two_weights, capsys)
    (array,) = data["arrays"]
    assert (array["name"], array["layer"], array["changed"]) == ("0/weight", "0", 2)
    assert not (data["signature"] or data["added"] or data["removed"] or data["changed"] or data["scales"])
    assert main(["diff", files.mlp, files.two_weights]) == 1
    assert "arrays: 1 of" in capsys.readouterr().out


def test_scales(files, capsys):
    data = differences(files.mlp, files.other_data, capsys)
    assert not (data["signature"] or data["added"] or data["removed"])
    assert data["scales"]
    for change in data["scales"]:
        assert change["relative"] == pytest.approx(abs(change["new"] / change["old"] - 1))
    # The multiplier of a quantize is no array: 1 / scale.
    assert any("multiplier" in what for lines in data["changed"].values() for what in lines)


def test_precision(files, capsys):
    data = differences(files.mlp, files.float_head, capsys)
    assert "precision int8 -> float" in data["changed"]["1"]
    assert main(["diff", files.mlp, files.float_head]) == 1
    text = capsys.readouterr().out
    assert "  ~ 1: precision int8 -> float; reads " in text


def test_weight_only(files, capsys):
    data = differences(files.mlp, files.int4, capsys)
    assert {"op dot -> weight_only_dot", "precision int8 -> int4 weight-only"} <= set(data["changed"]["1"])
    assert main(["diff", files.int4, files.int4]) == 0


def test_nodes_that_come_and_go(files, capsys):
    forth, back = (
        differences(*pair, capsys) for pair in ((files.mlp, files.float_head), (files.float_head, files.mlp))
    )
    assert (forth["added"], forth["removed"]) == (back["removed"], back["added"])


def test_signature(files, capsys):
    data = differences(files.mlp, files.narrow, capsys)
    assert data["signature"] == ["result: 1 float32[batch, 4] -> 1 float32[batch, 3]"]
    assert "value float32[batch, 4] -> float32[batch, 3]" in data["changed"]["1"]
    (weight,) = [array for array in data["arrays"] if array["name"].endswith("weight") and array["size"] == 15]
    assert weight["changed"] == 15


def test_constants_wiring_and_bodies():
    """What stands in a float graph: numbers, which operand is which, what a loop gives back."""

    def fun(params, x):
        y = lax.rem(x @ params["w"], jnp.full((), 2.5, jnp.float32))
        turn = lambda c: (c[0] + 1, jnp.sin(c[1]), jnp.cos(c[2]))  # noqa: E731
        return lax.while_loop(lambda c: c[0] < 3, turn, (0, y, lax.sort(y) - y))

    plan = jaxq.quantize(fun, {"w": images(6, 4)}, [images(8, 6)], config=jaxq.QuantConfig(method="mse")).plan

    def changed(op, change):
        """The lines about the only node that differs, once `change` has been at the nodes of that op."""
        graph = plan.graph.map(lambda node: change(node) if node.op == op else node)
        changes = compare(plan, dataclasses.replace(plan, graph=graph))
        assert changes.differ and not (changes.added or changes.removed or changes.scales or changes.arrays)
        ((_, lines),) = changes.changed.items()
        return lines

    other = constant(np.float32(3.5))
    assert changed("rem", lambda node: node.replace(inputs=(node.inputs[0], other))) == ["a constant 2.5 -> 3.5"]
    (line,) = changed("sub", lambda node: node.replace(inputs=node.inputs[::-1]))
    assert line.startswith("reads sort")

    def crossed(body):
        return Graph(body.inputs, (*body.outputs[:-2], *body.outputs[:-3:-1]))

    (line,) = changed("while", lambda node: node.with_attrs(body=crossed(node.attrs["body"])))
    assert line.startswith("body a body of ")


def test_a_file_that_is_missing(files, capsys):
    assert main(["diff", files.mlp, "missing.jaxq"]) == 2
    assert capsys.readouterr().err == "jaxq: missing.jaxq: cannot be read: No such file or directory: missing.jaxq\n"
