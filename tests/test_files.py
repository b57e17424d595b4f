"""What every kind of file holds, and the errors for what it cannot."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxq import files
from jaxq.errors import CalibrationError, PlanError

KINDS = [
    files.FileKind(key="jaxq-test", noun="test", schema=1, error=CalibrationError),
    files.FileKind(key="jaxq-test", noun="test", schema=1, error=PlanError),
]


@pytest.mark.parametrize("dtype", files._DTYPES)
def test_every_dtype_that_a_file_holds(tmp_path, dtype):
    array = np.arange(6).reshape(2, 3).astype(jnp.dtype(dtype))
    KINDS[0].write(tmp_path / "file", {}, {"a": array})
    (back,) = KINDS[0].read(tmp_path / "file")[1].values()
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.error.__name__)
@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4, np.complex128])
def test_a_dtype_that_a_file_cannot_hold(tmp_path, kind, dtype):
    with pytest.raises(kind.error, match=f"test: array 'b' is {np.dtype(dtype)}, which a file cannot hold"):
        kind.write(tmp_path / "file", {}, {"a": np.zeros(3), "b": np.zeros(3, dtype)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.error.__name__)
def test_a_file_with_a_dtype_that_numpy_lacks(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(files, "_DTYPES", ("float8_e4m3fn",))
    kind.write(tmp_path / "file", {}, {"a": np.zeros(3, ml_dtypes.float8_e4m3fn)})
    with pytest.raises(kind.error, match="file: holds an array of a dtype that numpy lacks: .*float8_e4m3fn"):
        kind.read(tmp_path / "file")
