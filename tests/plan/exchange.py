"""Plans from one Python and JAX to another: `exchange.py write FOLDER` in one, `exchange.py check FOLDER` in the other.

Convolutions, a residual, branches, a pool and a dense head, in int8 from the first to the last, and behind them a top-k
in StableHLO: the bits are the same.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from networks import SmallCNN, images, variables

import jaxq

BATCHES = (8, 1, 2, 3, 32)


def write(folder: Path) -> None:
    """A plan and its results."""
    folder.mkdir()
    model, x = SmallCNN(), images(max(BATCHES), 12, 12, 3)

    def network(params, x):
        return jax.lax.approx_max_k(model.apply(params, x), 5)

    qmodel = jaxq.quantize(network, variables(model, x), [x[:8]])
    qmodel.save(folder / "net.jaxq")
    np.savez(folder / "results.npz", **{str(size): qmodel(x[:size])[0] for size in BATCHES})


def check(folder: Path) -> None:
    """The plan has these results here, at all batch sizes; it was calibrated at the first."""
    x, qmodel = images(max(BATCHES), 12, 12, 3), jaxq.load(folder / "net.jaxq", trusted=True)
    with np.load(folder / "results.npz") as results:
        for size in BATCHES:
            np.testing.assert_array_equal(qmodel(x[:size])[0], results[str(size)])


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]))
    print(f"{sys.argv[1]}: fine with Python {sys.version.split()[0]}, jax {jax.__version__}")
