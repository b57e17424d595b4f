"""`jaxq diff`."""

import json

import jax.numpy as jnp
import pytest
from jax import lax
from networks import images

import jaxq
from jaxq.cli import main


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


def test_constants_wiring_and_bodies(tmp_path, capsys):
    """What stands in a float graph: numbers, which operand is which, what a loop gives back."""

    def network(number, swapped, last):
        def fun(params, x):
            y = lax.rem(x @ params["w"], jnp.full((), number, jnp.float32))
            y = y - lax.sort(y) if swapped else lax.sort(y) - y

            def turn(carry):
                a, b = jnp.sin(carry[1]), jnp.cos(carry[2])
                return (carry[0] + 1, b, a) if last else (carry[0] + 1, a, b)

            return lax.while_loop(lambda carry: carry[0] < 3, turn, (0, y, -y))

        path = str(tmp_path / f"{number}{swapped}{last}.jaxq")
        config = jaxq.QuantConfig(method="mse")
        jaxq.quantize(fun, {"w": images(6, 4)}, [images(8, 6)], config=config).save(path)
        return path

    plain = network(2.5, False, False)
    for other in ((3.5, False, False), (2.5, True, False), (2.5, False, True)):
        data = differences(plain, network(*other), capsys)
        assert data["changed"] and not data["arrays"] and not data["scales"]


def test_a_file_that_is_missing(files, capsys):
    assert main(["diff", files.mlp, "missing.jaxq"]) == 2
    assert capsys.readouterr().err == "jaxq: missing.jaxq: cannot be read: No such file or directory: missing.jaxq\n"
