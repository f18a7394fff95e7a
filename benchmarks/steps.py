"""How long does one training step take, in kdjax and in PyTorch? Both side by side, in one run, in turns.

python benchmarks/steps.py --out steps.json

Three pieces of work on article C's networks, batch 32, Adam: the teacher's step, the distillation step (the teacher's
forward pass, the student's update) and the student's step alone. Both sides start from the same weights and see the same
batches; their losses are compared after the first step, so that they are known to compute the same thing. PyTorch is the
`bench` extra; without it kdjax is measured alone. Times are medians over rounds, with quartiles; one machine's times say
nothing about another's, the ratios say more.

With --apart each side has a process of its own, where the other's threads and memory allocator cannot disturb it; the sides
still take turns, with a pause in which the threads of the one before fall asleep.
"""

import os

# A cold start for both: PyTorch keeps compiled code on disk otherwise, and JAX where an experiment's cache is named.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import quantiles

import _kdjax_side
import _sides
import jax
import tyro
from _machine import environment, spread
from _turns import PAUSE, Case, first_steps, rounds
from _work import STUDENT, TEACHER, WAYS, Step, random_batches
from rich.console import Console
from rich.table import Table

from kdjax._files import write_json

WORK = ("teacher", "distillation", "student")
TARGETS = {"teacher": 1.05, "distillation": 0.65, "student": 1.1}
"""Of PyTorch's best time, the most that kdjax's may be."""
POOL_FIRST = ", pool first"


@dataclass(frozen=True)
class Benchmark:
    """kdjax's training steps against PyTorch's."""

    steps: int = 30
    """steps timed together, in each round"""
    rounds: int = 9
    """how often every case has its turn"""
    batch: int = 32
    """images a step"""
    apart: bool = False
    """each side in a process of its own"""
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
    found = environment(console)
    cases = _cases(settings, console)
    first = first_steps(cases, console)
    times = rounds(
        cases,
        5 if settings.quick else settings.steps,
        3 if settings.quick else settings.rounds,
        PAUSE if settings.apart else 0.0,
    )
    summary = {case: quantiles(values, n=4, method="inclusive") for case, values in times.items()}
    ratios = _ratios({case: middle for case, (_, middle, _) in summary.items()})
    _print(console, settings, summary, first, ratios)
    if settings.out is not None:
        rows = [
            {"who": who, "work": work, "quartiles_ms": summary[who, work], "rounds_ms": times[who, work],
             "first_step_s": first[who, work]}
            for who, work in cases
        ]  # fmt: skip
        config = asdict(settings) | {"out": str(settings.out)}
        write_json(settings.out, {**found, "config": config, "rows": rows, "ratios": ratios})
        console.print(f"Written to {settings.out}")


def _cases(settings: Benchmark, console: Console) -> dict[Case, Step]:
    params = {name: _kdjax_side.initial_params(name) for name in (TEACHER, STUDENT)}
    make = _sides.apart if settings.apart else _sides.here
    given = (params, random_batches(settings.batch))
    sides = {"kdjax": make("_kdjax_side", *given)}
    if find_spec("torch") is None:
        console.print('PyTorch is missing, so kdjax is measured alone; pip install -e ".[bench]"', markup=False)
    else:
        for pool_first in (False, True):
            for way, (_, compiled) in WAYS.items():
                if not (settings.quick and compiled):
                    sides[f"PyTorch {way}{POOL_FIRST if pool_first else ''}"] = make(
                        "_pytorch_side", *given, way, pool_first
                    )
    return {(who, work): side[work] for who, side in sides.items() for work in WORK}


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


def _print(
    console: Console,
    settings: Benchmark,
    summary: dict[Case, list[float]],
    first: dict[Case, float],
    ratios: list[dict],
) -> None:
    processes = "a process for each side" if settings.apart else "one process"
    rows = list(dict.fromkeys(who for who, _ in summary))

    def cell(who: str, work: str) -> str:
        return spread(summary[who, work])

    for title, show in (
        (f"ms a step, {processes}: median over the rounds (quartiles)", cell),
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


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(tyro.cli(Benchmark, description=__doc__))
