"""One of two processes that calibrate together; test_distributed.py starts both and reads what each leaves in a folder.

    python processes.py PORT INDEX FOLDER

Both take the scenarios in the same order. Each has two devices, and batches of its own: three of eight examples in
process 0, two in process 1.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from networks import images, mlp, mlp_params

import jaxq

BATCHES = ([images(8, 6, seed=i) for i in (0, 1, 2)], [images(8, 6, seed=i) for i in (3, 4)])
NAN = np.full((8, 6), np.nan, np.float32)


def broken_loader():
    yield images(8, 6)
    raise OSError("the disk is gone")


def calibrate(index, mesh, batches=None, seed=0, method="auto", **options):
    batches = BATCHES[index] if batches is None else batches
    config = jaxq.QuantConfig(method=method)
    return jaxq.calibrate(mlp, mlp_params(6, 16, 3, seed=seed), batches, mesh=mesh, config=config, **options)


SCENARIOS = {
    "together": lambda i, mesh: calibrate(i, mesh),
    "alone": lambda i, mesh: calibrate(i, mesh.local_mesh),
    "nan": lambda i, mesh: calibrate(i, mesh, [*BATCHES[i], NAN] if i == 1 else None),
    "nan first": lambda i, mesh: calibrate(i, mesh, [NAN] if i == 0 else None),
    "empty": lambda i, mesh: calibrate(i, mesh, iter(()) if i == 1 else None),
    "all empty": lambda i, mesh: calibrate(i, mesh, iter(())),
    "loader": lambda i, mesh: calibrate(i, mesh, broken_loader() if i == 0 else None),
    "networks": lambda i, mesh: calibrate(i, mesh, seed=i),
    "configs": lambda i, mesh: calibrate(i, mesh, method=("auto", "mse")[i]),
    "settled": lambda i, mesh: calibrate(i, mesh, until="settled"),
    "together again": lambda i, mesh: calibrate(i, mesh),
}


def main(port, index, folder):
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))
    outcomes = {}
    for name, scenario in SCENARIOS.items():
        try:
            scenario(index, mesh).save(folder / f"{name} {index}")
            outcomes[name] = "finished"
        except Exception as error:
            outcomes[name] = f"{type(error).__name__}: {error}"
    (folder / f"outcomes {index}").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
