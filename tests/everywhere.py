"""A quantized model's bits by each backend, by the definition of its nodes, in NumPy, and from a file."""

import cheap
import jax
import numpy as np

import jaxq
from jaxq.backends import xla
from jaxq.cli.probe import differences, probe


def check(qmodel, x, folder) -> None:
    """Asserts that they are the same; the model has no float nodes."""
    served = np.asarray(qmodel(x))
    np.testing.assert_array_equal(cheap.oracle(qmodel, x), served)
    by_xla = jax.jit(lambda params, x: qmodel.plan.evaluate(params, (x,), xla.lower))
    np.testing.assert_array_equal(by_xla(qmodel.params, x), served)
    assert list(differences(*probe(qmodel.plan, len(x), (x,)))) == []
    qmodel.save(folder / "net.jaxq")
    np.testing.assert_array_equal(jaxq.load(folder / "net.jaxq")(x), served)
