"""The `.jaxq` file: the plan as JSON in the header, the tactics in a section of their own; its parameters by name, and
what else the graph holds of arrays as "#0", "#1", ... Data only, of which nothing is ever run, but for StableHLO
(`stablehlo.py`).

Schema 2 has StableHLO. Schema 1 is the same without it.
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np

from jaxq.errors import PlanError
from jaxq.files import FileKind
from jaxq.plan import codec
from jaxq.plan.plan import Plan

PLAN_FILE = FileKind(key="jaxq", noun="plan", schema=2, error=PlanError)


def save(path: str | PathLike[str], plan: Plan, params: Mapping[str, Any]) -> None:
    """Writes the plan and its parameters, atomically."""
    arrays = {name: np.asarray(value) for name, value in params.items()}
    header = codec.encode_plan(plan, arrays)
    PLAN_FILE.write(path, header, arrays)


def load(path: str | PathLike[str], trusted: bool = False) -> tuple[Plan, dict[str, np.ndarray]]:
    """The plan and its parameters.

    Raises:
      PlanError: the file is missing, truncated, foreign, damaged, or from a newer jaxq; the message says which part. Or
        it holds StableHLO, and who wrote it is not `trusted`.
    """
    header, arrays = PLAN_FILE.read(path)
    try:
        return codec.decode_plan(header, arrays, trusted)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error
    except Exception as error:  # whatever it is that the header holds, it is no plan
        raise PlanError(f"{path}: the plan does not decode: {type(error).__name__}: {error}") from error
