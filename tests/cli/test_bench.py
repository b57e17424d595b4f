"""`jaxq bench`: what it reports, never how fast; and the float form that it times."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import decibels, images

import jaxq
from jaxq import numerics
from jaxq.cli import float_form, main
from jaxq.cli.stopwatch import interleaved
from jaxq.graph.evaluate import evaluate
from jaxq.passes.elementwise import WORDS


def test_bench(files, capsys):
    options = ["--batch", "1,4", "--against", "float", "--layers", "--seconds", "0.02"]
    assert main(["bench", files.mlp, *options, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [each["batch"] for each in found["batches"]] == [1, 4]
    for each in found["batches"]:
        for precision in ("int8", "float"):
            times = each[precision]
            assert times["calls"] >= 5
            assert 0 < times["p50_ms"] <= times["p90_ms"] <= times["p99_ms"]
            assert times["examples_per_second"] == pytest.approx(each["batch"] * times["calls_per_second"])
        assert each["float_over_int8"] == pytest.approx(each["float"]["p50_ms"] / each["int8"]["p50_ms"])
        assert [layer["name"] for layer in each["layers"]] == ["input/quantize", "0", "1"]
        assert sum(layer["share"] for layer in each["layers"]) == pytest.approx(1)
    assert "batch 4: float compiled in " in err


def test_bench_as_a_table(files, capsys):
    assert main(["bench", files.mlp, "--layers", "--seconds", "0.01"]) == 0
    text = capsys.readouterr().out
    assert "\nbatch  precision  p50 ms" in text and "\nlayer           op" in text


def test_turns():
    order = []
    times = interleaved({name: lambda name=name: order.append(name) for name in "ab"}, 1e-9)
    assert "".join(order) == "aabb" * 5  # the first call of a turn does not count
    assert [len(each.calls) for each in times.values()] == [5, 5]


def in_float(qmodel, x):
    """What the float form gives, beside what int8 gives."""
    graph = qmodel.plan.graph
    bound = graph.bind(len(x))
    run = jax.jit(lambda params, x: evaluate(bound, params, [x], float_form.lower))
    return run(float_form.parameters(graph), x)[0]


def test_the_float_form_is_nearer_than_int8(files):
    qmodel, x = jaxq.load(files.cnn), images(4, 9, 8, 3)
    exact, form = files.exact(x), in_float(qmodel, x)
    assert form.dtype == jnp.float32
    assert float_form.unnamed(qmodel.plan.graph) == []
    assert decibels(exact, form) > max(40, decibels(exact, qmodel(x)))


def functions(params, x):
    """Tables behind dense layers, one behind a sum (which does not tell the table's scale), and one of no name."""
    x = jax.nn.gelu(x @ params["a"])
    x = jax.nn.silu(x + jnp.tanh(x @ params["b"]))
    y = jnp.sin(x) * x
    return jnp.concatenate([x, y], -1) @ params["wide"]


def test_functions_in_float():
    rng = np.random.default_rng(0)
    shapes = {"a": (6, 6), "b": (6, 6), "wide": (12, 4)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    x = images(64, 6)
    qmodel = jaxq.quantize(functions, params, [x], config=jaxq.QuantConfig(method="mse"))
    tables = [node for node in qmodel.plan.graph.nodes if node.get("table") is not None]
    assert len(tables) == 4
    assert float_form.unnamed(qmodel.plan.graph) == [node.name for node in tables[2:]]
    exact = jax.jit(functions)(params, x)
    assert decibels(exact, in_float(qmodel, x)) > decibels(exact, qmodel(x)) > 20


@pytest.mark.parametrize("factor", [1.0, -0.3])
def test_functions_that_have_a_name(factor):
    x = numerics.levels("int8") * 0.04
    for word, f in {**WORDS, "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.1)}.items():
        y = factor * np.asarray(f(jnp.asarray(x if factor > 0 else -x, jnp.float32)))
        step = np.max(np.abs(y)) / 120  # a few entries are cut off, as a threshold does
        table = np.clip(np.round(y / step), -110, 110).astype(np.int8)
        table[np.abs(table) == 110] = np.sign(table[np.abs(table) == 110]) * 127
        found = float_form.named(word, x, table, float(step))
        assert found is not None, word
        assert np.max(np.abs(np.asarray(found(jnp.asarray(x, jnp.float32))) - y)) < 2 * step, word
        assert float_form.named("elementwise", x, table, float(step)) is None
    assert float_form.named("tanh", x, np.roll(table, 7), float(step)) is None
