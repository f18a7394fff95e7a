"""What does `kdjax.training.keep_memory` gain on a CPU, and what does it cost?

python benchmarks/kept_memory.py --out kept_memory.json

Training steps of networks for 32 × 32 pictures, SGD, in a process that gives memory back between steps, and in one that
keeps it. Every process has the machine for itself, as in a training, and the two kinds take turns. Beside the times stand
the pages of 4 kB that the system had to give a step, and the most that a process held. The last losses must be the same to
the bit. Needs Linux with glibc.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import jax
from _command_line import command_line
from _kept_memory import NETWORKS
from _script import Report, Settings, quartiles, spread

WAYS = ("given back", "kept")


@dataclass(frozen=True)
class Benchmark(Settings):
    """Steps of larger networks with memory given back and kept. A trial has one network, batch 16 and 2 processes a way."""

    LEAST: ClassVar = {"batch": 1, "rounds": 2}
    batch: int = 64
    """pictures a step"""
    rounds: int = 3
    """how many processes each way has, for each network"""


def main(settings: Benchmark) -> None:
    report = Report(settings)
    names, batch, count = list(NETWORKS), settings.batch, settings.rounds
    if settings.quick:
        names, batch, count = names[:1], 16, 2
    rows = []
    with TemporaryDirectory() as programs:
        for name in names:
            with report.console.status(name):
                rows.append(_row(name, batch, count, programs))
    report.table(
        f"ms a step of batch {batch}, median (quartiles)",
        ("", *WAYS, "kept / given back", "pages a step", "MB at most"),
        [
            (
                row["network"],
                *(spread(row["quartiles_ms"][way]) for way in WAYS),
                f"{row['ratio']:.2f} ({min(row['ratios']):.2f}–{max(row['ratios']):.2f})",
                *(" → ".join(f"{row[what][way]:,.0f}" for way in WAYS) for what in ("pages", "mb")),
            )
            for row in rows
        ],
    )
    report.write(batch=batch, rows=rows)


def _row(name: str, batch: int, count: int, programs: str) -> dict[str, Any]:
    """Of one network: both ways in turns; a ratio is that of two processes, one after the other."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    _process(name, batch, WAYS[0], programs)  # compiles for the others, which takes memory of its own
    for _ in range(count):
        for way in WAYS:
            found[way].append(_process(name, batch, way, programs))
    losses = {one["loss"] for each in found.values() for one in each}
    if len(losses) > 1:
        raise RuntimeError(f"{name} learns otherwise where memory is kept: its last loss is one of {sorted(losses)}.")
    pairs = zip(found["kept"], found["given back"], strict=True)
    ratios = [median(kept["ms"]) / median(given["ms"]) for kept, given in pairs]
    return {
        "network": name,
        "quartiles_ms": {way: quartiles(time for one in found[way] for time in one["ms"]) for way in WAYS},
        "ratio": median(ratios),
        "ratios": ratios,
        "pages": {way: median(one["pages"] for one in found[way]) for way in WAYS},
        "mb": {way: max(one["mb"] for one in found[way]) for way in WAYS},
        "processes": found,
    }


def _process(name: str, batch: int, way: str, programs: str) -> dict[str, Any]:
    """What one process measured. The first of a network keeps its program in the folder `programs`, where others read it."""
    variables = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": programs,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    command = [sys.executable, str(Path(__file__).with_name("_kept_memory.py")), name, str(batch), way]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=variables)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # this process only asks; the others compute
    main(command_line(Benchmark, __doc__))
