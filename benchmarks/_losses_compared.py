"""Every loss beside a plain form of it in PyTorch: the same arrays, the same numbers, a process for each side, in turns."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import _sides
import jax
import numpy as np
from _losses import COSTS
from _losses_judged import BATCHES
from _losses_sides import Case, Result, saved
from _script import Report
from _turns import PAUSE

OTHER_BATCHES = {"crd": (32, 64)}
"""Entries gathered for 256 examples would be 4 GB in PyTorch."""
CPU = Path("/proc/stat")
TOLERANCE = 1e-3
"""By how much of its size a mean or a gradient may differ."""


class Pair(NamedTuple):
    """A row of COSTS and the PyTorch form that stands beside it."""

    name: str
    form: str

    @property
    def loss(self) -> str:
        return self.name.split(",")[0]

    @property
    def label(self) -> str:
        return self.name if self.form == self.loss else f"{self.name}; PyTorch: {self.form}"


PAIRS = (*(Pair(name, name.split(",")[0]) for name in COSTS), Pair("crd", "crd_from_all"))


def version_of_torch(python: Path | None) -> tuple[str | None, str]:
    """The version that this Python has (None: the one that runs now), or None and the reason."""
    ask = [str(python or sys.executable), "-c", "import torch; print(torch.__version__)"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True)
    except OSError as error:
        return None, str(error)
    if answer.returncode:
        return None, (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
    return answer.stdout.strip(), ""


def compared(
    report: Report, python: Path | None, rounds: int, turn: float, quick: bool
) -> tuple[list[dict[str, Any]], float | None]:
    """One row for each pair and batch, and what share of the machine others used; without PyTorch, kdjax's numbers alone."""
    version, reason = version_of_torch(python)
    report.found["versions"]["torch"] = version
    if version is None:
        hint = 'pip install -e ".[bench]", or name a Python that has it by --torch'
        report.console.print(f"PyTorch is not measured: {reason} ({hint})", markup=False, soft_wrap=True)
    cases = {pair: _batches(pair.loss, quick) for pair in PAIRS}
    ours = list(dict.fromkeys((pair.name, batch) for pair, batches in cases.items() for batch in batches))
    theirs = list(dict.fromkeys((pair.form, batch) for pair, batches in cases.items() for batch in batches))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "arrays.npz")
        saved(file, {(key, batch): _arrays(pair.name, batch)
                     for pair, batches in cases.items() for batch in batches for key in pair})  # fmt: skip
        sides = {"kdjax": (_sides.apart("_losses_kdjax", file), ours)}
        if version is not None:
            learnt = {pair.form: COSTS[pair.name].learnt for pair in PAIRS}
            side = _sides.apart("_losses_pytorch", file, learnt, python=python or sys.executable)
            sides["PyTorch"] = side, theirs
        off, space = {}, {}
        for pair, batches in cases.items():
            for batch in batches:
                with report.console.status(f"the same numbers: {pair.label}, {batch}"):
                    result = sides["kdjax"][0]["result"](pair.name, batch)
                    space[pair.name, batch] = sides["kdjax"][0]["temporary_mb"](pair.name, batch)
                    if "PyTorch" in sides:
                        off[pair, batch] = differences(result, sides["PyTorch"][0]["result"](pair.form, batch))
        with report.console.status("kdjax and PyTorch in turns"):
            before = _cpu_seconds(sides)
            times = _in_turns(sides, rounds, turn)
            others = share_of_others(before, _cpu_seconds(sides), os.cpu_count() or 1)
    rows = [
        _row(pair, batch, space[pair.name, batch], off.get((pair, batch)), times)
        for pair, batches in cases.items()
        for batch in batches
    ]
    return rows, others


def _batches(loss: str, quick: bool) -> tuple[int, ...]:
    return BATCHES[:1] if quick else OTHER_BATCHES.get(loss, BATCHES)


def _arrays(name: str, batch: int) -> list[np.ndarray]:
    return [np.asarray(array) for array in jax.tree.leaves(COSTS[name].arrays(batch))]


def differences(first: Result, second: Result) -> list[float]:
    """Of the means and of each gradient, over the second's size."""
    numbers = [(np.float64(first[0]), np.float64(second[0])), *zip(first[1], second[1], strict=True)]
    return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in numbers]


def _cpu_seconds(sides: dict[str, tuple[dict, list[Case]]]) -> tuple[float, float, float] | None:
    """Now, and the CPU's time so far: the whole machine's, and these processes' own. None where the system is no Linux."""
    if not CPU.exists():
        return None
    user, nice, system, _, _, interrupts, more, stolen = map(int, CPU.read_text().split()[1:9])
    all_of_it = (user + nice + system + interrupts + more + stolen) / os.sysconf("SC_CLK_TCK")
    own = time.process_time() + sum(side["cpu_seconds"]() for side, _ in sides.values())
    return time.perf_counter(), all_of_it, own


def share_of_others(before: tuple | None, after: tuple | None, cores: int) -> float | None:
    if before is None or after is None:
        return None
    passed, all_of_it, own = (b - a for a, b in zip(before, after, strict=True))
    return max(0.0, all_of_it - own) / (passed * cores)


def _in_turns(sides: dict[str, tuple[dict, list[Case]]], rounds: int, turn: float) -> dict[tuple, list[float]]:
    """Milliseconds a call by side and case, one number a round. In a side's turn all its cases are called."""
    times: dict[tuple, list[float]] = {}
    for _ in range(rounds):
        for who, (side, cases) in sides.items():
            time.sleep(PAUSE)
            for case, spent in zip(cases, side["turn"](cases, turn), strict=True):
                times.setdefault((who, *case), []).append(spent)
    return times


def _row(
    pair: Pair, batch: int, space: float, off: list[float] | None, times: dict[tuple, list[float]]
) -> dict[str, Any]:
    ours, theirs = times["kdjax", pair.name, batch], times.get(("PyTorch", pair.form, batch))
    agree = None if off is None else all(number <= TOLERANCE for number in off)  # NaN is not
    row = {
        "row": pair.label, "loss": pair.loss, "form": pair.form, "sizes": COSTS[pair.name].sizes, "batch": batch,
        "temporary_mb": space, "differences": off, "agree": agree, "kdjax_ms": ours, "pytorch_ms": theirs,
        "faster": None, "faster_by_medians": None,
    }  # fmt: skip
    if agree and theirs is not None:
        row |= {"faster": min(theirs) / min(ours), "faster_by_medians": median(theirs) / median(ours)}
    return row
