"""Padding with a number beside the CPU's kernels: the reference's bits."""

import cheap
import jax
import numpy as np
import pytest
from cpu_nodes import check, integers, source
from networks import images

import jaxq
from jaxq.backends import cpu
from jaxq.backends.cpu.takes import why_not
from jaxq.graph.node import Aval, Node, QType, constant

pytestmark = pytest.mark.skipif(cpu.available() is not None, reason=str(cpu.available()))


PADDINGS = {
    "around": ((0, 0, 0), (1, 2, 0), (0, 1, 0), (0, 0, 0)),
    "between": ((0, 0, 0), (1, 0, 1), (2, 1, 2), (0, 0, 0)),
    "channels": ((0, 0, 0), (0, 1, 0), (0, 0, 0), (3, 1, 1)),
    "none": ((0, 0, 0),) * 4,
}


def padded(x, config, value):
    """The operand, and the node that pads it."""
    shape = tuple(lo + hi + n + (n - 1) * gap for n, (lo, hi, gap) in zip(x.shape, config, strict=True))
    inputs = (source(x), constant(np.array(value, x.dtype)))
    qtype = QType(x.dtype.name, 1.0, value if x.dtype == np.uint8 else 0)
    return Node("pad", inputs, {"padding_config": config}, Aval(shape, x.dtype), "pad", qtype=qtype)


@pytest.mark.parametrize("config", PADDINGS.values(), ids=PADDINGS)
def test_padding_with_a_number(every_node_is_a_region, config):
    """By itself, moved before and behind, and into channels of a concatenation."""
    rng = np.random.default_rng(0)
    for dtype, value in (("uint8", 23), ("int8", 0), ("int8", -127)):
        x = integers(rng, (2, 5, 4, 6), dtype)
        pad = padded(x, config, value)
        check(pad, {"x": x})
        n, h, w, c = pad.aval.shape
        beside = source(integers(rng, (n, h, w, 3), dtype), "beside")
        aval = Aval((n, h, w, c + 3), pad.aval.dtype)
        joined = Node("concatenate", (pad, beside), {"dimension": 3}, aval, "joined", qtype=pad.qtype)
        check(joined, {"x": x, "beside": integers(rng, beside.aval.shape, dtype)})
        qtype, order = pad.qtype, (0, 2, 1, 3)
        turned = Node(
            "transpose", (source(x),), {"permutation": order}, Aval((2, 4, 5, 6), x.dtype), "turned", (), qtype
        )
        behind = pad.replace(inputs=(turned, pad.inputs[1]), aval=Aval((n, w, h, c), x.dtype))
        check(behind.with_attrs(padding_config=tuple(config[i] for i in order)), {"x": x})


def test_what_pads_otherwise_is_xlas():
    x = np.zeros((2, 5, 4, 6), np.int8)
    around = PADDINGS["around"]
    assert why_not(padded(x, around, 0)) is None
    assert why_not(padded(x.astype(np.float32), around, 0)) == "it pads floats"
    assert "crops" in why_not(padded(x, ((0, 0, 0), (-1, 2, 0), *around[2:]), 0))
    assert "batch" in why_not(padded(x, ((1, 0, 0), *around[1:]), 0))
    assert "not constant" in why_not(padded(x, around, 0).replace(inputs=(source(x), source(np.int8(0), "value"))))


def test_a_region_holds_its_padding():
    """A convolution behind a skewed function, whose zeros are another integer."""
    params = {name: images(3, 3, 8, 8, seed=i) / np.float32(8) for i, name in enumerate("abc")}

    def conv(x, weight):
        return jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def fun(params, x):
        return conv(jax.nn.silu(conv(jax.nn.silu(conv(x, params["a"])), params["b"])), params["c"])

    x = images(4, 9, 7, 8)
    qmodel = jaxq.quantize(fun, params, [x], config=jaxq.QuantConfig(method="mse"))
    assert [node.op for node in qmodel.plan.graph.nodes].count("pad") == 2
    gathered = [node.op for node in qmodel.plan.gathered.nodes if node.op not in ("param", "const", "input")]
    assert gathered == ["region", "item"]
    np.testing.assert_array_equal(qmodel(x), cheap.oracle(qmodel, x))
