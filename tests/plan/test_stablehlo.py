"""Primitives that jaxq has no data for: StableHLO in the file, for whoever trusts it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from networks import images

import jaxq
from jaxq.cli import main
from jaxq.plan import artifact

PARAMS = {"w": images(12, 9), "head": images(3, 5, seed=1)}
X = images(8, 12)


def network(params, x):
    """Eigenvalues, two results at once, and a Cholesky factor inside a loop."""
    y = (x @ params["w"]).reshape(-1, 3, 3)
    y = y @ y.mT + jnp.eye(3)
    vectors, values = lax.linalg.eigh(y)
    y = lax.fori_loop(0, 2, lambda _, y: lax.linalg.cholesky(y @ y.mT + jnp.eye(3)), y)
    return {"y": (values + y.sum(1)) @ params["head"], "vectors": jnp.abs(vectors)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    qmodel = jaxq.quantize(network, PARAMS, [X], config=jaxq.QuantConfig(method="mse"))
    path = tmp_path_factory.mktemp("stablehlo") / "net.jaxq"
    qmodel.save(path)
    return qmodel, path


@pytest.fixture(scope="module")
def loaded(saved):
    return jaxq.load(saved[1], trusted=True)


def assert_same(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), a, b)


@pytest.mark.parametrize("size", [8, 3, 1, 0])
def test_a_loaded_plan_is_the_plan_at_any_batch_size(saved, loaded, size):
    qmodel, _ = saved
    assert_same(loaded(X[:size]), qmodel(X[:size]))


def test_its_layers(saved, loaded):
    words = {row.op for row in loaded.summary().nodes}
    assert {"eigh", "cholesky"} <= words
    assert loaded.summary().nodes == saved[0].summary().nodes
    assert {node.op for node in loaded.plan.graph.all_nodes} >= {"stablehlo", "dot"}
    assert "opaque" not in {node.op for node in loaded.plan.graph.all_nodes}


def test_saving_again_gives_the_same_file(saved, loaded, tmp_path):
    loaded.save(tmp_path / "again.jaxq")
    assert (tmp_path / "again.jaxq").read_bytes() == saved[1].read_bytes()


def test_it_is_compiled_and_exported(loaded):
    serve = loaded.compile(8)
    assert_same(serve(X), loaded(X))
    exported = loaded.export()
    assert exported.platforms == ("cpu", "cuda")
    assert_same(exported.call(X[:3]), loaded(X[:3]))


def test_who_is_not_trusted(saved):
    with pytest.raises(jaxq.PlanError, match=r"net.jaxq: layer 'eigh' is StableHLO, .* jaxq.load\(path, trusted=True"):
        jaxq.load(saved[1])
    with pytest.raises(jaxq.PlanError, match="StableHLO"):
        artifact.load(saved[1])


def test_the_command_line(saved, capsys):
    path = str(saved[1])
    assert main(["inspect", path]) == 2
    assert "or --trusted" in capsys.readouterr().err
    assert main(["inspect", "--trusted", path]) == 0
    assert "cholesky" in capsys.readouterr().out
    assert main(["diff", "--trusted", path, path]) == 0
    assert main(["verify", "--trusted", path]) == 0


def with_module(path, to, change):
    """The file with the module of eigh changed, its digests right."""
    header, arrays = artifact.PLAN_FILE.read(path)
    header = {key: value for key, value in header.items() if key not in ("schema", "sha256")}
    (eigh,) = (item for item in header["graph"]["nodes"] if item["op"] == "stablehlo")
    ((_, module),) = (pair for pair in eigh["attrs"]["$map"] if pair[0] == "exported")
    name = module["$stablehlo"]["$array"]
    arrays[name] = np.frombuffer(change(arrays[name].tobytes()), np.uint8)
    artifact.PLAN_FILE.write(to, header, arrays)


def test_a_module_of_other_shapes(saved, tmp_path):
    other = jax.export.export(jax.jit(jnp.sin))(jax.ShapeDtypeStruct((2, 3), np.float32))
    with_module(saved[1], tmp_path / "net.jaxq", lambda _: bytes(other.serialize()))
    with pytest.raises(jaxq.PlanError, match="the plan does not decode: ValueError: .*2, 3"):
        jaxq.load(tmp_path / "net.jaxq", trusted=True)


def test_a_later_stablehlo(saved, tmp_path):
    with_module(saved[1], tmp_path / "net.jaxq", lambda data: data.replace(b"custom_call_v1", b"custom_call_v9"))
    with pytest.raises(jaxq.PlanError, match="its StableHLO is later than this jax .* reads; install a newer one"):
        jaxq.load(tmp_path / "net.jaxq", trusted=True)


def test_a_primitive_that_only_cpus_have(tmp_path):
    def fun(params, x):
        y = (x @ params["w"]).reshape(-1, 3, 3)
        return jnp.abs(lax.linalg.schur(y)[0])

    qmodel = jaxq.quantize(fun, PARAMS, [X], config=jaxq.QuantConfig(method="mse"))
    qmodel.save(tmp_path / "net.jaxq")
    assert_same(jaxq.load(tmp_path / "net.jaxq", trusted=True)(X[:5]), qmodel(X[:5]))
