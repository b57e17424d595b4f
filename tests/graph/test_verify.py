"""What is no legal graph is a ValueError that names the node and what is wrong with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import images

import jaxq
from jaxq.graph.node import LAYOUT, Graph, Node, QType, constant
from jaxq.graph.ops import OPS, wrong_attribute
from jaxq.graph.primitives import BY_NAME
from jaxq.graph.verify import verify


@pytest.fixture(scope="module")
def graph():
    def fun(params, x):
        y = jax.nn.relu(jax.lax.conv_general_dilated(x, params["kernel"], (1, 1), "SAME"))
        y = jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        return jnp.sort(y.reshape(-1, 64) @ params["head"])

    params = {"kernel": images(4, 3, 3, 3), "head": images(64, 5)}
    return jaxq.quantize(fun, params, [images(2, 3, 8, 8)], config=jaxq.QuantConfig(method="mse")).plan.graph


def only(graph, op):
    return next(node for node in graph.nodes if node.op == op)


def changed(graph, node, **changes):
    """The graph with the node changed."""
    return graph.map(lambda other: other.replace(**changes) if other.name == node.name else other)


def test_every_attribute_of_a_plan_is_needed(graph):
    assert verify(graph, "quantized") is graph
    for node in graph.nodes:
        for name in node.attrs:
            less = node.replace(attrs={key: value for key, value in node.attrs.items() if key != name})
            assert wrong_attribute(less) == f"lacks {name!r}"


def test_every_attribute_has_a_kind():
    for op, has in {**OPS, **BY_NAME}.items():
        node = Node(op, (), dict.fromkeys(has.attrs, b"no attribute"), None)
        free = {"value", "primitive", "params"}
        assert wrong_attribute(node) is None if set(has.attrs) <= free else wrong_attribute(node).startswith("has ")


def test_operands_that_belong_together(graph):
    """A residual and its multiplier; and each role is one operand's."""
    conv = only(graph, "conv")
    residual = constant(np.float32(1))
    for roles in (("residual",), ("bias",)):
        with pytest.raises(ValueError, match="lacks an operand"):
            verify(changed(graph, conv, inputs=(*conv.inputs, residual), roles=(*conv.roles, *roles)), "quantized")
    both = changed(
        graph, conv, inputs=(*conv.inputs, residual, residual), roles=(*conv.roles, "residual", "residual_multiplier")
    )
    assert verify(both, "quantized") is both


@pytest.mark.parametrize(
    ("op", "attrs", "says"),
    [
        ("conv", {"strides": (1, 1.0)}, "has strides=(1, 1.0)"),
        ("conv", {"groups": True}, "has groups=True"),
        ("conv", {"padding": ((1, 1), (1,))}, "has padding=((1, 1), (1,))"),
        ("conv", {"precision": ("HIGHEST", "LOW")}, "has precision=('HIGHEST', 'LOW')"),
        ("conv", {"lo": 1e300}, "has lo=1e+300"),
        ("sort", {"is_stable": 1}, "has is_stable=1"),
        ("sort", {"dim": 1}, "has an attribute 'dim' that is none of its op"),
        ("reduce_window_max", {"base_dilation": None}, "has base_dilation=None"),
    ],
)
def test_an_attribute_of_another_kind(graph, op, attrs, says):
    node = only(graph, op)
    with pytest.raises(ValueError) as caught:
        verify(changed(graph, node, attrs={**node.attrs, **attrs}), "quantized")
    assert says in str(caught.value) and node.name in str(caught.value)


@pytest.fixture(scope="module", params=[8, 4])
def weight_only(request):
    config = jaxq.QuantConfig(weight_only=True, weight_bits=request.param, group_size=16)
    fun = lambda params, x: x @ params["a"] + params["b"]  # noqa: E731
    return jaxq.quantize(fun, {"a": images(35, 6), "b": images(6)}, [images(2, 35)], config=config).plan.graph


@pytest.mark.parametrize(
    ("role", "array"),
    [
        *(("weight", np.zeros(shape, dtype)) for shape in ((6, 35), (6, 18)) for dtype in (np.float32, np.int16)),
        *(("weight", np.zeros(shape, np.int8)) for shape in ((6, 36), (6, 18), (35, 6), (7, 35), (210,))),
        *(("weight", np.zeros(shape, np.uint8)) for shape in ((6, 35), (6, 17), (5, 18), (6, 18, 1))),
        *(("scale", np.ones(shape, np.float32)) for shape in ((6, 2), (6, 4), (3, 6), (6,), (6, 1))),
        ("scale", np.ones((6, 3), np.float16)),
        ("bias", np.ones((5,), np.float32)),
        ("bias", np.ones((6,), np.int32)),
    ],
)
def test_arrays_of_other_groups(weight_only, role, array):
    assert verify(weight_only, "quantized") is weight_only
    node = only(weight_only, "weight_only_dot")
    other = constant(array, f"{node.name}/{role}")
    inputs = tuple(other if given == role else source for given, source in zip(node.roles, node.inputs, strict=True))
    with pytest.raises(ValueError, match="weight, scales or a bias that do not fit its groups and channels"):
        verify(changed(weight_only, node, inputs=inputs), "quantized")


@pytest.mark.parametrize(
    "attrs", [{"bits": 2}, {"bits": True}, {"group_size": 0}, {"group_size": 8}, {"group_size": "1"}]
)
def test_groups_that_are_none(weight_only, attrs):
    node = only(weight_only, "weight_only_dot")
    ((name, value),) = attrs.items()
    with pytest.raises(ValueError, match=f"has {name}={value!r}"):
        verify(changed(weight_only, node, attrs={**node.attrs, **attrs}), "quantized")


def test_a_weight_only_dot_is_none_of_a_float_graph(weight_only):
    with pytest.raises(ValueError, match="is an int8 op in a float graph"):
        verify(weight_only, "float")


@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf, np.nan, 1, None, "1", np.ones((2, 2))])
def test_a_scale_that_is_none(graph, scale):
    node = only(graph, "quantize")
    with pytest.raises(ValueError, match="has a scale that is no positive number"):
        verify(changed(graph, node, qtype=QType("int8", scale)), "quantized")


def test_a_scale_of_another_dtype(graph):
    node = only(graph, "quantize")
    with pytest.raises(ValueError, match="or is of another dtype"):
        verify(changed(graph, node, qtype=QType("uint8", 1.0)), "quantized")


def test_an_op_that_is_none(graph):
    with pytest.raises(ValueError, match="is no op that jaxq knows"):
        verify(changed(graph, only(graph, "sort"), op="import os"), "quantized")


def test_the_stage(graph):
    with pytest.raises(ValueError, match="in a float graph"):
        verify(graph, "float")


def test_two_nodes_of_one_name(graph):
    same = graph.map(lambda node: node if node.is_constant else node.replace(name="same"))
    with pytest.raises(ValueError, match="shares its name with another node"):
        verify(Graph(same.inputs, same.outputs), "quantized")


def test_what_moves_integers_keeps_their_zero_point(graph):
    moved = next(node for node in graph.nodes if node.op in LAYOUT and node.qtype is not None)
    other = QType(moved.qtype.dtype, moved.qtype.scale, 3)
    with pytest.raises(ValueError, match=f"{moved.name}.*moves integers of another zero point"):
        verify(changed(graph, moved, qtype=other), "quantized")
