"""How long does the whole of article C take, in kdjax and in PyTorch: the teacher, the student alone, the student distilled?

python benchmarks/article.py --data-dir DIR --out article.json

MNIST, 6 epochs each, batch 32, test accuracy after every epoch. kdjax does it as `experiments/model_compression.py` does:
the data on the device, the teacher run once for each example. PyTorch does it as the article does: eager, a DataLoader, the
teacher run in every step. Each side has a process of its own; phase by phase they take turns. A phase's seconds hold all but
imports and the reading of the files: kdjax's compilation is in them, read from no cache. The accuracies stand beside the
times, so that both sides are seen to have done the work.

About a quarter of an hour on 2 CPU cores, most of it PyTorch's.
"""

import os

os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import sleep
from typing import Any, ClassVar, Literal

import _sides
import jax
from _arithmetic import update_flops
from _command_line import command_line
from _script import Report, Settings, gpu, quartiles, spread, verdict
from _turns import PAUSE
from _work import TEACHER, WIDTHS
from rich.console import Console

from kdjax.data import load

PHASES = ("teacher", "alone", "distilled")
TARGETS = {"cpu": {"distilled": 8.0, "whole": 1.5}, "cuda": {"whole": 50.0}}
"""How many times faster than PyTorch kdjax is to be."""
QUICK_EXAMPLES = 640


@dataclass(frozen=True)
class Benchmark(Settings):
    """All of article C, on both sides. A trial takes 640 images and 2 epochs."""

    LEAST: ClassVar = {"epochs": 2, "repeats": 1, "batch": 1}
    data: str = "mnist"
    """mnist, or another source of 28 × 28 × 1 images that the experiments know"""
    data_dir: Path | None = None
    """folder with the original files"""
    platform: Literal["cpu", "cuda"] = "cpu"
    """what both sides compute on"""
    epochs: int = 6
    """passes over the training data, for each network"""
    batch: int = 32
    """images a step"""
    repeats: int = 1
    """how often the whole is done, with seeds 0, 1, …"""


def main(settings: Benchmark) -> None:
    report = Report(settings)
    data = [load(settings.data, split, data_dir=settings.data_dir) for split in ("train", "test")]
    if settings.quick:
        settings = replace(settings, epochs=2)
        data = [
            replace(part, inputs=part.inputs[:QUICK_EXAMPLES], labels=part.labels[:QUICK_EXAMPLES]) for part in data
        ]
    given = settings.epochs, settings.batch
    sides = {"kdjax": _sides.apart("_article_kdjax", data, *given, platform=settings.platform)}
    if report.finds_torch():
        splits, classes = [(part.inputs, part.labels) for part in data], len(data[0].class_names)
        sides["PyTorch"] = _sides.apart("_article_pytorch", splits, classes, *given, settings.platform)
    runs = [_one_run(sides, seed, report.console) for seed in range(settings.repeats)]
    updates = len(data[0].labels) // settings.batch
    close = _closeness(runs, updates * update_flops(WIDTHS[TEACHER], settings.batch), sides["kdjax"]["product_rate"]())
    ratios = _ratios(runs, TARGETS[settings.platform])
    _print(report, runs, close, ratios)
    report.write(gpu=gpu() if settings.platform == "cuda" else None, runs=runs, teachers_training=close, ratios=ratios)


def _one_run(sides: dict[str, dict], seed: int, console: Console) -> dict[str, dict[str, dict]]:
    """By side and phase: all seconds, those of each epoch's training, and the last test accuracy."""
    run: dict[str, dict[str, dict]] = {who: {} for who in sides}
    for phase in PHASES:
        for who, side in sides.items():
            with console.status(f"seed {seed}, {phase}, {who}"):
                sleep(PAUSE)
                run[who][phase] = side["phase"](phase, seed)
    return run


def _closeness(runs: list[dict], flops: int, product_rate: float) -> dict[str, Any]:
    """How near kdjax's training of the teacher comes to a large matrix product, by an epoch's floating-point operations."""
    seconds = median(seconds for run in runs for seconds in run["kdjax"]["teacher"]["epochs_s"])
    rates = {"flop_an_epoch": flops, "gflop_per_second": flops / seconds / 1e9, "product": product_rate / 1e9}
    return rates | {"share": flops / seconds / product_rate}


def _seconds(run: dict[str, dict], phase: str) -> float:
    return sum(part["seconds"] for part in run.values()) if phase == "whole" else run[phase]["seconds"]


def _ratios(runs: list[dict], targets: dict[str, float]) -> list[dict[str, Any]]:
    """PyTorch's seconds over kdjax's, one number a run; the median is what the target is for."""
    if "PyTorch" not in runs[0]:
        return []
    rows = []
    for phase in (*PHASES, "whole"):
        ratios = [_seconds(run["PyTorch"], phase) / _seconds(run["kdjax"], phase) for run in runs]
        target = targets.get(phase)
        met = None if target is None else median(ratios) >= target
        rows.append({"phase": phase, "ratios": ratios, "target": target, "met": met})
    return rows


def _print(report: Report, runs: list[dict], close: dict[str, Any], ratios: list[dict[str, Any]]) -> None:
    for title, phases, show in (
        ("s a phase, and in all", (*PHASES, "whole"), _all_seconds),
        ("s of an epoch's training, median (quartiles) over epochs and runs", PHASES, _epochs),
        ("test accuracy, %", PHASES, _accuracies),
    ):
        rows = [(who, *(show(runs, who, phase) for phase in phases)) for who in runs[0]]
        report.table(title, ("", *phases), rows)
    report.console.print(
        f"kdjax trains the teacher at {close['gflop_per_second']:,.0f} GFLOP/s, {close['share']:.0%} of a matrix product's "
        f"{close['product']:,.0f}.",
        soft_wrap=True,
    )
    if ratios:
        rows = []
        for row in ratios:
            each = ", ".join(f"{ratio:.2f}" for ratio in row["ratios"])
            target = "" if row["target"] is None else f"≥ {row['target']}"
            rows.append((row["phase"], each, target, verdict(row["met"])))
        report.table("How many times faster", ("phase", "PyTorch / kdjax", "target", ""), rows)


def _all_seconds(runs: list[dict], who: str, phase: str) -> str:
    return f"{median(_seconds(run[who], phase) for run in runs):.2f}"


def _epochs(runs: list[dict], who: str, phase: str) -> str:
    return spread(quartiles(second for run in runs for second in run[who][phase]["epochs_s"]))


def _accuracies(runs: list[dict], who: str, phase: str) -> str:
    return ", ".join(f"{100 * run[who][phase]['test_accuracy']:.2f}" for run in runs)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # this process only reads; the sides compute
    main(command_line(Benchmark, __doc__))
