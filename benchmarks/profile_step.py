"""Where does a training step's time go? By part of the step and by kind of operation, from a trace of the compiled program.

python benchmarks/profile_step.py --out profile.json --figure benchmarks/figures/profile-cpu.png

The three steps of steps.py, one step a call, on JAX's default backend; where the teacher trains, it is the student.
`jax.profiler` records when each operation of the program ran; the program's own text says to which part of the step it
belongs. Where operations overlap, each gets its part of the moment, and time in which none ran is dispatch and host: so the
parts sum to the time of the traced step. Tracing costs time itself; the same step is timed without it, in turns, and the
difference stands under the table.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
from _cases import PAIRS, Case, make
from _command_line import command_line
from _profile import KINDS, PARTS, Place, breakdown, places, read_spans
from _script import Report, Settings, quartiles, spread
from _turns import milliseconds
from _work import random_batches
from rich.table import Column

from experiments._networks import make_model

COLOURS = dict(zip(KINDS, ("#2166ac", "#1a7f37", "#d9822b", "#999999", "#dddddd"), strict=True))
WORK = {
    "teacher": "the teacher's own training",
    "distillation": "distillation",
    "student": "student alone",
}


@dataclass(frozen=True)
class Benchmark(Settings):
    """Where a step's time goes. A trial has 3 rounds of 3 steps."""

    LEAST: ClassVar = {"steps": 1, "rounds": 1, "batch": 1}
    work: tuple[str, ...] = (*WORK,)
    """which steps: teacher, distillation, student"""
    steps: int = 50
    """steps in each trace, and in each turn without one"""
    rounds: int = 7
    """how often every step has its turn with a trace, and its turn without; an odd number"""
    batch: int = 32
    """images a step"""
    figure: Path | None = None
    """picture of them, png or svg"""
    traces: Path | None = None
    """folder that keeps the traces and the programs' texts"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.work or not set(self.work) <= set(WORK):
            raise ValueError(f"work must name some of {', '.join(WORK)}; got {self.work}.")
        if self.rounds % 2 == 0:
            raise ValueError(f"rounds must be odd, since one of them is the median; got {self.rounds}.")


def main(settings: Benchmark) -> None:
    report = Report(settings)
    steps, rounds = (3, 3) if settings.quick else (settings.steps, settings.rounds)
    rows = []
    for work in settings.work:
        with report.console.status(work):
            rows.append(profiled(work, _case(work, settings.batch), steps, rounds, settings.traces))
    for row in rows:
        _print(report, row)
    if settings.figure is not None:
        hardware = report.found["hardware"]
        on = hardware["cpu" if hardware["platform"] == "cpu" else "device"]
        report.picture(_figure(rows, on), settings.figure)
    report.write(rows=rows)


def _case(work: str, batch: int) -> Case:
    networks = (name and make_model(name) for name in PAIRS[work])
    return make(*networks, random_batches(batch))


def profiled(work: str, case: Case, steps: int, rounds: int, keep: Path | None) -> dict[str, Any]:
    """Milliseconds of a step by part and kind, in the round whose traced time is the median: there they sum to it."""
    program = case.compiled().as_text()
    where, module = places(program), program.split(maxsplit=2)[1].rstrip(",")
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # it would cost more than the step
    run = case.runner()
    run(3)
    plain: list[float] = []
    traced: list[tuple[float, dict[Place, float], Path]] = []
    with tempfile.TemporaryDirectory() as temporary:
        with jax.profiler.trace(f"{temporary}/first", profiler_options=options):
            run(1)  # starts the profiler, too
        for number in range(rounds):
            folder = Path(temporary) / str(number)
            run(1)
            plain.append(milliseconds(run, steps))
            with jax.profiler.trace(str(folder), profiler_options=options):
                time_ms = milliseconds(run, steps)
            spans = read_spans(folder, module)
            if not spans:
                raise RuntimeError(f"The trace of the {work} step holds no operation of {module}.")
            parts = breakdown(spans, where, 1e6 * steps * time_ms)
            traced.append((time_ms, {place: time_ns / 1e6 / steps for place, time_ns in parts.items()}, folder))
        _, parts, folder = sorted(traced, key=lambda one: one[0])[rounds // 2]
        if keep is not None:
            shutil.copytree(folder, keep / work, dirs_exist_ok=True)
            (keep / work / "program.txt").write_text(program)
    times = [time_ms for time_ms, _, _ in traced]
    return {
        "work": work,
        "untraced_ms": quartiles(plain),
        "traced_ms": quartiles(times),
        "parts": [
            {"part": part, "kind": kind, "ms": parts[part, kind]}
            for part, kind in sorted(parts, key=lambda place: (PARTS.index(place[0]), KINDS.index(place[1])))
        ],
    }


def _by_part(row: dict[str, Any]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {part: {} for part in PARTS}
    for entry in row["parts"]:
        found[entry["part"]][entry["kind"]] = entry["ms"]
    return {part: kinds for part, kinds in found.items() if kinds}


def _print(report: Report, row: dict[str, Any]) -> None:
    parts = _by_part(row)
    total = sum(sum(kinds.values()) for kinds in parts.values())
    rows = []
    for part, kinds in parts.items():
        own = sum(kinds.values())
        cells = (f"{kinds[kind]:.3f}" if kind in kinds else "" for kind in KINDS[:4])
        rows.append((part, *cells, f"{own:.3f}", f"{100 * own / total:.0f} %"))
    rows.append(("sum", *[""] * 4, f"{total:.3f}", "100 %"))
    heads = ("convolution", "product", "other", "copy", "all", "share")
    report.table(f"{WORK[row['work']]}: ms a step, in the median round", (Column("", no_wrap=True), *heads), rows)
    traced, plain = row["traced_ms"][1], row["untraced_ms"][1]
    report.console.print(
        f"traced {spread(row['traced_ms'])}, untraced {spread(row['untraced_ms'])}, median over the rounds (quartiles): "
        f"tracing costs {100 * (traced / plain - 1):+.0f} %",
        soft_wrap=True,
    )


def _figure(rows: list[dict[str, Any]], device: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 0.9 + 2.1 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, row in zip(panels, rows, strict=True):
        parts = _by_part(row)
        left = dict.fromkeys(parts, 0.0)
        for kind in KINDS:
            widths = [kinds.get(kind, 0.0) for kinds in parts.values()]
            axis.barh([*parts], widths, left=[*left.values()], color=COLOURS[kind], label=kind)
            left = {part: left[part] + width for part, width in zip(parts, widths, strict=True)}
        total = sum(left.values())
        for part, own in left.items():
            axis.annotate(f" {own:.2f} ms, {100 * own / total:.0f} %", (max(own, 0.0), part), va="center", fontsize=8)
        axis.set_xlim(0, 1.25 * max(left.values()))
        axis.invert_yaxis()
        title = f"{WORK[row['work']]}: {row['traced_ms'][1]:.2f} ms traced, {row['untraced_ms'][1]:.2f} ms untraced"
        axis.set_title(title, fontsize=10, loc="left")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel(f"ms a step, {device}", fontsize=9)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=8
    )
    return figure


if __name__ == "__main__":
    main(command_line(Benchmark, __doc__))
