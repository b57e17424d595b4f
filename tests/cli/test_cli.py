"""What holds for all commands: exit codes, errors in one line, help; and `inspect`."""

import json
import subprocess
import sys

import pytest

from jaxq.cli import main
from jaxq.plan import artifact


def test_help_from_a_new_process():
    ran = subprocess.run([sys.executable, "-m", "jaxq", "--help"], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("usage: jaxq ")
    assert "exit codes:" in ran.stdout and ran.stderr == ""


@pytest.mark.parametrize("command", ["inspect", "bench", "tune", "report", "diff", "verify"])
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"examples:\n  jaxq {command} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "required: COMMAND"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["inspect"], "required: file"),
        (["bench", "x", "--batch", "1,0"], "a batch size is a whole number from 1 on, not '0'"),
        (["bench", "x", "--seconds", "-1"], "seconds are a number above 0, not '-1'"),
        (["bench", "x", "--against", "int4"], "invalid choice: 'int4'"),
        (["verify", "x", "--batch", "many"], "not 'many'"),
        (["tune", "x", "--budget", "off"], "a budget is fast, full, or a number of seconds above 0, not 'off'"),
        (["verify", "x", "--seed", "-1"], "a seed is a whole number from 0 on, not '-1'"),
    ],
)
def test_wrong_usage(arguments, says, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "bench", "tune", "verify"])
def test_files_that_cannot_be_read(command, files, capsys):
    foreign = files.folder / "foreign.jaxq"
    foreign.write_bytes(b"hello" * 100)
    for path, says in ((files.folder / "missing.jaxq", "cannot be read"), (foreign, "no jaxq plan")):
        assert main([command, str(path)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"jaxq: {path}: ") and says in err and err.count("\n") == 1


def test_interrupted(files, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(artifact, "load", interrupt)
    assert main(["inspect", files.mlp]) == 130
    assert capsys.readouterr() == ("", "")


def test_inspect(files, capsys):
    assert main(["inspect", files.mlp]) == 0
    text = capsys.readouterr().out
    for line in ("argument input: float32[batch, 6]", "result 1: float32[batch, 4]", "signature: (*,) -> *"):
        assert f"{line}\n" in text
    assert str(artifact.load(files.mlp)[0].summary) in text


def test_inspect_weight_only(files, capsys):
    assert main(["inspect", files.int4, "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert [(row["name"], row["precision"]) for row in layers] == [
        ("0", "int4 weight-only"),
        ("1", "int4 weight-only"),
    ]


def test_inspect_as_data(files, capsys):
    assert main(["inspect", files.float_head, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["arguments"] == [{"name": "input", "dtype": "float32", "shape": ["batch", 6]}]
    assert facts["results"] == [{"name": "1", "dtype": "float32", "shape": ["batch", 4]}]
    assert facts["batch"] == "any"
    assert {"schema", "jaxq", "jax", "bytes", "arrays", "weights"} <= facts.keys()
    (head,) = [row for row in facts["layers"] if row["name"] == "1"]
    assert (head["precision"], head["op"], head["macs"]) == ("float", "dot", 20)
