"""Imports run one way: each package imports only those before it."""

import ast
import re
from pathlib import Path

import jaxq
import pallas_kernels

ORDER = (
    ("errors", "files", "numerics", "trees", "version"),
    ("config", "models"),
    ("graph",),
    ("calibration",),
    ("passes",),
    ("refine",),
    ("report",),
    ("backends",),
    ("plan",),
    ("qmodel",),
    ("attribution", "tuning"),
    ("build", "retune"),
    ("accuracy", "qat"),
    ("api",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
ROOT = Path(jaxq.__file__).parent


def imported(path):
    """The dotted names that a file imports, the names in `from a import b` as a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts(path):
    return path.relative_to(ROOT).with_suffix("").parts


def test_imports_run_one_way():
    for path in ROOT.rglob("*.py"):
        ours = LEVEL[parts(path)[0]]
        for name in imported(path):
            if name.split(".")[0] == "jaxq":
                theirs = name.split(".")[1] if "." in name else "__init__"
                assert theirs in LEVEL, f"{path} imports {name}: not in ORDER"
                assert LEVEL[theirs] <= ours, f"{path} imports {name}"


def test_flax_is_never_imported_and_optax_where_it_trains():
    for path in ROOT.rglob("*.py"):
        found = {name.split(".")[0] for name in imported(path)} & {"flax", "optax"}
        assert found == ({"optax"} if parts(path) == ("refine", "polish") else set()), path


def test_only_trace_and_its_table_read_jaxprs():
    for path in ROOT.rglob("*.py"):
        if parts(path) not in (("graph", "trace"), ("graph", "primitives")):
            assert not any(name.startswith("jax.extend.core") for name in imported(path)), path


def test_pallas_kernels_know_nothing_of_jaxq():
    for path in Path(pallas_kernels.__file__).parent.rglob("*.py"):
        assert not any(name.split(".")[0] == "jaxq" for name in imported(path)), path


def test_nothing_unpickles():
    for path in ROOT.rglob("*.py"):
        assert not any(name.split(".")[0] in ("pickle", "marshal", "shelve", "dill") for name in imported(path)), path


def test_rounding_lives_in_numerics():
    for path in ROOT.rglob("*.py"):
        # The replay is the second opinion on numerics, so it rounds by itself.
        if parts(path) not in (("numerics",), ("graph", "primitives"), ("graph", "replay")):
            text = path.read_text()
            assert not re.search(r"\b(round|rint)\(", text), path


def test_files_stay_small():
    for path in ROOT.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 420, path
