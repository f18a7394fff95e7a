"""What does `kdjax.training.keep_memory` gain on a CPU, and what does it cost?

python benchmarks/kept_memory.py --out kept_memory.json

A training step of networks for 32 × 32 pictures, SGD, as a process runs it that gives memory back between steps, and as one
does that keeps it. Each has a process of its own, both take turns. Beside the times stand the pages of 4 kB that the system
had to give a step, and the most that each process held. Needs Linux with glibc.
"""

from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

import _sides
import jax
from _command_line import command_line
from _kept_memory import NETWORKS
from _script import Report, Settings, quartiles, spread
from _turns import PAUSE, rounds

WAYS = {"given back": False, "kept": True}


@dataclass(frozen=True)
class Benchmark(Settings):
    """Steps of larger networks with memory given back and kept. A trial has one network, batch 16 and 3 rounds."""

    LEAST: ClassVar = {"batch": 1, "steps": 1, "rounds": 2}
    batch: int = 64
    """pictures a step"""
    steps: int = 4
    """steps timed together, in each round"""
    rounds: int = 7
    """how often both ways have their turn"""


def main(settings: Benchmark) -> None:
    report = Report(settings)
    names, batch, count = list(NETWORKS), settings.batch, settings.rounds
    if settings.quick:
        names, batch, count = names[:1], 16, 3
    rows = [_row(report, name, batch, settings.steps, count) for name in names]
    report.table(
        f"ms a step of batch {batch}, median (quartiles)",
        ("", *WAYS, "kept / given back", "pages a step", "MB at most"),
        [
            (
                row["network"],
                *(spread(row["quartiles_ms"][way]) for way in WAYS),
                f"{row['ratio']:.2f}",
                " → ".join(f"{row['pages'][way]:,.0f}" for way in WAYS),
                " → ".join(f"{row['mb'][way]:,.0f}" for way in WAYS),
            )
            for row in rows
        ],
    )
    report.write(batch=batch, rows=rows)


def _row(report: Report, name: str, batch: int, steps: int, count: int) -> dict[str, Any]:
    sides = {way: _sides.apart("_kept_memory", name, batch, keep) for way, keep in WAYS.items()}
    with report.console.status(name):
        losses = {way: [side["step"](1) for _ in range(8)] for way, side in sides.items()}  # until both have settled
        if losses["kept"] != losses["given back"]:
            raise RuntimeError(f"{name} learns otherwise where memory is kept: {losses}.")
        before = {way: side["pages"](0) for way, side in sides.items()}
        times = rounds({way: side["step"] for way, side in sides.items()}, steps, count, pause=PAUSE, warm_up=1)
    made = (steps + 1) * count
    return {
        "network": name,
        "quartiles_ms": {way: quartiles(times[way]) for way in WAYS},
        "rounds_ms": times,
        "ratio": median(times["kept"]) / median(times["given back"]),
        "pages": {way: (side["pages"](0) - before[way]) / made for way, side in sides.items()},
        "mb": {way: side["MB"](0) for way, side in sides.items()},
    }


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # this process only asks; the sides compute
    main(command_line(Benchmark, __doc__))
