"""How does the cost of a distillation step grow with the batch, the students, the devices and the teacher?

python benchmarks/scaling.py --out scaling.json --figures benchmarks/figures

Article C's networks, Adam. Each cost stands beside its arithmetic limit: the floating-point operations of its convolutions
and products, over the rate of a large matrix product on the same machine in the same run. All cases of one axis take turns.

    batch      32 to 4096 images, the teacher run in the step, its logits cached, or no teacher
    students   1 to 64 in one sweep step, CNNs and MLPs, cached teacher; and one by one
    devices    1 to 4 fake devices that share the CPU's cores: splitting on them, not what more chips would give
    teacher    a quarter of the teacher's channels to four times as many
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import _sides
import jax
import sweep
from _arithmetic import Peak, distillation_flops, mlp_update_flops, update_flops
from _cases import Case, make
from _command_line import command_line
from _figures import draw
from _memory import free_mb
from _script import Report, Settings, quartiles, spread
from _turns import PAUSE, Run, in_turns
from _work import STUDENT, TEACHER, WIDTHS, random_batches
from rich.console import Console
from rich.table import Column

from experiments._networks import make_model

BATCHES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
STUDENTS = (1, 2, 4, 8, 16, 32, 64)
DEVICES = (1, 2, 3, 4)
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
SPLIT_BATCH = 384  # divides by every number of devices
BATCH = 32
LARGE = 1024  # from here on a step is asked what memory it takes
Key = tuple[str, float]  # series, and where on the axis


@dataclass(frozen=True)
class Benchmark(Settings):
    """The cost of a distillation step along four axes.

    A trial takes the two smallest sizes of each axis, one step a round, 3 rounds.
    """

    LEAST: ClassVar = {"rounds": 3, "seconds": 0}
    axes: tuple[str, ...] = ("batch", "students", "devices", "teacher")
    """which to measure"""
    seconds: float = 0.25
    """how long each case is timed for, in each round; one step at least"""
    rounds: int = 5
    """how often every case has its turn"""
    figures: Path | None = None
    """folder for a picture of each axis"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.axes or not set(self.axes) <= set(AXES):
            raise ValueError(f"axes must name some of {', '.join(AXES)}; got {self.axes}.")


def main(settings: Benchmark) -> None:
    report = Report(settings)
    seconds, rounds = (0.0, 3) if settings.quick else (settings.seconds, settings.rounds)
    peak = Peak()
    peak.measure()
    rows: dict[str, list[dict[str, Any]]] = {}
    for axis in settings.axes:
        with report.console.status(axis):
            sizes, measure, _ = AXES[axis]
            rows[axis] = measure(sizes[:2] if settings.quick else sizes, seconds, rounds, report.console)
            peak.measure()
    for axis in settings.axes:
        for row in rows[axis]:
            on_it = axis != "devices" or jax.default_backend() == "cpu"
            row["limit_ms"] = 1000 * row["flops"] / peak.rate if on_it else None
        _print(report, axis, rows[axis])
    report.console.print(
        f"Arithmetic limit: {peak.rate / 1e9:,.0f} GFLOP/s, a product of two {peak.size} × {peak.size} matrices"
    )
    if settings.figures is not None:
        for axis in settings.axes:
            path = settings.figures / f"scaling-{axis}-{jax.default_backend()}.png"
            report.picture(draw(rows[axis], AXES[axis][2], peak.rate), path)
    peaks = {"gflops_per_s": peak.rate / 1e9, "measured": [rate / 1e9 for rate in peak.rates], "size": peak.size}
    report.write(matrix_product=peaks, axes=rows)


def _batches(sizes: tuple[int, ...], seconds: float, rounds: int, console: Console) -> list[dict[str, Any]]:
    cases: dict[Key, Run] = {}
    flops: dict[Key, float] = {}
    student, teacher = make_model(STUDENT), make_model(TEACHER)
    series = {"teacher in the step": (teacher, False), "teacher cached": (teacher, True), "no teacher": (None, False)}
    for size, (name, (taught_by, cached)) in product(sizes, series.items()):
        case = make(student, taught_by, random_batches(size, 2), cached=cached)
        if size >= LARGE and (lack := _lack_of_memory(case)):
            console.print(f"Batch {size}, {name}: not run, {lack}")
            continue
        cases[name, size] = case.runner()
        in_step = None if taught_by is None or cached else WIDTHS[TEACHER]
        flops[name, size] = distillation_flops(WIDTHS[STUDENT], in_step, size)
    return _rows(in_turns(cases, seconds, rounds), flops)


def _students(sizes: tuple[int, ...], seconds: float, rounds: int, console: Console) -> list[dict[str, Any]]:
    cases: dict[Key, Run] = {}
    flops: dict[Key, float] = {}
    one = {"CNN": update_flops(WIDTHS[STUDENT], BATCH), "MLP": mlp_update_flops(sweep.HIDDEN, BATCH)}
    for network, way, count in product(sweep.NETWORKS, sweep.WAYS, sizes):
        key = f"{network}, {way}", count
        cases[key] = sweep.case(network, "cached", way, count, BATCH).runner()
        flops[key] = count * one[network]
    return _rows(in_turns(cases, seconds, rounds), flops)


def _devices(sizes: tuple[int, ...], seconds: float, rounds: int, console: Console) -> list[dict[str, Any]]:
    cases: dict[Key, Run] = {}
    for count in sizes:
        for name, run in _sides.apart("_devices", count, SPLIT_BATCH).items():
            cases[name, count] = run
    flops = dict.fromkeys(cases, distillation_flops(WIDTHS[STUDENT], WIDTHS[TEACHER], SPLIT_BATCH))
    # Each has a process of its own, whose idle threads spin for a while after a turn.
    return _rows(in_turns(cases, seconds, rounds, pause=PAUSE), flops)


def _teachers(sizes: tuple[float, ...], seconds: float, rounds: int, console: Console) -> list[dict[str, Any]]:
    cases: dict[Key, Run] = {}
    flops: dict[Key, float] = {}
    student = make_model(STUDENT)
    for scale, cached in product(sizes, (False, True)):
        widths = tuple(round(scale * width) for width in WIDTHS[TEACHER])
        key = "teacher cached" if cached else "teacher in the step", scale
        case = make(student, make_model(TEACHER, widths=widths), random_batches(BATCH), cached=cached)
        cases[key] = case.runner()
        flops[key] = distillation_flops(WIDTHS[STUDENT], None if cached else widths, BATCH)
    return _rows(in_turns(cases, seconds, rounds), flops)


AXES: dict[str, tuple[tuple, Callable[..., list[dict[str, Any]]], str]] = {
    "batch": (BATCHES, _batches, "images a step"),
    "students": (STUDENTS, _students, "students, the teacher cached"),
    "devices": (DEVICES, _devices, "fake devices on the same cores"),
    "teacher": (SCALES, _teachers, "times the teacher's channels"),
}


def _rows(times: dict[Key, list[float]], flops: dict[Key, float]) -> list[dict[str, Any]]:
    return [
        {"series": series, "at": at, "flops": flops[series, at], "rounds_ms": values, "quartiles_ms": quartiles(values)}
        for (series, at), values in times.items()
    ]  # fmt: skip


def _lack_of_memory(case: Case) -> str:
    """Why a step is not run: it would take more than half of the free memory. Empty where it fits."""
    sizes = case.compiled().memory_analysis()
    needed = (sizes.temp_size_in_bytes + sizes.output_size_in_bytes) / 1e6
    stats = jax.devices()[0].memory_stats()
    free = (stats["bytes_limit"] - stats["bytes_in_use"]) / 1e6 if stats else free_mb()
    return f"it takes {needed:,.0f} MB, and {free:,.0f} MB are free" if needed > 0.5 * free else ""


def _print(report: Report, axis: str, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(row["series"] for row in rows))
    cells = {(row["series"], row["at"]): _cell(row) for row in rows}
    report.table(
        "ms a step: median over the rounds (quartiles), and how much of the time the arithmetic limit is",
        (AXES[axis][2], *(Column(name, justify="right") for name in names)),
        [
            (f"{at:g}", *(cells.get((name, at), "not run") for name in names))
            for at in dict.fromkeys(row["at"] for row in rows)
        ],
    )


def _cell(row: dict[str, Any]) -> str:
    limit = "" if row["limit_ms"] is None else f", {100 * row['limit_ms'] / row['quartiles_ms'][1]:.0f} %"
    return spread(row["quartiles_ms"]) + limit


if __name__ == "__main__":
    main(command_line(Benchmark, __doc__))
