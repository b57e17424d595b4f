"""Files for the commands: a small network's, and variations of it."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from networks import images, mlp, mlp_params

import jaxq
from jaxq.plan import artifact


def cnn(params, x):
    """Convolutions of three kinds, branches that merge, a residual, pools and a dense head."""
    y = jax.nn.relu6(conv(x, params["stem"], 2))
    z = jax.nn.relu6(conv(y, params["depthwise"], 1, groups=6))
    z = jax.nn.relu(y + conv(z, params["pointwise"], 1))
    z = jnp.concatenate([jax.nn.relu(conv(z, params["left"], 1)), conv(z, params["right"], 1)], -1)
    z = lax.reduce_window(z, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")
    return jnp.mean(z, (1, 2)) @ params["head"]


def conv(x, weight, stride, groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, weight, (stride,) * 2, "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


def cnn_params():
    rng = np.random.default_rng(0)
    shapes = {
        "stem": (3, 3, 3, 6),
        "depthwise": (3, 3, 1, 6),
        "pointwise": (1, 1, 6, 6),
        "left": (3, 3, 6, 4),
        "right": (3, 3, 6, 4),
        "head": (8, 5),
    }
    return {k: (rng.normal(size=s) * np.sqrt(2 / np.prod(s[:-1]))).astype(np.float32) for k, s in shapes.items()}


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Paths of .jaxq files by what is in them: a perceptron of two layers, variations of it, and a small
    convolutional network; `exact` is the function of the last in float, `folder` a place for more."""
    folder = tmp_path_factory.mktemp("cli")
    params, x = mlp_params(6, 5, 4), images(8, 6)

    def saved(name, fun, params, x, **choices):
        path = str(folder / f"{name}.jaxq")
        jaxq.quantize(fun, params, [x], config=jaxq.QuantConfig(method="mse", **choices)).save(path)
        return path

    found = {
        "mlp": saved("mlp", mlp, params, x),
        "other_data": saved("other_data", mlp, params, x * np.float32(1.5)),
        "float_head": saved("float_head", mlp, params, x, rules=(jaxq.LayerRule("^1$", quantize=False),)),
        "narrow": saved("narrow", mlp, mlp_params(6, 5, 3), x),
        "cnn": saved("cnn", cnn, cnn_params(), images(4, 9, 8, 3)),
        "two_weights": str(folder / "two_weights.jaxq"),
    }
    plan, arrays = artifact.load(found["mlp"])
    changed = np.array(arrays["0/weight"])
    changed.flat[[0, 3]] ^= 1
    artifact.save(found["two_weights"], plan, {**arrays, "0/weight": changed})
    return SimpleNamespace(**found, folder=folder, exact=jax.jit(functools.partial(cnn, cnn_params())))
