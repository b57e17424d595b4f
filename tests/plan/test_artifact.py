"""The file: the same bits in a new process without Flax, and a PlanError for everything that is no plan."""

import json
import os
import subprocess
import sys

import cheap
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax import lax
from networks import images, mlp, mlp_params

import jaxq
from jaxq import files


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    qmodel = jaxq.quantize(mlp, mlp_params(6, 5, 4), [images(8, 6)], config=jaxq.QuantConfig(method="mse"))
    path = tmp_path_factory.mktemp("plan") / "net.jaxq"
    qmodel.save(path)
    return qmodel, path


SERVE = """
import sys, jaxq, numpy as np
qmodel = jaxq.load(sys.argv[1])
for size in (8, 3):
    np.save(f"{sys.argv[2]}/{size}.npy", qmodel(np.load(sys.argv[2] + "/x.npy")[:size]))
assert not any(name.split(".")[0] in ("flax", "optax") for name in sys.modules)
"""


def test_a_new_process_without_flax_gives_the_same_bits(small_cnn, tmp_path):
    path = tmp_path / "net.jaxq"
    small_cnn.qmodel.save(path)
    np.save(tmp_path / "x.npy", small_cnn.x)
    subprocess.run([sys.executable, "-c", SERVE, path, tmp_path], check=True)
    y = np.asarray(small_cnn.qmodel(small_cnn.x))
    np.testing.assert_array_equal(np.load(tmp_path / "8.npy"), y)
    np.testing.assert_array_equal(np.load(tmp_path / "3.npy"), y[:3])


def test_a_loaded_plan_is_the_plan(saved):
    qmodel, path = saved
    loaded = jaxq.load(path)
    assert str(loaded.summary()) == str(qmodel.summary())
    assert loaded.summary().nodes == qmodel.summary().nodes
    x = images(8, 6)
    np.testing.assert_array_equal(loaded(x), qmodel(x))
    np.testing.assert_array_equal(jax.vmap(loaded)(x), qmodel(x))
    np.testing.assert_array_equal(cheap.oracle(loaded, x), qmodel(x))


def test_saving_again_gives_the_same_file(saved, tmp_path):
    _, path = saved
    jaxq.load(path).save(tmp_path / "again.jaxq")
    assert (tmp_path / "again.jaxq").read_bytes() == path.read_bytes()


def test_control_flow_gathers_and_signatures_are_saved(tmp_path):
    def fun(params, batch):
        x = params["table"][batch["tokens"]]
        x, _ = lax.scan(lambda c, w: (jnp.tanh(c @ w), c.sum()), x, params["layers"])
        x = lax.while_loop(lambda c: jnp.all(c[0] < 3), lambda c: (c[0] + 1, c[1] * 0.5), (0, x))[1]
        x = lax.cond(params["table"].sum() > 0, jnp.sin, jnp.cos, x)
        return {"y": [x @ params["head"]], "top": lax.top_k(x, 2), "raw": batch["tokens"]}

    params = {"table": images(10, 6), "layers": images(2, 6, 6), "head": images(6, 3)}
    batch = {"tokens": np.arange(8, dtype=np.int32) % 10}
    qmodel = jaxq.quantize(fun, params, [batch])
    qmodel.save(tmp_path / "net.jaxq")
    loaded = jaxq.load(tmp_path / "net.jaxq")
    ours, theirs = loaded(batch), qmodel(batch)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert loaded({"tokens": batch["tokens"][:3]})["y"][0].shape == (3, 3)


def test_what_a_file_cannot_hold(tmp_path):
    def fun(params, x):
        y = x @ params["w"]
        return jax.pure_callback(lambda y: y, jax.ShapeDtypeStruct(y.shape, y.dtype), y, vmap_method="sequential")

    qmodel = jaxq.quantize(fun, {"w": images(6, 4)}, [images(8, 6)])
    with pytest.raises(jaxq.UnsupportedError, match="layer 'pure_callback': the JAX primitive 'pure_callback' has no"):
        qmodel.save(tmp_path / "net.jaxq")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_file(saved, tmp_path, monkeypatch):
    qmodel, _ = saved
    target = tmp_path / "net.jaxq"
    target.write_bytes(b"old")

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        qmodel.save(target)
    assert [p.name for p in tmp_path.iterdir()] == ["net.jaxq"]
    assert target.read_bytes() == b"old"


def rejected(path, message=None):
    with pytest.raises(jaxq.PlanError, match=message) as caught:
        jaxq.load(path)
    assert str(path) in str(caught.value)


def test_truncated_files(saved, tmp_path):
    data = saved[1].read_bytes()
    for tenth in range(10):
        path = tmp_path / "cut.jaxq"
        path.write_bytes(data[: len(data) * tenth // 10])
        rejected(path)


def test_flipped_bits(saved, tmp_path):
    """Every flip is found, or is one that changes nothing (the padding of the header)."""
    qmodel, path = saved
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    x, found = images(8, 6), 0
    for position in rng.integers(0, len(data), 150):
        flipped = bytearray(data)
        flipped[position] ^= 1 << int(rng.integers(8))
        other = tmp_path / "flipped.jaxq"
        other.write_bytes(flipped)
        try:
            np.testing.assert_array_equal(jaxq.load(other)(x), qmodel(x))
        except jaxq.PlanError:
            found += 1
    assert found > 140


def test_foreign_files(tmp_path):
    for name, data in (("empty", b""), ("text", b"hello" * 100), ("zeros", bytes(4096)), ("zip", b"PK\x03\x04" * 99)):
        (tmp_path / name).write_bytes(data)
        rejected(tmp_path / name, "no jaxq plan")
    safetensors.numpy.save_file({"a": np.zeros(3)}, tmp_path / "foreign")
    rejected(tmp_path / "foreign", "a safetensors file, but no jaxq plan")
    rejected(tmp_path / "missing", "cannot be read")
    rejected(tmp_path, "cannot be read|no jaxq plan")


def edited(path, tmp_path, edit):
    """A file whose header says something else, its digests right."""
    with safetensors.safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()["jaxq"].partition("\n")[2])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    edit(header)
    text = json.dumps(header)
    metadata = {"jaxq": f"{files._digest(text.encode())}\n{text}"}
    safetensors.numpy.save_file(arrays, tmp_path / "edited", metadata=metadata)
    return tmp_path / "edited"


def test_a_newer_file(saved, tmp_path):
    path = edited(saved[1], tmp_path, lambda header: header.update(schema=99))
    rejected(path, "schema 99, this jaxq reads 2; install the jaxq that wrote it")


@pytest.mark.parametrize(
    "edit",
    [
        lambda h: h.pop("graph"),
        lambda h: h["graph"]["nodes"][0].update(op="import os"),
        lambda h: h["graph"]["nodes"][-1].update(inputs=[9999]),
        lambda h: h["graph"]["nodes"][-1].update(inputs=[-1]),
        lambda h: h["graph"]["nodes"][-1].pop("aval"),
        lambda h: h["graph"].update(outputs=[10**6]),
        lambda h: h.update(in_tree={"$eval": []}),
        lambda h: h["sha256"].clear(),
        lambda h: h.pop("sha256"),
        lambda h: h.update(out_tree=None),
        lambda h: h["graph"]["nodes"][-1].pop("inputs"),
        lambda h: h["graph"]["nodes"][-1].pop("roles"),
        lambda h: h["summary"]["$map"].pop(0),
    ],
)
def test_an_edited_header(saved, tmp_path, edit):
    rejected(edited(saved[1], tmp_path, edit))


@pytest.mark.parametrize("size", [True, 1.0])
def test_a_size_that_equals_an_integer_and_is_none(tmp_path, size):
    jaxq.quantize(lambda w, x: x @ w, images(6, 1), [images(8, 6)]).save(tmp_path / "net.jaxq")

    def edit(header):
        header["graph"]["nodes"][-1]["aval"]["$aval"][0][1] = size

    rejected(edited(tmp_path / "net.jaxq", tmp_path, edit), f"{size}.* is no shape")
