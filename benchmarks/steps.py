"""How long does one training step take, in kdjax and in PyTorch? Both side by side, in one run, in turns.

python benchmarks/steps.py --out steps.json

Three pieces of work on article C's networks, batch 32, Adam: the teacher's step, the distillation step (the teacher's
forward pass, the student's update) and the student's step alone. Both sides start from the same weights and see the same
batches; their losses are compared after the first step, so that they are known to compute the same thing. PyTorch is the
`bench` extra; without it kdjax is measured alone. Times are medians over rounds, with quartiles; one machine's times say
nothing about another's, the ratios say more.
"""

import os

# A cold start for both: PyTorch keeps compiled code on disk otherwise, and JAX where an experiment's cache is named.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

import math
import platform
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import quantiles

import _kdjax_side
import jax
import tyro
from _work import STUDENT, TEACHER, Step, random_batches
from rich.console import Console
from rich.table import Table

from kdjax.records import write_json

WORK = ("teacher", "distillation", "student")
TARGETS = {"teacher": 1.05, "distillation": 0.65, "student": 1.1}
"""Of PyTorch's best time, the most that kdjax's may be."""
POOL_FIRST = ", pool first"
WARM_UP = 3
Case = tuple[str, str]  # who, and which work


@dataclass(frozen=True)
class Benchmark:
    """kdjax's training steps against PyTorch's."""

    steps: int = 30
    """steps timed together, in each round"""
    rounds: int = 9
    """how often every case has its turn"""
    batch: int = 32
    """images a step"""
    out: Path | None = None
    """JSON file for the results"""
    quick: bool = False
    """a few seconds of trial: 5 steps, 3 rounds, nothing compiled by PyTorch"""

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("rounds", 3), ("batch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}.")


def main(settings: Benchmark) -> None:
    console = Console()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0]
    if load > 0.3 * cores:
        console.print(
            f"[yellow]The machine is busy (load {load:.1f} on {cores} cores): times will be too long.[/yellow]"
        )
    cases = _cases(settings, cores, console)
    first = _first_steps(cases, console)
    times = _rounds(cases, 5 if settings.quick else settings.steps, 3 if settings.quick else settings.rounds)
    summary = {case: quantiles(values, n=4, method="inclusive") for case, values in times.items()}
    ratios = _ratios({case: middle for case, (_, middle, _) in summary.items()})
    _print(console, summary, first, ratios)
    if settings.out is not None:
        rows = [
            {"who": who, "work": work, "quartiles_ms": summary[who, work], "rounds_ms": times[who, work],
             "first_step_s": first[who, work]}
            for who, work in cases
        ]  # fmt: skip
        environment = {"cores": cores, "load_before": load, "cpu": _cpu(), "versions": _versions()}
        command = shlex.join([Path(sys.executable).name, *sys.argv])
        config = asdict(settings) | {"out": str(settings.out)}
        write_json(settings.out, {"command": command, "config": config, **environment, "rows": rows, "ratios": ratios})
        console.print(f"Written to {settings.out}")


def _cases(settings: Benchmark, cores: int, console: Console) -> dict[Case, Step]:
    params = {name: _kdjax_side.initial_params(name) for name in (TEACHER, STUDENT)}
    batches = random_batches(settings.batch)
    sides = {"kdjax": _kdjax_side.steps(params, batches)}
    try:
        import torch
    except ModuleNotFoundError:
        console.print('PyTorch is missing, so kdjax is measured alone; pip install -e ".[bench]"', markup=False)
    else:
        import _pytorch_side

        torch.set_num_threads(cores)
        for pool_first in (False, True):
            for way, (_, compiled) in _pytorch_side.WAYS.items():
                if not (settings.quick and compiled):
                    who = f"PyTorch {way}{POOL_FIRST if pool_first else ''}"
                    sides[who] = _pytorch_side.steps(params, batches, way, pool_first=pool_first)
    return {(who, work): side[work] for who, side in sides.items() for work in WORK}


def _first_steps(cases: dict[Case, Step], console: Console) -> dict[Case, float]:
    """Seconds from the call to the end of the first step, compilation included; raises where two sides' losses differ."""
    seconds: dict[Case, float] = {}
    losses: dict[str, float] = {}
    with console.status("first steps"):
        for (who, work), step in cases.items():
            started = time.perf_counter()
            loss = step(1)
            seconds[who, work] = time.perf_counter() - started
            wanted = losses.setdefault(work, loss)
            if not math.isclose(loss, wanted, rel_tol=1e-4):
                raise RuntimeError(f"The {work} step of {who} has loss {loss}, and kdjax's has {wanted}.")
    return seconds


def _rounds(cases: dict[Case, Step], steps: int, rounds: int) -> dict[Case, list[float]]:
    """Milliseconds a step, one number a round. All cases take turns, so that a slow minute of the machine hits all alike."""
    times: dict[Case, list[float]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case, step in cases.items():
            step(WARM_UP)
            started = time.perf_counter()
            step(steps)
            times[case].append(1000 * (time.perf_counter() - started) / steps)
    return times


def _ratios(medians: dict[Case, float]) -> list[dict]:
    """The time of kdjax over PyTorch's best: of the networks as the article writes them, and of all ways."""
    ratios = []
    for work in WORK:
        others = {who: time for (who, which), time in medians.items() if which == work and who != "kdjax"}
        as_written = {who: time for who, time in others.items() if not who.endswith(POOL_FIRST)}
        for among, candidates in (("as written", as_written), ("all", others)):
            if candidates:
                best = min(candidates, key=candidates.__getitem__)
                ratio = medians["kdjax", work] / candidates[best]
                ratios.append({"work": work, "among": among, "best": best, "ratio": ratio, "target": TARGETS[work]})
    return ratios


def _print(console: Console, summary: dict[Case, list[float]], first: dict[Case, float], ratios: list[dict]) -> None:
    rows = list(dict.fromkeys(who for who, _ in summary))

    def cell(who: str, work: str) -> str:
        low, middle, high = summary[who, work]
        return f"{middle:.2f} ({low:.2f}–{high:.2f})"

    for title, show in (
        ("ms a step: median over the rounds (quartiles)", cell),
        ("s to the end of the first step", lambda who, work: f"{first[who, work]:.2f}"),
    ):
        table = Table("", *WORK, title=title, title_justify="left")
        for who in rows:
            table.add_row(who, *(show(who, work) for work in WORK))
        console.print(table)
    if ratios:
        table = Table("work", "PyTorch's best of", "is", "kdjax / best", "target", title="Ratios", title_justify="left")
        for row in ratios:
            table.add_row(row["work"], row["among"], row["best"], f"{row['ratio']:.2f}", f"≤ {row['target']}")
        console.print(table)


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("jax", "jaxlib", "flax", "optax", "numpy", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(tyro.cli(Benchmark, description=__doc__))
