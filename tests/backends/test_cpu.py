"""Whole networks on the CPU's kernels: transforms of JAX, blocks of a batch, threads; programs of other versions."""

import threading

import cheap
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cpu_nodes import calls

from jaxq.backends import choose, cpu
from jaxq.backends.cpu import blocks, program
from jaxq.graph.node import Aval, Dim, Graph, Node

pytestmark = pytest.mark.skipif(cpu.available() is not None, reason=str(cpu.available()))


def test_vmap_makes_one_larger_batch(small_cnn):
    qmodel, x = small_cnn.qmodel, np.stack([small_cnn.x, small_cnn.x[::-1]])
    batched = jax.vmap(qmodel)
    assert len(calls(batched, x)) == len(calls(qmodel, x[0]))
    np.testing.assert_array_equal(jax.jit(batched)(x), [qmodel(x[0]), qmodel(x[1])])


@pytest.mark.parametrize("batch", [2, 6, 7])
def test_blocks_of_a_batch(small_cnn, monkeypatch, batch):
    """Every way to cut the batch gives the same bits."""
    qmodel = small_cnn.qmodel
    x = np.concatenate([small_cnn.x, small_cnn.x[::-1]])[:batch]
    found = []
    for size in (n for n in range(1, batch + 1) if batch % n == 0):
        monkeypatch.setattr(program, "block_size", lambda *_, size=size: size)
        run = jax.jit(lambda params, x: qmodel.plan.evaluate(params, (x,), choose))
        programs = [dict(call.params["attributes"])["program"].val for call in calls(run, qmodel.params, x)]
        assert {int(numbers[3]) for numbers in programs} == {batch // size}
        found.append(run(qmodel.params, x))
    for y in found:
        np.testing.assert_array_equal(y, qmodel(x))


def test_what_is_cut_into_blocks():
    assert blocks.block_size(32, 1 << 20, threads=2) == 4
    assert blocks.block_size(8, 1, threads=2) == 4  # a block for each thread
    assert blocks.block_size(7, 1 << 30, threads=2) == 7  # unevenly, not at all
    assert blocks.block_size(15, 1 << 20, threads=2) == 1  # 15 blocks are nearly even
    assert blocks.block_size(8, 1, threads=16) == 8

    def batch_of(function, *shapes):
        def graph(batch):
            avals = [Aval(tuple(batch if d == "b" else d for d in shape), np.dtype(np.int8)) for shape in shapes]
            inputs = [Node("input", (), {}, aval, f"x{i}") for i, aval in enumerate(avals)]
            return Graph(tuple(inputs), (function(batch, *inputs),))

        return blocks.batch_of(graph(Dim(1, 0)), graph(6))

    def moved(op, shape, **attrs):
        return lambda batch, *inputs: Node(
            op, inputs, attrs, Aval(tuple(batch if d == "b" else d for d in shape), np.dtype(np.int8)), op
        )

    assert batch_of(moved("concatenate", ("b", 8), dimension=1), ("b", 3), ("b", 5)) == 6
    assert batch_of(moved("transpose", ("b", 5, 3), permutation=(0, 2, 1)), ("b", 3, 5)) == 6
    assert batch_of(moved("transpose", (3, "b"), permutation=(1, 0)), ("b", 3)) == 1
    assert batch_of(moved("slice", (1, 3), start_indices=(0, 0), limit_indices=(1, 3)), ("b", 3)) == 1

    def twice(batch, x):
        size = Dim(2, 0) if isinstance(batch, Dim) else 2 * batch
        return Node("concatenate", (x, x), {"dimension": 0}, Aval((size, 3), np.dtype(np.int8)), "twice")

    assert batch_of(twice, ("b", 3)) == 1  # each of its halves holds all examples


def test_weights_of_their_own_for_every_example(small_cnn):
    qmodel, x = small_cnn.qmodel, small_cnn.x
    two = jax.tree.map(lambda a: np.stack([a, a]), qmodel.params)
    found = cheap.jit(jax.vmap(qmodel.apply, (0, None)))(two, x)
    np.testing.assert_array_equal(found, [qmodel(x)] * 2)


def test_weights_that_are_not_packed(small_cnn):
    plain = {name: jnp.asarray(np.asarray(value)) for name, value in small_cnn.qmodel.params.items()}
    np.testing.assert_array_equal(small_cnn.qmodel.apply(plain, small_cnn.x), small_cnn.qmodel(small_cnn.x))


def test_many_threads(small_cnn):
    qmodel, x = small_cnn.qmodel, small_cnn.x
    expected, wrong = np.asarray(qmodel(x)), []

    def work():
        for _ in range(20):
            if not np.array_equal(qmodel(x), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Version, arena, helpers, blocks, number of steps, the step of the only result, operations.
PROGRAMS = (
    [],
    [program.VERSION + 1, 0, 0, 1, 1, 0, 0],
    [program.VERSION, 0, 0, 1, 1, 0, 1],
    [program.VERSION, 0, 0, 1, 1, 0, 1, 99],
    [program.VERSION, 64, 0, 1, 1, 0, 1, 7, 5, 5, 9, 0],
    [program.VERSION, 0, 0, 0, 1, 0, 0],
    [program.VERSION, 0, 0, 1, 2, 0, 0, 0],
    [program.VERSION, 0, 0, 1, 2**40, 0],
    [program.VERSION, 0, 0, 2, 1, 3, 0],
    [program.VERSION, 0, 0, 2, 1, -1, 0],
)


@pytest.mark.parametrize("numbers", PROGRAMS)
def test_a_foreign_program_is_an_error(numbers):
    call = jax.ffi.ffi_call(cpu.library.TARGET, [jax.ShapeDtypeStruct((4,), np.int8)])
    with pytest.raises(jax.errors.JaxRuntimeError, match="jaxq: the program"):
        jax.block_until_ready(jax.jit(lambda x: call(x, program=np.asarray(numbers, np.int64)))(jnp.zeros(4, jnp.int8)))
