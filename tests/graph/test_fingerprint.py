"""The fingerprint is the same for the same network, in every process, and names what differs in another."""

import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from jax import lax
from networks import images, mlp, mlp_params

from jaxq.graph.fingerprint import fingerprint
from jaxq.graph.trace import trace
from jaxq.models import as_function


def of(model, params, *args, **static_kwargs):
    fun, params = as_function(model, params, static_kwargs)
    return fingerprint(trace(fun, params, args).graph)


PARAMS, X = mlp_params(6, 5, 4), images(8, 6)
MLP = of(mlp, PARAMS, X)


def test_what_it_holds():
    assert list(MLP.layers)[:2] == ["input", "0"] and list(MLP.layers)[-1] == "(outputs)"
    assert MLP.layers["0"].startswith("dot_general float32[batch, 5] (input, 0/0) ")
    assert list(MLP.variables) == ["0/0", "0/1", "1/0", "1/1"]
    assert MLP.variables["0/1"].startswith("float32[5] ")


def test_a_retrace_is_the_same():
    jax.clear_caches()
    again = of(lambda p, x: mlp(p, x), jax.tree.map(jnp.asarray, PARAMS), X)
    assert again == MLP and MLP.differences(again) == []


def test_the_batch_size_does_not_matter():
    assert of(mlp, PARAMS, X[:3]) == of(mlp, PARAMS, X[:1]) == MLP


def everything(params, x, scale):
    """Control flow, a gather, a closed-over array, and what jaxq does not know."""
    x, _ = lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, params["layers"])
    x = lax.cond(scale > 0, jnp.sin, lambda x: jnp.cos(jnp.cos(x)), x)
    x = lax.while_loop(lambda c: jnp.all(c[0] < 3), lambda c: (c[0] + 1, c[1] * 0.5), (0, x))[1]
    x = jax.nn.gelu(x) + jnp.fft.fft(x).real + jnp.arange(4.0) + params["table"][jnp.array([0, 2])].sum()
    return x @ params["head"]


EVERYTHING = {"layers": images(2, 4, 4), "table": images(3), "head": images(4, 2)}

PROCESS = """
import json, sys
import jax
jax.config.update("jax_numpy_dtype_promotion", "strict")
import test_fingerprint as t
found = t.of(t.everything, t.EVERYTHING, t.images(8, 4), t.np.float32(1))
print(json.dumps([found.layers, found.variables]))
"""


def test_another_process_finds_the_same():
    folder = Path(__file__).parent
    paths = os.pathsep.join([str(folder), str(folder.parent), str(folder.parent.parent)])
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", PROCESS], env=environment, check=True, capture_output=True, text=True)
    ours = of(everything, EVERYTHING, images(8, 4), np.float32(1))
    assert json.loads(done.stdout) == [ours.layers, ours.variables]


def test_linen_and_nnx_name_their_own():
    x = images(4, 12, 12, 3)
    model = networks.MobileCNN()
    v = networks.variables(model, x)
    ours = of(model, v, x)
    v["params"]["Dense_0"]["bias"] = v["params"]["Dense_0"]["bias"] + 1
    assert ours.differences(of(model, v, x)) == ["variable 'params/Dense_0/bias' differs"]

    model = networks.nnx_module(networks.NnxCNN)
    ours = of(model, None, x)
    model.norm.mean[...] = np.asarray(model.norm.mean[...]) + 1
    assert ours.differences(of(model, None, x)) == ["variable 'norm/mean' differs"]


def test_what_the_result_does_not_depend_on_is_left_out():
    model, x = networks.nnx_module(networks.NnxCNN), images(4, 12, 12, 3)
    ours = of(model, None, x)
    assert not any("rngs" in name for name in ours.variables)
    params = {"w": images(6, 4), "momentum": images(6, 4)}
    assert list(of(lambda p, x: x @ p["w"], params, X).variables) == ["w"]


def test_variables():
    assert MLP.differences(of(mlp, mlp_params(6, 5, 4, seed=1), X))[0] == "variable '0/0' differs"
    less = of(mlp, PARAMS[:1], X)
    assert "variable '1/0' is missing" in MLP.differences(less)
    assert "layer '1' is missing" in MLP.differences(less)
    assert "variable '1/0' is new" in less.differences(MLP)


def test_one_bit():
    other = [(PARAMS[0][0], np.nextafter(PARAMS[0][1], np.float32(9))), PARAMS[1]]
    assert MLP.differences(of(mlp, other, X)) == ["variable '0/1' differs"]


def test_dtypes():
    half = [(w.astype(jnp.bfloat16), b.astype(jnp.bfloat16)) for w, b in PARAMS]
    assert "variable '0/0' differs" in MLP.differences(of(mlp, half, X.astype(jnp.bfloat16)))


def test_arrays_that_the_function_closes_over():
    def closing(w):
        return of(lambda p, x: mlp(p, x) * w, PARAMS, X)

    w = images(4)
    assert closing(w) == closing(w.copy())
    assert len(closing(w).differences(closing(w + 1))) == 1
    assert closing(w).differences(closing(w[::-1].copy())) == ["variable 'const' differs"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (jnp.sin, jnp.cos),
        (lambda x: jnp.sin(jnp.cos(x)), lambda x: jnp.cos(jnp.sin(x))),
        (lambda x: x.sum(1), lambda x: x.max(1)),
        (lambda x: jax.nn.relu(x), lambda x: jax.nn.relu6(x)),
        (lambda x: jnp.clip(x, 0, 5), lambda x: jnp.clip(x, 0, 4)),
        (lambda x: x[:, :2], lambda x: x[:, 1:3]),
        (lambda x: jnp.where(x > 1.5, x, 0.0), lambda x: jnp.where(x > 2.5, x, 0.0)),
        (lambda x: lax.top_k(x, 2)[0], lambda x: lax.top_k(x, 2)[1]),
        (lambda x: jnp.fft.fft(x).real, lambda x: jnp.fft.ifft(x).real),
        (lambda x: x, lambda x: (x, x)),
        (lambda x: x * 2.0, lambda x: x * 3.0),  # folded into the weights
    ],
)
def test_ops_and_attributes(one, other):
    ours = of(lambda p, x: one(x @ p), images(6, 4), X)
    assert ours == of(lambda p, x: one(x @ p), images(6, 4), X)
    assert ours.differences(of(lambda p, x: other(x @ p), images(6, 4), X)) != []


def test_what_is_folded_into_weights():
    """The simplified graphs are the same but for their weights."""
    w = images(6, 6)
    ours = of(lambda p, x: x @ p, w, X)
    assert ours.differences(of(lambda p, x: x @ p.T, w, X)) != []
    assert ours.differences(of(lambda p, x: x @ jnp.abs(p), w, X)) != []


def test_a_convolution_of_other_strides():
    class Net(nn.Module):
        strides: int

        @nn.compact
        def __call__(self, x):
            return nn.Conv(4, (3, 3), self.strides)(x).mean((1, 2))

    x = images(2, 9, 9, 3)
    v = networks.variables(Net(1), x)
    differences = of(Net(1), v, x).differences(of(Net(2), v, x))
    assert "layer 'Net/Conv_0' differs" in differences
    assert not any(line.startswith("variable") for line in differences)


def test_shapes_of_arguments():
    def flat(p, x):
        return x.reshape(x.shape[0], -1) @ p

    w = images(12, 2)
    assert "layer 'input' differs" in of(flat, w, images(8, 3, 4)).differences(of(flat, w, images(8, 4, 3)))


def scanned(body):
    """A scan over data; one over stacked weights is written out."""
    return of(lambda p, x: lax.scan(lambda c, _: (body(c, p), None), x, None, length=2)[0], images(6, 6), X)


def branched(one, other):
    return of(lambda p, x: lax.cond(x.sum() > 0, one, other, x @ p), images(6, 4), X)


def looped(steps, body):
    return of(lambda p, x: lax.fori_loop(0, steps, lambda _, c: body(c), x @ p), images(6, 4), X)


@pytest.mark.parametrize(
    "body",
    [
        lambda c, w: jnp.cos(c @ w),
        lambda c, w: jnp.sin(jnp.sin(c @ w)),
        lambda c, w: jnp.sin(jnp.sin(jnp.sin(jnp.cos(c @ w)))),
        lambda c, w: jnp.sin(c @ w.T),
        lambda c, w: jnp.sin(c) @ w,
        lambda c, w: jnp.sin(c @ w) + 1.0,
        lambda c, w: lax.cond(c.sum() > 0, jnp.sin, jnp.cos, c @ w),
    ],
)
def test_the_body_of_a_scan(body):
    ours = scanned(lambda c, w: jnp.sin(c @ w))
    assert ours == scanned(lambda c, w: jnp.sin(c @ w))
    assert ours.differences(scanned(body)) != []


def test_the_inner_ops_of_one_name_are_told_apart():
    ours = scanned(lambda c, w: jnp.sin(jnp.cos(jnp.sin(c @ w))))
    assert "layer 'cos' differs" in ours.differences(scanned(lambda c, w: jnp.sin(jnp.sin(jnp.cos(c @ w)))))


def test_branches_and_loops():
    ours = branched(jnp.sin, jnp.cos)
    assert ours == branched(jnp.sin, jnp.cos)
    assert "layer 'cond' differs" in ours.differences(branched(jnp.sin, jnp.tanh))
    ours = looped(3, jnp.sin)
    assert ours == looped(3, jnp.sin)
    assert ours.differences(looped(3, jnp.cos)) != []
    assert ours.differences(looped(4, jnp.sin)) != []


def test_arrays_inside_a_body():
    w = images(6)
    ours = scanned(lambda c, m: c @ m + w)
    assert ours == scanned(lambda c, m: c @ m + w.copy())
    assert ours.differences(scanned(lambda c, m: c @ m + (w + 1))) != []
