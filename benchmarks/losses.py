"""What does each loss cost, in memory and in time, and what does it cost in PyTorch?

python benchmarks/losses.py --torch PYTHON --out losses.json

Memory, each case in a process of its own: `rkd_angle` on [1024, 128] against its definition, `neuron_selectivity` where the
products of all pairs of channels would fill half a gigabyte, `crd` with 16,384 negatives; by XLA's analysis of the compiled
program and by the process's resident memory, both over the inputs. Time: `rkd_angle` against its definition at batch 64, in
turns. Then every loss at typical sizes, and every loss beside a plain form of the same mathematics in PyTorch, each side in
a process of its own, after a check that both give the same numbers. All of it for the mean's value and gradient, kdjax's
under jit, in float32. Targets are checked and printed; a miss raises nothing.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

# The memory's child processes must compile too, whatever the shell says.
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

import jax
from _command_line import command_line
from _losses import COSTS, Work
from _losses_compared import compared
from _losses_judged import show, show_targets
from _losses_judged import targets as targets_beside
from _losses_memory import AT_64, MEMORY, NAIVE, OURS, QUICK_MEMORY
from _memory import by_xla
from _script import Report, Settings, quartiles, spread
from _turns import in_turns
from rich.table import Column

TURN = 0.05
"""Seconds that a turn lasts at least, so that the clock's own error does not count."""
PARTS = ("memory", "time", "pytorch")
Case = tuple[str, int]  # which loss, and at which batch


@dataclass(frozen=True)
class Benchmark(Settings):
    """What each loss costs, in memory and in time.

    A trial takes a minute or so for each part: 3 rounds, each loss at its smallest batch, beside PyTorch at 64, memory only
    where the targets are.
    """

    LEAST: ClassVar = {"rounds": 3}
    rounds: int = 9
    """how often every case has its turn"""
    platform: Literal["cpu", "cuda"] = "cpu"
    """what computes; on a CPU only, memory is measured and PyTorch stands beside"""
    parts: tuple[Literal["memory", "time", "pytorch"], ...] = PARTS
    """what is measured"""
    torch: Path | None = None
    """Python of another environment, which has PyTorch; default this one, with the extra `bench`"""


def main(settings: Benchmark) -> None:
    jax.config.update("jax_platforms", settings.platform)
    report = Report(settings)
    rounds = 3 if settings.quick else settings.rounds
    parts = settings.parts if settings.platform == "cpu" else ("time",)
    results: dict[str, Any] = {"memory": [], "at_64": [], "ratios_at_64": [], "costs": [], "beside_pytorch": []}
    targets: list[dict[str, Any]] = []
    if "memory" in parts:
        with report.console.status("memory"):
            memory = [_memory(name) for name in (QUICK_MEMORY if settings.quick else MEMORY)]
        _print_memory(report, memory)
        results["memory"], targets = memory, _targets_of_memory(memory)
    if "time" in parts:
        with report.console.status("time"):
            at_64 = _times({(name, 64): work for name, work in AT_64.items()}, rounds)
            costs = _times(_cases(settings.quick), rounds)
        by_name = {row["loss"]: row["rounds_ms"] for row in at_64}
        ratios = [ours / naive for ours, naive in zip(by_name[OURS], by_name[NAIVE], strict=True)]
        _print_times(report, at_64, ratios, costs)
        results |= {"at_64": at_64, "ratios_at_64": ratios, "costs": costs}
        number = quartiles(ratios)[1]
        what = f"time of {OURS} / {NAIVE}, batch 64"
        targets.append({"what": what, "is": number, "limit": 1.0, "met": number <= 1.0})
    if "pytorch" in parts:
        rows, others = compared(report, settings.torch, rounds, TURN / 5 if settings.quick else TURN, settings.quick)
        show(report, rows)
        results |= {"beside_pytorch": rows, "others": others}
        targets += targets_beside(rows, others)
    show_targets(report, targets)
    report.write(**results, targets=targets)


def _cases(quick: bool) -> dict[Case, Work]:
    return {
        (name, batch): work for name, work in COSTS.items() for batch in (work.batches[:1] if quick else work.batches)
    }


def _memory(name: str) -> dict[str, Any]:
    child = [sys.executable, str(Path(__file__).with_name("_memory.py")), name]
    result = json.loads(subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True).stdout)
    case = MEMORY[name]
    return {"case": name, "sizes": case.work.sizes, "batch": case.batch, "limit_mb": case.limit, **result}


def _times(cases: dict[Case, Work], rounds: int) -> list[dict[str, Any]]:
    """Milliseconds a call, one number a round, and the memory by XLA."""
    compiled = {(name, batch): work.compiled(batch) for (name, batch), work in cases.items()}
    runs = {
        case: partial(_calls, program, jax.block_until_ready(cases[case].arrays(case[1])))
        for case, program in compiled.items()
    }
    return [
        {"loss": name, "sizes": cases[name, batch].sizes, "batch": batch, **by_xla(compiled[name, batch]),
         "rounds_ms": times, "quartiles_ms": quartiles(times)}
        for (name, batch), times in in_turns(runs, TURN, rounds).items()
    ]  # fmt: skip


def _calls(compiled: jax.stages.Compiled, arrays: tuple, count: int) -> None:
    for _ in range(count):
        jax.block_until_ready(compiled(*arrays))


def _targets_of_memory(memory: list[dict[str, Any]]) -> list[dict[str, Any]]:
    targets = []
    for row in memory:
        if row["limit_mb"] is not None:
            by = {"XLA": row["temporary_mb"] + row["results_mb"], "process": row["process_mb"]}
            targets += [
                {"what": f"MB of {row['case']}, by {who}", "is": megabytes, "limit": row["limit_mb"],
                 "met": megabytes <= row["limit_mb"]}
                for who, megabytes in by.items()
                if megabytes is not None
            ]  # fmt: skip
    return targets


def _print_memory(report: Report, memory: list[dict[str, Any]]) -> None:
    rows = []
    for row in memory:
        measured = (row["temporary_mb"], row["results_mb"], row["largest_array_mb"], row["process_mb"])
        numbers = ("not run" if number is None else f"{number:,.1f}" for number in measured)
        seconds = "not run" if row["seconds"] is None else f"{row['seconds']:.2f}"
        rows.append((row["case"], str(row["batch"]), *numbers, seconds))
    heads = ("XLA: temporary", "results", "largest array", "process", "s a call")
    report.table("MB over the inputs", (Column("", no_wrap=True), "B", *heads), rows)


def _print_times(report: Report, at_64: list[dict[str, Any]], ratios: list[float], costs: list[dict[str, Any]]) -> None:
    rows = [(row["loss"], spread(row["quartiles_ms"]), f"{row['temporary_mb']:.1f}") for row in at_64]
    rows.append((f"{OURS} / {NAIVE}", spread(quartiles(ratios)), ""))
    report.table("At batch 64: median over the rounds (quartiles)", ("", "ms", "MB"), rows)
    report.table(
        "Every loss: ms, median over the rounds (quartiles); MB of temporary space by XLA",
        (Column("", no_wrap=True), "arrays", "B", Column("ms", no_wrap=True), "MB"),
        [
            (row["loss"], row["sizes"], str(row["batch"]), spread(row["quartiles_ms"]), f"{row['temporary_mb']:.2f}")
            for row in costs
        ],
    )


if __name__ == "__main__":
    main(command_line(Benchmark, __doc__))
