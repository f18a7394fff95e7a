"""What does each loss cost, in memory and in time?

python benchmarks/losses.py --out losses.json

Memory, each case in a process of its own: `rkd_angle` on [1024, 128] against its definition, `neuron_selectivity` where the
products of all pairs of channels would fill half a gigabyte, `crd` with 16,384 negatives; by XLA's analysis of the compiled
program and by the process's resident memory, both over the inputs. Time: `rkd_angle` against its definition at batch 64, in
turns. Then every loss at typical sizes. All of it for the mean's value and gradient under jit, in float32. Targets are
checked and printed; a miss raises nothing.
"""

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any, Literal

# The memory's child processes must compile too, whatever the shell says.
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

import jax
import tyro
from _losses import AT_64, COSTS, MEMORY, NAIVE, OURS, QUICK_MEMORY
from _machine import environment, spread
from _memory import by_xla
from rich.console import Console
from rich.table import Column, Table

from kdjax._files import write_json

TURN = 0.05
"""Seconds that a turn lasts at least, so that the clock's own error does not count."""
Case = tuple[str, int]  # which loss, and at which batch


@dataclass(frozen=True)
class Benchmark:
    """What each loss costs, in memory and in time."""

    rounds: int = 9
    """how often every case has its turn"""
    platform: Literal["cpu", "cuda"] = "cpu"
    """what computes; memory is measured on a CPU only"""
    out: Path | None = None
    """JSON file for the results"""
    quick: bool = False
    """a trial of about a minute: 3 rounds, each loss at its smallest batch, memory only where the targets are"""

    def __post_init__(self) -> None:
        if self.rounds < 3:
            raise ValueError(f"rounds must be at least 3; got {self.rounds}.")


def main(settings: Benchmark) -> None:
    jax.config.update("jax_platforms", settings.platform)
    console = Console()
    found = environment(console) | {"device": jax.devices()[0].device_kind}
    rounds = 3 if settings.quick else settings.rounds
    with console.status("memory"):
        names = QUICK_MEMORY if settings.quick else MEMORY
        memory = [_memory(name) for name in names] if settings.platform == "cpu" else []
    with console.status("time"):
        at_64 = _times({(name, 64): work for name, work in AT_64.items()}, rounds)
        costs = _times(
            {
                (name, batch): work
                for name, work in COSTS.items()
                for batch in (work.batches[:1] if settings.quick else work.batches)
            },
            rounds,
        )
    ratios = [
        ours / naive for ours, naive in zip(at_64[OURS, 64]["rounds_ms"], at_64[NAIVE, 64]["rounds_ms"], strict=True)
    ]
    targets = _targets(memory, quantiles(ratios, n=4, method="inclusive")[1])
    _print(console, memory, list(at_64.values()), ratios, list(costs.values()), targets)
    if settings.out is not None:
        results = {
            "memory": memory,
            "at_64": list(at_64.values()),
            "ratios_at_64": ratios,
            "costs": list(costs.values()),
        }
        write_json(settings.out, {**found, "config": asdict(settings), **results, "targets": targets})
        console.print(f"Written to {settings.out}")


def _memory(name: str) -> dict[str, Any]:
    child = [sys.executable, str(Path(__file__).with_name("_memory.py")), name]
    result = json.loads(subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True).stdout)
    case = MEMORY[name]
    return {"case": name, "sizes": case.work.sizes, "batch": case.batch, "limit_mb": case.limit, **result}


def _times(cases: dict[Case, Any], rounds: int) -> dict[Case, dict[str, Any]]:
    """Milliseconds a call, one number a round. All cases take turns, so that a slow minute of the machine hits all alike."""
    rows, turns = {}, {}
    for (name, batch), work in cases.items():
        compiled = work.compiled(batch)
        arrays = jax.block_until_ready(work.arrays(batch))
        _seconds(compiled, arrays, 1)
        turns[name, batch] = compiled, arrays, math.ceil(TURN / _seconds(compiled, arrays, 1))
        rows[name, batch] = {"loss": name, "sizes": work.sizes, "batch": batch, **by_xla(compiled), "rounds_ms": []}
    for _ in range(rounds):
        for case, (compiled, arrays, calls) in turns.items():
            _seconds(compiled, arrays, 1)
            rows[case]["rounds_ms"].append(1000 * _seconds(compiled, arrays, calls) / calls)
    return {
        case: row | {"quartiles_ms": quantiles(row["rounds_ms"], n=4, method="inclusive")} for case, row in rows.items()
    }


def _seconds(compiled: jax.stages.Compiled, arrays: tuple, calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(compiled(*arrays))
    return time.perf_counter() - started


def _targets(memory: list[dict[str, Any]], ratio: float) -> list[dict[str, Any]]:
    targets = []
    for row in memory:
        if row["limit_mb"] is not None:
            by = {"XLA": row["temporary_mb"] + row["results_mb"], "process": row["process_mb"]}
            targets += [
                {"what": f"MB of {row['case']}, by {who}", "is": megabytes, "limit": row["limit_mb"]}
                for who, megabytes in by.items()
                if megabytes is not None
            ]
    targets.append({"what": f"time of {OURS} / {NAIVE}, batch 64", "is": ratio, "limit": 1.0})
    return [target | {"met": target["is"] <= target["limit"]} for target in targets]


def _print(
    console: Console,
    memory: list[dict[str, Any]],
    at_64: list[dict[str, Any]],
    ratios: list[float],
    costs: list[dict[str, Any]],
    targets: list[dict[str, Any]],
) -> None:
    heads = ("XLA: temporary", "results", "largest array", "process", "s a call")
    table = Table(Column("", no_wrap=True), "B", *heads, title="MB over the inputs", title_justify="left")
    for row in memory:
        measured = (row["temporary_mb"], row["results_mb"], row["largest_array_mb"], row["process_mb"])
        numbers = ("not run" if number is None else f"{number:,.1f}" for number in measured)
        seconds = "not run" if row["seconds"] is None else f"{row['seconds']:.2f}"
        table.add_row(row["case"], str(row["batch"]), *numbers, seconds)
    console.print(table)

    table = Table("", "ms", "MB", title="At batch 64: median over the rounds (quartiles)", title_justify="left")
    for row in at_64:
        table.add_row(row["loss"], spread(row["quartiles_ms"]), f"{row['temporary_mb']:.1f}")
    table.add_row(f"{OURS} / {NAIVE}", spread(quantiles(ratios, n=4, method="inclusive")), "")
    console.print(table)

    title = "Every loss: ms, median over the rounds (quartiles); MB of temporary space by XLA"
    table = Table(
        Column("", no_wrap=True), "arrays", "B", Column("ms", no_wrap=True), "MB", title=title, title_justify="left"
    )
    for row in costs:
        table.add_row(
            row["loss"], row["sizes"], str(row["batch"]), spread(row["quartiles_ms"]), f"{row['temporary_mb']:.2f}"
        )
    console.print(table)

    table = Table("target", "is", "limit", "", title="Targets", title_justify="left")
    for target in targets:
        met = "[green]met[/green]" if target["met"] else "[red]missed[/red]"
        table.add_row(target["what"], f"{target['is']:.2f}", f"≤ {target['limit']:.2f}", met)
    console.print(table)


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
