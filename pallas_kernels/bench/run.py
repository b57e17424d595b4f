"""A run: ceilings, checks, then the timed cases, until the budget is spent. Every row is in the file before the next.

What a kernel or a baseline fails with is part of its row, and ends nothing. Only a kernel of ours can fail the run.
"""

import functools
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.bench import clock, table
from pallas_kernels.bench.cases import Case, as_float, as_int8, draw
from pallas_kernels.bench.checks import Check, difference, on_cpu, poisoned

ROUNDS = 15
CASES_AT_ONCE = 6  # compile at the same time; none compiles while one is timed
CHECKS_AT_ONCE = 32
FLOATS = {"bf16": jnp.bfloat16, "f32": jnp.float32}


class Run:
    """The rows of a run and the file that they are in.

    Args:
      output: JSON lines; rows that it holds are kept, and not measured again unless they failed. None: no file.
      budget: seconds from now after which nothing more begins.
      interpret: whether kernels are interpreted.
      only: a regular expression on the names of what is checked and timed.
    """

    def __init__(self, output: Path | None, budget: float, interpret: bool = False, only: str = "") -> None:
        self.end = time.monotonic() + budget
        self.output, self.interpret, self.only = output, interpret, re.compile(only)
        self.rows: list[dict[str, Any]] = []
        self.skipped: list[str] = []
        self.clock, reason = clock.choose()
        device = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "clock": self.clock.name}
        self._read(device)
        if reason is not None:
            print(f"times are the host's, launches included: {reason}", flush=True)
        self.device = device
        self.compilers = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2))

    def _read(self, device: Mapping[str, str]) -> None:
        """Takes over the rows of an earlier run on such a machine."""
        if self.output is None or not self.output.exists():
            return
        for line in self.output.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the run was killed while it wrote this
                continue
            if any(row[key] != value for key, value in device.items()):
                raise SystemExit(
                    f"{self.output} is of {row['device']}, jax {row['jax']}, {row['clock']}: not of {device}"
                )
            if row.get("passed") is not False:
                self.rows.append(row)
        self.output.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, kind: str, name: str, **values: Any) -> None:
        """Writes a row, and says it in a line."""
        row = {"kind": kind, "name": name, **self.device, **values}
        self.rows.append(row)
        if self.output is not None:
            with self.output.open("a") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        print(_line(row), flush=True)

    def _wanted(self, kind: str, items: Sequence[Any], at_once: int) -> Iterator[Sequence[Any]]:
        """What is chosen and not measured yet, in parts, as long as there is time."""
        known = {row["name"] for row in self.rows if row["kind"] == kind}
        wanted = [item for item in items if self.only.search(item.name) and item.name not in known]
        for start in range(0, len(wanted), at_once):
            if time.monotonic() >= self.end:
                self.skipped += [item.name for item in wanted[start:]]
                return
            yield wanted[start : start + at_once]

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row.get("passed") is False]

    @property
    def passed(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row.get("passed") is True]

    # ------------------------------------------------------------------------------------------------------- the parts

    def ceilings(self, size: int = 8192, copied: int = 2**30) -> None:
        """What the machine does at best: the bandwidth of a copy, bytes read and written, and bf16 products."""
        if any(row["kind"] == "ceiling" for row in self.rows):
            return
        words = jnp.arange(copied // 4, dtype=jnp.int32)
        matrices = [jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2)]
        calls = {
            "copy": clock.Call(jax.jit(lambda x: x + 1), [(words,)]),
            "bf16": clock.Call(
                jax.jit(lambda x, y: lax.dot_general(x, y, (((1,), (1,)), ((), ())))), [tuple(matrices)]
            ),
        }
        times = self._summaries(calls)
        for name, unit, amount in (("copy", "B/s", 2 * copied), ("bf16", "op/s", 2 * size**3)):
            self.add("ceiling", name, per_second=1e6 * amount / times[name]["us"], unit=unit, **times[name])

    def check(self, checks: Sequence[Check]) -> None:
        """Every kernel against its reference, which the host computes."""
        for part in self._wanted("check", checks, CHECKS_AT_ONCE):
            for check, row in zip(part, self.compilers.map(lambda check: _row(self._check, check), part), strict=True):
                self.add("check", check.name, **row)

    def time(self, cases: Sequence[Case]) -> None:
        """Every case against its baselines, in turns, once its bits are those of the reference."""
        for part in self._wanted("time", cases, CASES_AT_ONCE):
            futures = [self._compile(case) for case in part]
            wait(future for functions in futures for future in functions.values())
            for case, functions in zip(part, futures, strict=True):
                self.add("time", case.name, group=case.group, **_row(self._time, case, functions))

    def tune(self, cases: Sequence[Case]) -> None:
        """Every tactic of every case, in turns; each has to give the reference's bits."""
        for part in self._wanted("tune", cases, 1):
            self.add("tune", part[0].name, **_row(self._tune, part[0]))

    # ------------------------------------------------------------------------------------------------------------ steps

    def _check(self, check: Check) -> dict[str, Any]:
        operands = check.operands()
        run = poisoned(self._ours(check.kernel))
        return _verdict(difference(run, operands, on_cpu(check.reference, operands)))

    def _compile(self, case: Case) -> dict[str, Future[Any]]:
        out = jax.eval_shape(case.reference, *case.types)
        futures = {
            "ours": self._start(jax.jit(self._ours(case.kernel)), *case.types),
            "poisoned": self._start(poisoned(self._ours(case.kernel)), out, *case.types),
            "reference": self._start(jax.jit(case.reference), *case.types),
        }
        for name, function in case.baselines.items():
            form = functools.partial(_form, name)
            futures[f"form of {name}"] = self._start(jax.jit(form), case.types)
            if function is case.reference:
                futures[name] = futures["reference"]
            else:
                futures[name] = self._start(jax.jit(function), *jax.eval_shape(form, case.types))
        return futures

    def _time(self, case: Case, futures: Mapping[str, Future[Any]]) -> dict[str, Any]:
        ours, run, reference = (futures[name].result() for name in ("ours", "poisoned", "reference"))
        inputs = _rotated(case)
        verdict = _verdict(difference(run, inputs[0], reference(*inputs[0])))
        if not verdict["passed"]:
            return verdict
        calls, failed = {"ours": clock.Call(ours, inputs)}, {}
        for name in case.baselines:
            reason = futures[name].exception()
            if reason is None:
                form = futures[f"form of {name}"].result()
                calls[name] = clock.Call(futures[name].result(), [form(operands) for operands in inputs])
            else:
                failed[name] = {"reason": _words(reason)}
        times = self._summaries(calls)
        mine = times.pop("ours")
        rates = self._rates(case, 1e-6 * mine["us"])
        return {**verdict, **mine, **rates, "count": case.count, "baselines": {**times, **failed}}

    def _tune(self, case: Case) -> dict[str, Any]:
        inputs = _rotated(case)
        kernels = {str(config): self._ours(case.kernel, config=config) for config in case.candidates()}
        out = jax.eval_shape(case.reference, *case.types)
        futures = {name: self._start(jax.jit(kernel), *case.types) for name, kernel in kernels.items()}
        runs = {name: self._start(poisoned(kernel), out, *case.types) for name, kernel in kernels.items()}
        expected = jax.jit(case.reference)(*inputs[0])
        wait((*futures.values(), *runs.values()))
        rows = {name: _row(self._tactic, run, inputs[0], expected) for name, run in runs.items()}
        failed = {name: row["reason"] for name, row in rows.items() if not row["passed"]}
        calls = {name: clock.Call(futures[name].result(), inputs) for name in kernels if name not in failed}
        times = sorted(self._summaries(calls).items(), key=lambda item: item[1]["us"])
        verdict = _verdict(f"{len(failed)} tactics failed" if failed else None)
        return {**verdict, "default": next(iter(kernels)), "times": dict(times), "failed": failed}

    def _tactic(self, run: Future[Any], operands: Any, expected: Any) -> dict[str, Any]:
        return _verdict(difference(run.result(), operands, expected))

    def _ours(self, kernel: Callable[..., Any], **given: Any) -> Callable[..., Any]:
        return lambda *operands: kernel(*operands, **given, interpret=self.interpret)

    def _start(self, function: Any, *types: Any) -> Future[Any]:
        return self.compilers.submit(lambda: function.lower(*types).compile())

    def _summaries(self, calls: Mapping[str, clock.Call]) -> dict[str, dict[str, float]]:
        times = self.clock(calls, 3 if self.interpret else ROUNDS) if calls else {}
        return {name: clock.summary(values) for name, values in times.items()}

    def _rates(self, case: Case, seconds: float) -> dict[str, float]:
        ceilings = {row["name"]: row["per_second"] for row in self.rows if row["kind"] == "ceiling"}
        peak = table.peak(self.device["device"], ceilings["bf16"])
        least = table.roofline(case.operations, case.bytes, peak, ceilings["copy"])
        work = {"operations": case.operations, "bytes": case.bytes}
        return {"tops": 1e-12 * case.operations / seconds, "roofline": least / seconds, **work}


def _form(name: str, operands: Any) -> Any:
    """The operands as the baseline of that name takes them."""
    return as_float(operands, FLOATS[name]) if name in FLOATS else as_int8(operands)


def _rotated(case: Case) -> list[Any]:
    return [draw(case.types, case.bounds, seed) for seed in range(clock.copies(case.bytes))]


def _verdict(reason: str | None) -> dict[str, Any]:
    return {"passed": reason is None, "reason": reason}


def _row(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """The function's result, or what it failed with: compilers raise whatever they like."""
    try:
        return function(*args)
    except Exception as error:
        return _verdict(_words(error))


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:1000]}"


def _line(row: Mapping[str, Any]) -> str:
    verdict = {True: "ok", False: "FAILED", None: ""}[row.get("passed")]
    words = [f"{row['kind']:<8}{row['name']:<72} {verdict:<7}"]
    if row["kind"] == "ceiling":
        words.append(f"{1e-12 * row['per_second']:.3f} T{row['unit']}")
    elif row["kind"] == "time" and row["passed"]:
        others = (f"{name} {given.get('us', math.nan):.2f}" for name, given in row["baselines"].items())
        words.append(f"{row['us']:.2f} us; {', '.join(others)}")
    if row.get("reason"):
        words.append(row["reason"].partition("\n")[0])
    for name, times in row.get("times", {}).items():
        words.append(f"\n    {times['us']:9.2f} us {name}{' (the default)' if name == row['default'] else ''}")
    for name, reason in row.get("failed", {}).items():
        words.append(f"\n    failed       {name}: {reason}")
    return " ".join(words)
