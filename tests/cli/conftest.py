"""Files for the commands: a small network's, and variations of it."""

from functools import cached_property

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


class Files:
    """Paths of .jaxq files by what is in them, each made when a test asks for it."""

    def __init__(self, folder):
        self.folder = folder
        self.params, self.x = mlp_params(6, 5, 4), images(8, 6)

    def saved(self, name, fun, params, x, **choices):
        path = str(self.folder / f"{name}.jaxq")
        jaxq.quantize(fun, params, [x], config=jaxq.QuantConfig(method="mse", **choices)).save(path)
        return path

    @cached_property
    def mlp(self):
        """A perceptron of two layers."""
        return self.saved("mlp", mlp, self.params, self.x)

    @cached_property
    def other_data(self):
        return self.saved("other_data", mlp, self.params, self.x * np.float32(1.5))

    @cached_property
    def float_head(self):
        return self.saved("float_head", mlp, self.params, self.x, rules=(jaxq.LayerRule("^1$", quantize=False),))

    @cached_property
    def int4(self):
        return self.saved("int4", mlp, self.params, self.x, weight_only=True, weight_bits=4)

    @cached_property
    def narrow(self):
        return self.saved("narrow", mlp, mlp_params(6, 5, 3), self.x)

    @cached_property
    def two_weights(self):
        """The perceptron with two bytes of its first layer's weights changed."""
        plan, arrays = artifact.load(self.mlp)
        weight = np.array(arrays["0/weight"])
        weight.flat[[0, 3]] ^= 1
        path = str(self.folder / "two_weights.jaxq")
        artifact.save(path, plan, {**arrays, "0/weight": weight})
        return path

    @cached_property
    def cnn(self):
        """A small convolutional network, whose function in float is `exact`."""
        return self.saved("cnn", cnn, cnn_params(), images(4, 9, 8, 3))

    exact = staticmethod(jax.jit(lambda x: cnn(cnn_params(), x)))


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    return Files(tmp_path_factory.mktemp("cli"))
