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

from dataclasses import dataclass
from typing import ClassVar

import _kdjax_side
import _sides
import jax
from _cases import PAIRS as WORK
from _command_line import command_line
from _script import Report, Settings, quartiles, spread
from _turns import PAUSE, Case, first_steps, rounds
from _work import STUDENT, TEACHER, WAYS, Step, random_batches

TARGETS = {"teacher": 1.05, "distillation": 0.65, "student": 1.1}
"""Of PyTorch's best time, the most that kdjax's may be."""
POOL_FIRST = ", pool first"


@dataclass(frozen=True)
class Benchmark(Settings):
    """kdjax's training steps against PyTorch's. A trial has 3 rounds of 5 steps, and compiles nothing in PyTorch."""

    LEAST: ClassVar = {"steps": 1, "rounds": 3, "batch": 1}
    steps: int = 30
    """steps timed together, in each round"""
    rounds: int = 9
    """how often every case has its turn"""
    batch: int = 32
    """images a step"""
    apart: bool = False
    """each side in a process of its own"""


def main(settings: Benchmark) -> None:
    report = Report(settings)
    cases = _cases(settings, report)
    first = first_steps(cases, report.console)
    steps, count = (5, 3) if settings.quick else (settings.steps, settings.rounds)
    times = rounds(cases, steps, count, pause=PAUSE if settings.apart else 0.0)
    summary = {case: quartiles(values) for case, values in times.items()}
    ratios = _ratios({case: middle for case, (_, middle, _) in summary.items()})
    _print(report, settings, summary, first, ratios)
    rows = [
        {"who": who, "work": work, "quartiles_ms": summary[who, work], "rounds_ms": times[who, work],
         "first_step_s": first[who, work]}
        for who, work in cases
    ]  # fmt: skip
    report.write(rows=rows, ratios=ratios)


def _cases(settings: Benchmark, report: Report) -> dict[Case, Step]:
    params = {name: _kdjax_side.initial_params(name) for name in (TEACHER, STUDENT)}
    make = _sides.apart if settings.apart else _sides.here
    given = (params, random_batches(settings.batch))
    sides = {"kdjax": make("_kdjax_side", *given)}
    if report.finds_torch():
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
    report: Report,
    settings: Benchmark,
    summary: dict[Case, list[float]],
    first: dict[Case, float],
    ratios: list[dict],
) -> None:
    processes = "a process for each side" if settings.apart else "one process"
    for title, cells in (
        (
            f"ms a step, {processes}: median over the rounds (quartiles)",
            {case: spread(values) for case, values in summary.items()},
        ),
        ("s to the end of the first step", {case: f"{seconds:.2f}" for case, seconds in first.items()}),
    ):
        whos = dict.fromkeys(who for who, _ in cells)
        report.table(title, ("", *WORK), [(who, *(cells[who, work] for work in WORK)) for who in whos])
    if ratios:
        heads = ("work", "PyTorch's best of", "is", "kdjax / best", "target")
        rows = [(row["work"], row["among"], row["best"], f"{row['ratio']:.2f}", f"≤ {row['target']}") for row in ratios]
        report.table("Ratios", heads, rows)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(command_line(Benchmark, __doc__))
