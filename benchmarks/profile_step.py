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
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

import jax
import tyro
from _cases import Case, make
from _machine import environment, spread
from _profile import KINDS, PARTS, Place, breakdown, places, read_spans
from _work import STUDENT, TEACHER, random_batches
from rich.console import Console
from rich.table import Column, Table

from kdjax._files import write_json
from kdjax.models import make_model
from kdjax.runs.report import save_figure

COLOURS = dict(zip(KINDS, ("#2166ac", "#1a7f37", "#d9822b", "#999999", "#dddddd"), strict=True))
WORK = {
    "teacher": "the teacher's own training",
    "distillation": "distillation",
    "student": "student alone",
}


@dataclass(frozen=True)
class Benchmark:
    """Where a step's time goes."""

    work: tuple[str, ...] = (*WORK,)
    """which steps: teacher, distillation, student"""
    steps: int = 50
    """steps in each trace, and in each turn without one"""
    rounds: int = 7
    """how often every step has its turn with a trace, and its turn without; an odd number"""
    batch: int = 32
    """images a step"""
    out: Path | None = None
    """JSON file for the results"""
    figure: Path | None = None
    """picture of them, png or svg"""
    traces: Path | None = None
    """folder that keeps the traces and the programs' texts"""
    quick: bool = False
    """a trial: 3 steps, 3 rounds"""

    def __post_init__(self) -> None:
        if not self.work or not set(self.work) <= set(WORK):
            raise ValueError(f"work must name some of {', '.join(WORK)}; got {self.work}.")
        for name in ("steps", "rounds", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.rounds % 2 == 0:
            raise ValueError(f"rounds must be odd, since one of them is the median; got {self.rounds}.")


def main(settings: Benchmark) -> None:
    console = Console()
    found = environment(console) | {"device": jax.devices()[0].device_kind}
    steps, rounds = (3, 3) if settings.quick else (settings.steps, settings.rounds)
    rows = []
    for work in settings.work:
        with console.status(work):
            rows.append(profiled(work, _case(work, settings.batch), steps, rounds, settings.traces))
    for row in rows:
        console.print(_table(row))
    if settings.figure is not None:
        on = found["cpu"] if jax.default_backend() == "cpu" else found["device"]
        save_figure(_figure(rows, on), settings.figure, dots_per_inch=110)
        console.print(f"Drawn in {settings.figure}")
    if settings.out is not None:
        config = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()}
        write_json(settings.out, {**found, "config": config, "rows": rows})
        console.print(f"Written to {settings.out}")


def _case(work: str, batch: int) -> Case:
    student, teacher = {"teacher": (TEACHER, None), "distillation": (STUDENT, TEACHER), "student": (STUDENT, None)}[
        work
    ]
    return make(make_model(student), teacher and make_model(teacher), random_batches(batch))


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
            plain.append(_milliseconds(run, steps))
            with jax.profiler.trace(str(folder), profiler_options=options):
                time_ms = _milliseconds(run, steps)
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
        "untraced_ms": quantiles(plain, n=4, method="inclusive"),
        "traced_ms": quantiles(times, n=4, method="inclusive"),
        "parts": [
            {"part": part, "kind": kind, "ms": parts[part, kind]}
            for part, kind in sorted(parts, key=lambda place: (PARTS.index(place[0]), KINDS.index(place[1])))
        ],
    }


def _milliseconds(run: Any, steps: int) -> float:
    started = time.perf_counter()
    run(steps)
    return 1000 * (time.perf_counter() - started) / steps


def _by_part(row: dict[str, Any]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {part: {} for part in PARTS}
    for entry in row["parts"]:
        found[entry["part"]][entry["kind"]] = entry["ms"]
    return {part: kinds for part, kinds in found.items() if kinds}


def _table(row: dict[str, Any]) -> Table:
    parts = _by_part(row)
    total = sum(sum(kinds.values()) for kinds in parts.values())
    title = f"{WORK[row['work']]}: ms a step, in the median round"
    heads = ("convolution", "product", "other", "copy")
    table = Table(Column("", no_wrap=True), *heads, "all", "share", title=title, title_justify="left")
    for part, kinds in parts.items():
        cells = (f"{kinds[kind]:.3f}" if kind in kinds else "" for kind in KINDS[:4])
        own = sum(kinds.values())
        table.add_row(part, *cells, f"{own:.3f}", f"{100 * own / total:.0f} %")
    traced, plain = row["traced_ms"][1], row["untraced_ms"][1]
    table.add_row("sum", *[""] * 4, f"{total:.3f}", "100 %", style="bold")
    table.caption = (
        f"traced {spread(row['traced_ms'])}, untraced {spread(row['untraced_ms'])}, median over the rounds (quartiles): "
        f"tracing costs {100 * (traced / plain - 1):+.0f} %"
    )
    table.caption_justify = "left"
    return table


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
    main(tyro.cli(Benchmark, description=__doc__))
