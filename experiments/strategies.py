"""Which way to distil? Many of them with one small student, all else equal: the same weights, batches and epochs.

    python experiments/strategies.py --seeds 8
    python experiments/strategies.py --data fashion_mnist --data-dir DIR --seeds 3

The student of digits.py and its teacher, on digits (1,034 and 36,010 parameters) or, on 5,000 images, Fashion-MNIST (6,794
and 220,330). Test accuracy in %, mean ± 95 % interval over 8 seeds of digits; the tables are in the README:

    alone                         96.32 ± 0.98      three teachers, by confidence   97.85 ± 0.46
    offline: one frozen teacher   97.40 ± 0.64      from a part of the teacher      97.99 ± 0.44
    offline, no labels            97.57 ± 0.87      online: two students            94.62 ± 1.27
"""

import math
import platform
import shlex
import sys
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments._loop import evaluator
from experiments._setting import Setting, teacher_of
from experiments._strategies import PLAIN
from experiments._strategies_adaptive import ADAPTIVE
from experiments._strategies_features import FEATURES

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from kdjax._files import write_json
from kdjax.data import load, on_device, unit_range
from kdjax.metrics import Interval, mean_interval, paired_difference
from kdjax.models import make_model
from kdjax.networks import from_linen

ROOT = Path(__file__).resolve().parents[1]
TEACHERS = 3  # a seed
STRATEGIES = PLAIN | FEATURES | ADAPTIVE
# What is done where no option says otherwise. Larger images cost more an update, and get fewer.
USUAL = {"epochs": 6, "teacher_epochs": 6, "batch_size": 64, "learning_rate": 2e-3}
USUAL_OF_DIGITS = {"epochs": 80, "teacher_epochs": 20, "batch_size": 32, "learning_rate": 1e-2}


@dataclass(frozen=True)
class Strategies:
    """One student, many ways to teach it."""

    data: str = "digits"
    """where the examples come from: digits, mnist, fashion_mnist, tfds:NAME, idx:DIR, npz:FILE or folder:DIR"""
    data_dir: Path | None = None
    """folder with the original files of mnist or fashion_mnist, or with prepared TFDS data sets"""
    seeds: int = 8
    """how often everything is repeated, with seeds 0, 1, 2, …"""
    examples: int = 5_000
    """train on the first so many examples, or on all where there are fewer"""
    epochs: int | None = None
    """passes over them, for each student; None: 80 on digits, 6 on other data"""
    teacher_epochs: int | None = None
    """passes over them, for each of a seed's three teachers; None: 20 on digits, 6 on other data"""
    batch_size: int | None = None
    """examples an update; None: 32 on digits, 64 on other data"""
    learning_rate: float | None = None
    """Adam's, per update, at the start; a cosine takes it to 0 at the end; None: 1e-2 on digits, 2e-3 on other data"""
    temperature: float = 4.0
    """T of the soft targets, in logits"""
    alpha: float = 0.3
    """weight of the labels; the soft targets weigh 1 − alpha"""
    only: str = ""
    """run only the strategies that have this text in their name, and the student alone"""
    out: Path | None = None
    """folder of results.json, which is overwritten; it is written after each seed"""

    def __post_init__(self) -> None:
        for name in ("seeds", "examples", "epochs", "teacher_epochs", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be a whole number of 1 or more; got {value}.")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a finite number greater than 0; got {self.learning_rate}.")
        if self.only and not any(self.only in name for name in STRATEGIES):
            raise ValueError(f"only must be part of a strategy's name: {', '.join(STRATEGIES)}; got {self.only!r}.")


def main(settings: Strategies) -> None:
    usual = USUAL_OF_DIGITS if settings.data == "digits" else USUAL
    settings = replace(settings, **{name: usual[name] for name in usual if getattr(settings, name) is None})
    console = Console()
    console.width = max(console.width, 100)  # the table is cut otherwise
    jax.config.update("jax_compilation_cache_dir", str(ROOT / "checkpoints" / "compilation-cache"))
    data = [load(settings.data, split, data_dir=settings.data_dir) for split in ("train", "test")]
    train, test = (on_device(part, unit_range) for part in data)
    classes = len(data[0].class_names)
    shared = {name: getattr(settings, name) for name in (
        "epochs", "teacher_epochs", "batch_size", "learning_rate", "temperature", "alpha")}  # fmt: skip
    setting = Setting(
        {name: array[: settings.examples] for name, array in train.items()},
        student=from_linen(make_model("digits_student", classes=classes)),
        assistant=from_linen(make_model("digits_student", classes=classes, widths=(12, 24), hidden=32)),
        teacher=from_linen(make_model("digits_teacher", classes=classes)),
        **shared,
    )
    chosen = {name: make for name, make in STRATEGIES.items() if settings.only in name or name == "alone"}
    ways = {name: make(setting) for name, make in chosen.items()}
    train_teacher = teacher_of(setting)
    networks = {"teacher": setting.teacher, "student": setting.student}
    evaluate = {who: evaluator(apply) for who, (_, apply) in networks.items()}
    out = (
        settings.out
        or ROOT / "checkpoints" / "runs" / f"strategies-{settings.data.replace(':', '-').replace('/', '-')}"
    )
    records: list[dict[str, Any]] = []
    for seed in range(settings.seeds):
        started = time.monotonic()
        teachers = [train_teacher(seed, number) for number in range(TEACHERS)]
        record = {
            "teacher": {
                "accuracy": 100 * evaluate["teacher"](teachers[0], test)["accuracy"],
                "seconds": time.monotonic() - started,
            }
        }
        for name, learn in ways.items():
            begun = time.monotonic()
            accuracy = 100 * evaluate["student"](learn(seed, teachers), test)["accuracy"]
            record[name] = {"accuracy": accuracy, "seconds": time.monotonic() - begun}
        records.append(record)
        console.print(f"seed {seed}: {time.monotonic() - started:.0f} s")
        write_json(out / "results.json", {
            "command": shlex.join(["python", *sys.argv]),
            "config": asdict(settings),
            "versions": {package: version(package) for package in ("jax", "jaxlib", "flax", "optax")},
            "machine": platform.machine(),
            "device": jax.devices()[0].platform,
            "seeds": records,
        })  # fmt: skip
    show(records, console)
    console.print(f"Results: {out / 'results.json'}", soft_wrap=True)


def show(records: list[dict[str, Any]], console: Console) -> None:
    """A row a strategy: accuracy, what it gains over the student alone and over the plain frozen teacher, and its cost.

    `records` are the "seeds" of results.json.
    """
    table = Table(title="strategies", title_justify="left")
    for header in ("strategy", "test accuracy, %", "− alone", "− offline", "seconds", "× alone"):
        table.add_column(header, no_wrap=True)
    values = {name: [record[name]["accuracy"] for record in records] for name in records[0]}
    # The first seed compiles.
    later = records[1:] or records
    seconds = {name: float(np.median([record[name]["seconds"] for record in later])) for name in values}
    offline = next((name for name in values if name.startswith("offline:")), None)
    for name, own in values.items():
        against = ["" if other in (None, name) or name == "teacher" else said(paired_difference(own, values[other]), "+")
                   for other in ("alone", offline)]  # fmt: skip
        ratio = "" if name == "teacher" else f"{seconds[name] / seconds['alone']:.1f}"
        table.add_row(name, said(mean_interval(own)), *against, f"{seconds[name]:.1f}", ratio)
    console.print(table)


def said(interval: Interval, sign: str = "") -> str:
    """Mean ± half of the 95 % interval; a difference that is clear of zero in bold."""
    bold = sign and interval.excludes_zero
    text = f"{interval:{sign}.2f}"
    return f"[bold]{text}[/bold]" if bold else text


if __name__ == "__main__":
    main(tyro.cli(Strategies, description=__doc__))
