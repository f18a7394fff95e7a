"""How long does a distillation step of WRN-40-2 to WRN-16-2 take on 32 × 32 images, in kdjax and in PyTorch?

python benchmarks/wrn.py --out wrn.json
python benchmarks/wrn.py --platform cuda --precision bfloat16 --batch 128 --steps 40 --out wrn-bfloat16.json

The teacher's forward pass and the student's update, SGD with momentum, batch statistics and all. On a CPU both sides
compute in float32; on a GPU in TF32 and in bfloat16, kdjax also with many steps a call, PyTorch also with CUDA graphs. Every
case has a process of its own, and all take turns. Both sides start from the same weights and see the same batches; their
losses are compared after the first step.

Beside the times stands the share of the machine's peak: the step's convolutions, counted by arithmetic, over a large matrix
product's rate in the same run, or over the rate that the GPU's maker states.
"""

import os

# A cold start for both: PyTorch keeps compiled code on disk otherwise, and JAX where an experiment's cache is named.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import _sides
import _wrn_kdjax
import jax
from _command_line import command_line
from _script import Report, Settings, gpu, quartiles, spread, verdict
from _turns import PAUSE, Case, first_steps, rounds
from _work import Step, random_batches
from _wrn_work import (
    BFLOAT16,
    FLOAT32,
    IMAGE,
    KDJAX,
    ON_CPU,
    ON_GPU,
    PRODUCT,
    PYTORCH,
    STEP,
    Way,
    flops_of_a_step,
)

TARGETS = {"cpu": 1.5, "cuda": 1.2}
"""How many times faster than PyTorch's best form kdjax is to be."""
TOLERANCE = {"cpu": 1e-3, "cuda": 3e-2}
"""By how much first losses may differ: on a GPU bfloat16 stands beside TF32."""
SIZES = {"cpu": 2048, "cuda": 8192}
"""Rows of the matrices whose product tells the peak."""
STATED = {"H200": (494.5, 989.0), "H100": (494.5, 989.0), "A100": (156.0, 312.0)}
"""TFLOP/s of TF32 and of bfloat16 by the data sheets of the SXM forms, without sparsity."""


@dataclass(frozen=True)
class Benchmark(Settings):
    """A distillation step of two wide residual networks.

    A trial has 3 rounds of 1 step of batch 8, and compiles nothing in PyTorch.
    """

    LEAST: ClassVar = {"steps": 1, "rounds": 3, "batch": 1}
    platform: Literal["cpu", "cuda"] = "cpu"
    """what both sides compute on"""
    batch: int = 64
    """images a step"""
    steps: int = 4
    """steps timed together, in each round; on a GPU a multiple of 8, some dozens"""
    rounds: int = 9
    """how often every case has its turn"""
    precision: Literal["TF32", "bfloat16"] | None = None
    """on a GPU, this one alone; default both"""
    autotune: bool = False
    """on a GPU, PyTorch's max-autotune too, which may take minutes to compile"""
    brief: bool = False
    """on a GPU, of kdjax many steps a call and of PyTorch CUDA graphs alone"""


def main(settings: Benchmark) -> None:
    report = Report(settings)
    chip = gpu() if settings.platform == "cuda" else None
    batch, steps, count = (8, 1, 3) if settings.quick else (settings.batch, settings.steps, settings.rounds)
    batches = random_batches(batch, image=IMAGE)
    weights = _wrn_kdjax.initial_weights(batches[0][0])
    ways = {way.name: way for way in _ways(settings, report)}
    cases: dict[Case, Step] = {}
    for name, way in ways.items():
        plain = {model: tuple(given) for model, given in weights.items()}
        side = _sides.apart(way.side, plain, batches, SIZES[settings.platform], way, platform=settings.platform)
        cases |= {(name, work): side[work] for work in (STEP, PRODUCT)}
    first = first_steps(_only(cases, STEP), report.console, TOLERANCE[settings.platform])
    with report.console.status("rounds"):
        times = rounds(cases, steps, count, pause=PAUSE)
    flops = flops_of_a_step({model: given.params for model, given in weights.items()}, batch)
    rows = _rows(ways, times, first, flops, batch, SIZES[settings.platform], chip)
    comparison = _compared(rows, TARGETS[settings.platform])
    _print(report, settings, rows, comparison)
    report.write(gpu=chip, batch=batch, gflop_a_step=flops / 1e9, rows=rows, comparison=comparison)


def _ways(settings: Benchmark, report: Report) -> list[Way]:
    has_torch = report.finds_torch()
    return [
        way
        for way in (ON_CPU if settings.platform == "cpu" else ON_GPU)
        if way.precision in (FLOAT32, settings.precision or way.precision)
        and (settings.autotune or way.compiled != "max-autotune")
        and (not settings.brief or settings.platform == "cpu" or way.scanned or way.compiled is not None)
        and (way.side == KDJAX or (has_torch and not (settings.quick and way.compiled is not None)))
    ]


def _only(cases: dict[Case, Step], work: str) -> dict[Case, Step]:
    return {case: step for case, step in cases.items() if case[1] == work}


def _rows(
    ways: dict[str, Way],
    times: dict[Case, list[float]],
    first: dict[Case, float],
    flops: float,
    batch: int,
    size: int,
    chip: str | None,
) -> list[dict[str, Any]]:
    """One a way. The peak of a precision is the fastest matrix product of any side and round in it."""
    fastest = {}
    for name, way in ways.items():
        fastest[way.precision] = min(fastest.get(way.precision, float("inf")), *times[name, PRODUCT])
    rows = []
    for who, way in ways.items():
        spent = quartiles(times[who, STEP])
        rate = flops / spent[1] / 1e9  # TFLOP/s
        stated = next(
            (peaks[way.precision == BFLOAT16] for name, peaks in STATED.items() if name in (chip or "")), None
        )
        rows.append(
            {
                "who": who, **asdict(way), "quartiles_ms": spent, "rounds_ms": times[who, STEP],
                "images_per_second": 1000 * batch / spent[1], "first_step_s": first[who, STEP],
                "tflops": rate, "peak_measured_tflops": 2 * size**3 / fastest[way.precision] / 1e9,
                "share_of_measured_peak": rate / (2 * size**3 / fastest[way.precision] / 1e9),
                "peak_stated_tflops": stated, "share_of_stated_peak": None if stated is None else rate / stated,
            }
        )  # fmt: skip
    return rows


def _compared(rows: list[dict[str, Any]], target: float) -> list[dict[str, Any]]:
    """PyTorch's best time over kdjax's best, in each precision; the quartiles are of the rounds' own ratios."""
    compared = []
    for precision in dict.fromkeys(row["precision"] for row in rows):
        best = {
            side: min(sided, key=lambda row: row["quartiles_ms"][1])
            for side in (KDJAX, PYTORCH)
            if (sided := [row for row in rows if row["precision"] == precision and row["side"] == side])
        }
        if len(best) == 2:
            ours, theirs = best[KDJAX]["rounds_ms"], best[PYTORCH]["rounds_ms"]
            ratios = quartiles(b / a for a, b in zip(ours, theirs, strict=True))
            names = {"kdjax": best[KDJAX]["who"], "pytorch": best[PYTORCH]["who"]}
            is_met = {"faster": ratios[1], "quartiles": ratios, "target": target, "met": ratios[1] >= target}
            compared.append({"precision": precision, **names, **is_met})
    return compared


def _print(report: Report, settings: Benchmark, rows: list[dict[str, Any]], comparison: list[dict[str, Any]]) -> None:
    peak = "of the peak" if settings.platform == "cuda" else "of a product's rate"
    cells = []
    for row in rows:
        share = row["share_of_stated_peak"] or row["share_of_measured_peak"]
        speed = (f"{row['images_per_second']:,.0f}", f"{row['first_step_s']:.2f}", f"{1000 * row['tflops']:,.0f}")
        cells.append((row["who"], spread(row["quartiles_ms"]), *speed, f"{share:.0%}"))
    report.table(None, ("", "ms a step (quartiles)", "images/s", "first step, s", "GFLOP/s", peak), cells)
    for row in comparison:
        report.console.print(
            f"{row['kdjax']} is {spread(row['quartiles'])} times as fast as {row['pytorch']}; target ≥ {row['target']}: "
            f"{verdict(row['met'])}",
            soft_wrap=True,
        )


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(command_line(Benchmark, __doc__))
