"""The GPU's kernels behind the nodes of a graph: interpreted, the bits of the reference; networks lower to them."""

import functools

import cheap
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from hypothesis import given, settings
from jax import export
from nodes import convs, int8_node, leaf

import jaxq
import pallas_kernels
from jaxq.backends import choose, pallas
from jaxq.backends.cpu.packing import PackedWeight
from jaxq.backends.pallas import convolutions
from jaxq.graph.evaluate import reference
from jaxq.graph.node import Aval, Dim, Graph, Node, constant

KERNEL = "__gpu$xla.gpu.triton"
DENSE = {"lo": -np.inf, "hi": np.inf}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """The kernels in interpret mode, as the machine has no GPU."""
    for module, name in ((pallas_kernels, "matmul"), (convolutions, "conv")):
        monkeypatch.setattr(module, name, functools.partial(getattr(module, name), interpret=True))


def assert_exact(node, operands, tactics=1):
    assert pallas.supports(node) is None
    expected = cheap.jit(reference(node))(*operands)
    for tactic in (None, *pallas.candidates(node)[:tactics]):
        ours = cheap.jit(pallas.lower(node, tactic))(*operands)
        assert ours.dtype == expected.dtype
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(("residual", "by_row"), [(False, False), (True, False), (True, True)])
def test_dot(residual, by_row):
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (2, 9, 21)).astype(np.uint8)
    weight = rng.integers(-127, 128, (13, 21)).astype(np.int8)
    assert_exact(*int8_node("dot", DENSE, x, weight, (2, 9, 13), "int8", residual, rng, by_row), tactics=2)


@pytest.mark.parametrize(("x_dtype", "y_dtype", "out"), [("int8", "int8", "float32"), ("uint8", "int8", "int8")])
def test_matmul(x_dtype, y_dtype, out):
    """The scores and the outputs of an attention."""
    rng = np.random.default_rng(1)
    x, y = (
        rng.integers(*((-127, 128) if dtype == "int8" else (0, 256)), shape).astype(dtype)
        for dtype, shape in ((x_dtype, (2, 3, 5, 22)), (y_dtype, (2, 3, 9, 22)))
    )
    assert_exact(*int8_node("matmul", DENSE, x, y, (2, 3, 5, 9), out, False, rng))


@settings(max_examples=3, derandomize=True)
@given(convs())
def test_convolutions(case):
    assert_exact(*case)


@pytest.mark.slow
@settings(max_examples=100, derandomize=True)
@given(convs())
def test_many_convolutions(case):
    assert_exact(*case)


def dot(x_shape, residual=None, weight_dtype=np.int8):
    rng = np.random.default_rng(0)
    x, weight = np.zeros(x_shape, np.int8), np.zeros((5, 8), weight_dtype)
    node, operands = int8_node("dot", DENSE, x, weight, (*x_shape[:-1], 5), "int8", residual is not None, rng)
    if residual is not None:
        given = dict(zip(node.roles, operands, strict=True)) | {"residual": jnp.asarray(residual)}
        node = node.with_operands({role: leaf(value) for role, value in given.items()})
        operands = list(given.values())
    return node, operands


def test_a_residual_of_bytes_is_broadcast():
    assert_exact(*dot((4, 3, 8), residual=np.arange(15, dtype=np.int8).reshape(1, 3, 5)))


def test_what_is_left_to_xla():
    node, _ = dot((4, 3, 8), residual=np.zeros((3, 5), np.float32))
    assert "broadcast from floats" in pallas.supports(node)
    node, _ = dot((4, 8))
    symbolic = node.replace(aval=Aval((Dim(1, 0), 5), node.aval.dtype))
    assert "symbolic" in pallas.supports(symbolic)
    assert "no kernel" in pallas.supports(Node("softmax", (), {}, node.aval))
    assert "no kernel" in pallas.supports(Node("dequantize", (), {}, node.aval))  # fused into the float ops around it
    assert "int16" in pallas.supports(dot((4, 8), weight_dtype=np.int16)[0])


# ------------------------------------------------------------------------------------------------------ whole networks


@pytest.fixture
def compiled(monkeypatch):
    """The kernels as they are compiled, after all."""
    monkeypatch.undo()


def cuda(function, *args):
    with pallas_kernels.compat.gpu_target():
        return jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def network(qmodel):
    return lambda params, *args: qmodel.plan.evaluate(params, args, choose)


def test_every_product_of_a_network_is_a_kernel(compiled, small_cnn):
    qmodel = small_cnn.qmodel
    text = cuda(network(qmodel), qmodel.params, small_cnn.x)
    assert KERNEL in text
    assert "stablehlo.convolution" not in text
    assert "stablehlo.dot_general" not in text


@pytest.mark.parametrize("scales", ["tensor", "token"])
def test_an_attention_is_kernels(compiled, scales):
    rng = np.random.default_rng(0)
    params = {name: rng.normal(0, 0.2, (16, 16)).astype(np.float32) for name in "qkvo"}

    def attention(params, x):
        q, k, v = ((x @ params[name]).reshape(*x.shape[:2], 2, 8) for name in "qkv")
        scores = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5)
        return jnp.einsum("bhqk,bkhd->bqhd", scores, v).reshape(x.shape) @ params["o"]

    x = networks.images(2, 6, 16)
    qmodel = jaxq.quantize(attention, params, [x], config=jaxq.QuantConfig(activation_scales=scales))
    assert "stablehlo.dot_general" not in cuda(network(qmodel), qmodel.params, x)


@pytest.fixture(scope="module")
def small():
    """A network with a convolution and a dot, and an input."""
    rng, x = np.random.default_rng(0), networks.images(4, 6, 6, 3)
    params = {"conv": rng.normal(0, 0.3, (3, 3, 3, 8)), "dot": rng.normal(0, 0.3, (8, 5))}
    params = {name: value.astype(np.float32) for name, value in params.items()}

    def function(params, x):
        y = jax.lax.conv_general_dilated(x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.nn.relu(y).mean((1, 2)) @ params["dot"]

    return jaxq.quantize(function, params, [x]), x


def test_weights_are_prepared_once(compiled, small, tmp_path):
    """On a machine with a GPU the parameters hold them so; all else sees the weights of the graph."""
    qmodel, x = small
    packed = pallas.pack(qmodel.plan.gathered, qmodel.plan.graph.params)
    weights = {name: value for name, value in packed.items() if isinstance(value, PackedWeight)}
    for name, weight in weights.items():
        np.testing.assert_array_equal(weight, qmodel.plan.graph.params[name])
        np.testing.assert_array_equal(weight.unpack(), qmodel.plan.graph.params[name])
    conv, dot = sorted(weights.values(), key=lambda weight: -weight.data[0].ndim)
    # Depth in whole copies, of 4 and of 16 bytes; an offset where the input is uint8.
    assert (conv.data[0].shape, conv.data[1], conv.shape) == ((8, 3, 3, 4), None, (3, 3, 3, 8))
    assert (dot.data[0].shape, dot.shape) == ((5, 16), (5, 8))
    np.testing.assert_array_equal(dot.data[1], 128 * np.asarray(dot, np.int32).sum(1))
    packed_model = jaxq.QuantizedModel(packed, qmodel.plan)
    np.testing.assert_array_equal(packed_model(x), qmodel(x))
    np.testing.assert_array_equal(network(qmodel)(packed, x), qmodel(x))
    assert KERNEL in cuda(network(qmodel), packed, x)
    packed_model.save(tmp_path / "net.jaxq")
    np.testing.assert_array_equal(jaxq.load(tmp_path / "net.jaxq")(x), qmodel(x))


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize(
    ("op", "shape", "out"),
    [("dot", (13, 21), (2, 4, 4, 13)), ("conv", (1, 1, 21, 13), (2, 4, 4, 13)), ("conv", (3, 3, 1, 21), (2, 2, 2, 21))],
)
def test_prepared_weights_give_the_same_bits(op, shape, out, dtype):
    rng = np.random.default_rng(2)
    x = rng.integers(*((-127, 128) if dtype == "int8" else (0, 256)), (2, 4, 4, 21)).astype(dtype)
    weight = rng.integers(-127, 128, shape).astype(np.int8)
    ones, groups = (1, 1), 21 if shape[-2] == 1 else 1
    conv = {"strides": ones, "padding": ((0, 0),) * 2, "lhs_dilation": ones, "rhs_dilation": ones, "groups": groups}
    node, operands = int8_node(op, DENSE | (conv if op == "conv" else {}), x, weight, out, "int8", False, rng)
    index = node.roles.index("weight")
    param = constant(weight).replace(name="w")
    graph = Graph((), (node.with_operands(dict(zip(node.roles, node.inputs, strict=True)) | {"weight": param}),))
    prepared = pallas.pack(graph, {"w": weight})["w"]
    assert isinstance(prepared, PackedWeight) == (groups == 1)  # depthwise ones lie as the kernel reads them
    np.testing.assert_array_equal(prepared, weight)
    given = [*operands[:index], prepared, *operands[index + 1 :]]
    expected = cheap.jit(reference(node))(*operands)
    tensor_cores = next(config for config in pallas.candidates(node) if "Mma" in str(config) or groups > 1)
    np.testing.assert_array_equal(cheap.jit(pallas.lower(node, tensor_cores))(*given), expected)
    np.testing.assert_array_equal(cheap.jit(choose(node))(*given), expected)


def test_weights_that_others_read_stay(compiled):
    weight = np.ones((1, 1, 2, 2), np.int8)
    shared = Node("conv", tuple(leaf(weight) for _ in range(2)), {}, Aval((), np.dtype(np.int8)), roles=("x", "weight"))
    param = constant(weight).replace(name="w")
    for inputs, is_packed in (((shared.inputs[0], param), True), ((param, param), False)):
        graph = Graph((), (shared.replace(inputs=inputs),))
        assert isinstance(pallas.pack(graph, {"w": weight})["w"], PackedWeight) == is_packed
    assert not any(
        isinstance(value, PackedWeight) for value in pallas.pack(Graph((), (param,)), {"w": weight}).values()
    )


def test_vmap_of_a_network(compiled, small):
    qmodel, x = small
    stacked = x.reshape(2, 2, *x.shape[1:])
    vmapped = jax.vmap(network(qmodel), (None, 0))
    text = cuda(vmapped, qmodel.params, stacked)
    assert KERNEL in text
    assert "stablehlo.convolution" not in text
    np.testing.assert_array_equal(vmapped(qmodel.params, stacked).reshape(4, -1), qmodel(x))


@pytest.mark.parametrize("platforms", [("cpu", "cuda"), ("cuda", "cpu")])
def test_an_export_holds_the_form_of_each_platform(compiled, small, platforms):
    """Made on a machine without a GPU; what was loaded runs here."""
    qmodel, x = small
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in (KERNEL, "jaxq_region")]
    exported = export.export(jax.jit(qmodel), platforms=platforms, disabled_checks=checks)(x)
    assert KERNEL in exported.mlir_module()
    np.testing.assert_array_equal(exported.call(x), qmodel(x))


def test_an_export_of_any_batch_has_no_kernels(compiled, small):
    qmodel, x = small
    batch = export.symbolic_shape("b")[0]
    shape = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
    exported = export.export(jax.jit(qmodel), platforms=("cpu", "cuda"))(shape)
    assert KERNEL not in exported.mlir_module()
    np.testing.assert_array_equal(exported.call(x[:3]), qmodel(x[:3]))
