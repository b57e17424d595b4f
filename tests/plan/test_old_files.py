"""Plans that earlier versions wrote load, and give the bits that they gave there.

Each file in `files` holds convolutions, a residual, a concatenation, a pool and a dense head, in int8 from the first to
the last; that of schema 2 an approximate top-k behind them, in StableHLO. Beside it lie an input and its result. A new
schema adds a file of its own, and none is ever written anew.
"""

from pathlib import Path

import numpy as np
import pytest

import jaxq
from jaxq.plan.artifact import PLAN_FILE

FILES = sorted((Path(__file__).parent / "files").glob("*.jaxq"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_old_file_gives_its_bits(path, tmp_path):
    with np.load(path.with_suffix(".npz")) as arrays:
        x, y = arrays["x"], arrays["y"]
    qmodel = jaxq.load(path, trusted=True)
    np.testing.assert_array_equal(qmodel(x), y)
    assert {row.op for row in qmodel.summary().nodes if row.precision == "float"} <= {"approx_top_k"}
    qmodel.save(tmp_path / "again.jaxq")
    np.testing.assert_array_equal(jaxq.load(tmp_path / "again.jaxq", trusted=True)(x), y)


def test_there_is_a_file_of_every_schema():
    assert {PLAN_FILE.read(path)[0]["schema"] for path in FILES} == set(range(1, PLAN_FILE.schema + 1))
