"""What is no plan is a PlanError: bytes changed anywhere, and headers that are well formed but wrong."""

import copy
import random

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from networks import SmallCNN, images, variables

import jaxq
from jaxq import backends
from jaxq.backends.tactics import XLA
from jaxq.plan.artifact import PLAN_FILE
from jaxq.plan.tactics import Tactics

VALUES = (
    None,
    True,
    -1,
    0,
    1,
    7,
    2**31,
    10**30,
    -0.5,
    1e308,
    "",
    "conv",
    "input",
    "$float",
    "\x00",
    [],
    [0],
    [[]],
    {},
    {"a": 1},
)


class Attention(nn.Module):
    """The ops that a convolutional network lacks, a loop among them."""

    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        x = nn.RNN(nn.SimpleCell(8))(nn.gelu(nn.Dense(8)(x)))
        return jnp.sort(x), x[:, jnp.array([1, 0])], nn.max_pool(nn.Dense(4)(x), (2,))


@pytest.fixture(scope="module")
def saved(request, tmp_path_factory):
    model, shape, rules = request.param
    x = images(*shape)
    path = tmp_path_factory.mktemp("fuzz") / "net.jaxq"
    qmodel = jaxq.quantize(model, variables(model, x), [x], config=jaxq.QuantConfig(method="mse", rules=rules))
    products = [node.name for node in qmodel.plan.graph.nodes if backends.candidates(node)]
    qmodel.with_tactics(Tactics("a device", dict.fromkeys(products, XLA))).save(path)
    return path


CNN = SmallCNN(), (2, 8, 8, 3), ()
ATTENTION = Attention(), (4, 5, 8), ()


class Decoder(nn.Module):
    """Weight-only dots of both widths, with all that their epilogue can hold."""

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.Dense(9, name="int4")(x))
        return x + nn.Dense(x.shape[-1], name="int8")(y)


WEIGHT_ONLY = (
    Decoder(),
    (4, 35),
    (jaxq.LayerRule("int4", weight_only=True, weight_bits=4), jaxq.LayerRule("int8", weight_only=True)),
)


def places(value, path=()):
    """The path of every value inside a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def mutated(header, rng):
    """The header with one to three of its values replaced, dropped, doubled or exchanged."""
    header = copy.deepcopy(header)
    for _ in range(rng.randint(1, 3)):
        *path, last = rng.choice([path for path in places(header) if path])
        holder = header
        for key in path:
            holder = holder[key]
        other = rng.choice(list(holder if isinstance(holder, dict) else range(len(holder))))
        match rng.randrange(4):
            case 0:
                holder[last] = rng.choice(VALUES)
            case 1:
                del holder[last]
            case 2:
                holder[last] = copy.deepcopy(holder[other])
            case 3:
                holder[last], holder[other] = holder[other], holder[last]
    return header


def check_headers(path, tmp_path, count, seed):
    """Each is refused, or is a plan that can be looked at. (The digests are right: only the content is wrong.)"""
    header, arrays = PLAN_FILE.read(path)
    header = {key: value for key, value in header.items() if key not in ("schema", "sha256")}
    rng, refused = random.Random(seed), 0
    for _ in range(count):
        PLAN_FILE.write(tmp_path / "net.jaxq", mutated(header, rng), arrays)
        try:
            assert str(jaxq.load(tmp_path / "net.jaxq").summary())
        except jaxq.PlanError as error:
            assert "net.jaxq" in str(error)
            refused += 1
    assert refused > count / 2


def check_bytes(path, tmp_path, count, seed):
    """Bytes flipped, cut out, doubled or overwritten: refused, or of no consequence."""
    data, rng = path.read_bytes(), random.Random(seed)
    expected = {name: np.asarray(value) for name, value in PLAN_FILE.read(path)[1].items()}
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            # The beginning holds the sizes and the header.
            at = rng.randrange(len(changed)) if rng.random() < 0.5 else rng.randrange(min(len(changed), 4096))
            match rng.randrange(4):
                case 0:
                    changed[at] ^= 1 << rng.randrange(8)
                case 1:
                    del changed[at : at + rng.randint(1, 64)]
                case 2:
                    changed[at:at] = changed[at : at + rng.randint(1, 64)]
                case 3:
                    changed[at : at + 8] = rng.randbytes(8)
        (tmp_path / "net.jaxq").write_bytes(changed)
        try:
            _, arrays = PLAN_FILE.read(tmp_path / "net.jaxq")
        except jaxq.PlanError:
            continue
        for name, value in expected.items():
            np.testing.assert_array_equal(arrays[name], value)


@pytest.mark.parametrize("saved", [CNN, WEIGHT_ONLY], ids=["cnn", "weight_only"], indirect=True)
def test_a_few_mutations(saved, tmp_path):
    check_headers(saved, tmp_path, 150, seed=0)
    check_bytes(saved, tmp_path, 300, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("saved", [CNN, ATTENTION, WEIGHT_ONLY], ids=["cnn", "attention", "weight_only"], indirect=True)
@pytest.mark.parametrize("part", range(1, 11))
def test_twenty_thousand_mutations(saved, tmp_path, part):
    check_headers(saved, tmp_path, 500, part)
    check_bytes(saved, tmp_path, 500, part)
