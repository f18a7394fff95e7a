"""Which way to distil? Many of them with one small student, all else equal: the same weights, batches and epochs.

    python experiments/strategies.py --seeds 8
    python experiments/strategies.py --data fashion_mnist --data-dir DIR --seeds 3

The student of digits.py and its teacher, on digits (1,034 and 36,010 parameters) or, on 5,000 images, Fashion-MNIST (6,794
and 220,330). Test accuracy in %, mean ± 95 % interval over 8 seeds of digits; the tables are in the README:

    alone                         96.32 ± 0.98      three teachers, by confidence   97.85 ± 0.46
    offline: one frozen teacher   97.40 ± 0.64      from a part of the teacher      97.99 ± 0.44
    offline, no labels            97.57 ± 0.87      online: two students            94.62 ± 1.27
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments._networks import make_model
from experiments._setting import Setting, teacher_of
from experiments._settings import Run, recorded, spread, start
from experiments._strategies import PLAIN
from experiments._strategies_adaptive import ADAPTIVE
from experiments._strategies_features import FEATURES
from kdjax import Weights
from kdjax.data import on_device, unit_range
from kdjax.metrics import Interval, mean_interval, paired_difference
from kdjax.networks import from_linen
from kdjax.training import DivergedError, make_evaluation

TEACHERS = 3  # a seed
STRATEGIES = PLAIN | FEATURES | ADAPTIVE
# What is done where no option says otherwise. Larger images cost more an update, and get fewer.
USUAL = {"epochs": 6, "teacher_epochs": 6, "batch_size": 64, "learning_rate": 2e-3}
USUAL_OF_DIGITS = {"epochs": 80, "teacher_epochs": 20, "batch_size": 32, "learning_rate": 1e-2}


@dataclass(frozen=True)
class Strategies(Run):
    """One student, many ways to teach it."""

    data: str = "digits"
    """digits, mnist, fashion_mnist, tfds:NAME, idx:DIR, npz:FILE, npy:DIR or folder:DIR"""
    seeds: int = 8
    """how often everything is repeated, with seeds 0, 1, 2, …"""
    examples: int = 5_000
    """train on the first so many examples, or on all where there are fewer; where they lie class by class, as in folder:DIR,
    on as many, evenly spread"""
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.only and not any(self.only in name for name in STRATEGIES):
            raise ValueError(f"only must be part of a strategy's name: {', '.join(STRATEGIES)}; got {self.only!r}.")


def main(settings: Strategies) -> None:
    usual = USUAL_OF_DIGITS if settings.data == "digits" else USUAL
    settings = replace(settings, **{name: usual[name] for name in usual if getattr(settings, name) is None})
    console = Console()
    console.width = max(console.width, 100)  # the table is cut otherwise
    data = settings.load()
    train, test = (on_device(part, unit_range) for part in data)
    chosen = spread(data[0].labels, settings.examples)
    classes = len(data[0].class_names)
    shared = {name: getattr(settings, name) for name in (
        "epochs", "teacher_epochs", "batch_size", "learning_rate", "temperature", "alpha")}  # fmt: skip
    setting = Setting(
        {name: array[chosen] for name, array in train.items()},
        student=from_linen(make_model("digits_student", classes=classes)),
        assistant=from_linen(make_model("digits_student", classes=classes, widths=(12, 24), hidden=32)),
        teacher=from_linen(make_model("digits_teacher", classes=classes)),
        **shared,
    )
    ways = {name: make(setting) for name, make in STRATEGIES.items() if settings.only in name or name == "alone"}
    train_teacher = teacher_of(setting)
    of_student, of_teacher = (make_evaluation(apply) for _, apply in (setting.student, setting.teacher))

    @cache
    def teachers(seed: int) -> tuple[list[Weights], float]:
        """Trained when a strategy wants them: at a resumption, perhaps none does."""
        started = time.monotonic()
        return [train_teacher(seed, number) for number in range(TEACHERS)], time.monotonic() - started

    def measured(seed: int, name: str, learn: Callable[..., Weights] | None) -> dict[str, float]:
        trained, seconds = diverging_named(settings, seed, "teacher", teachers, seed)
        started = time.monotonic()
        if learn is None:
            accuracy = 100 * of_teacher(trained[0], test)["accuracy"]
        else:
            accuracy = 100 * of_student(diverging_named(settings, seed, name, learn, seed, trained), test)["accuracy"]
            seconds = time.monotonic() - started
        console.print(f"seed {seed}  {name}  {accuracy:.2f} %  {seconds:.1f} s", highlight=False)
        return {"accuracy": accuracy, "seconds": seconds}

    with recorded("strategies", settings, data) as (results, entry, file):
        for seed in range(settings.seeds):
            for name, learn in {"teacher": None, **ways}.items():
                entry(seed, name, measured, seed, name, learn)
            teachers.cache_clear()
    show(results["seeds"], console)
    console.print(f"Results: {file}", soft_wrap=True, markup=False)


def diverging_named(settings: Strategies, seed: int, name: str, train: Callable[..., Any], *given: Any) -> Any:
    """``train(*given)``; where it diverges, the error says whose training that was."""
    try:
        return train(*given)
    except DivergedError as error:
        raise DivergedError(
            f"seed {seed}, {name}: training has diverged: {error}; learning rate {settings.learning_rate:g}, temperature "
            f"{settings.temperature:g}, alpha {settings.alpha:g}. What was trained before it is in the results."
        ) from error


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
    start(main, Strategies, __doc__)
