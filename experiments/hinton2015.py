"""Hinton, Vinyals and Dean 2015, section 3: does a distilled network learn how to generalise, also to digits it never saw?

    python experiments/hinton2015.py --data mnist --data-dir DIR --out OUT --parts search
    python experiments/hinton2015.py --data mnist --data-dir DIR --out OUT --resume
    python experiments/hinton2015.py --table OUT/ledger.jsonl

A teacher of 2 × 1200 ReLUs with dropout, a weight constraint and jittered pictures; students of 2 × 800 from labels alone
and from its soft targets at T = 20; small students at several T; a transfer set without any 3, and one of 7 and 8 only,
after which a bias is moved. The paper chose that bias on the test digits; here validation digits choose it, which no
transfer set has. The paper gives neither rates nor lengths nor the weight of the labels: the part `search` compares the
teacher's dropout and rate, then those of its students and the views, on validation digits and with seeds of its own;
`search_teacher` compares teachers only. The choice is recorded, and the other parts use it.

The first command compares, the second trains all other parts by the choice, and goes on where it was stopped; without the
first, the options say what is trained. Each seed and part is a line of the ledger. Reference: arXiv:1503.02531.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from rich.console import Console

from experiments import _hinton2015_ledger as ledgers
from experiments._hinton2015_parts import PARTS, TRANSFER, only
from experiments._hinton2015_search import choose
from experiments._hinton2015_training import Bench
from experiments._settings import Run, recorded, start
from kdjax.data import Dataset, on_device, unit_range
from kdjax.runs import write_results

Part = Literal[
    "search", "search_teacher", "teacher", "alone", "alone_jittered", "distilled", "curves", "without_3", "only_7_8"
]
FREE = ("parts", "ledger", "table", "seeds", "out", "resume", "print_every", "data_dir")  # no part of what is measured
SEARCHES = ("search", "search_teacher")
OF_SEARCH = ("dropouts", "input_dropouts", "teacher_rates", "alphas", "lengths", "search_seeds")
NEEDED = (3, 7, 8)  # the classes that the transfer sets name


@dataclass(frozen=True)
class Hinton2015(Run):
    """Section 3 of the paper, in parts."""

    parts: tuple[Part, ...] = tuple(PARTS)
    """which of search, search_teacher, teacher, alone, alone_jittered, distilled, curves, without_3, only_7_8"""
    seeds: int = 5
    """how often each part is repeated, with seeds 0, 1, 2, …"""
    ledger: Path | None = None
    """where a line of JSON is added for each seed and part; default OUT/ledger.jsonl"""
    table: Path | None = None
    """print the tables of this ledger, and train nothing"""
    teacher_epochs: int = 200
    """passes over the training data, for the teacher"""
    epochs: int = 100
    """passes over the training data, for each student; a transfer set gets as many updates"""
    batch_size: int = 128
    """examples an update"""
    learning_rate: float = 1e-3
    """Adam's for the students, per update, at the start; a cosine takes it to 0 at the end"""
    teacher_learning_rate: float = 1e-3
    """the same, for the teacher"""
    temperature: float = 20.0
    """T of the soft targets of the students of 2 × 800, in logits"""
    alpha: float = 0.1
    """weight of the labels; the soft targets weigh 1 − alpha"""
    alpha_without_3: float = 0.1
    """the same, for the transfer set without 3"""
    alpha_only_7_8: float = 0.1
    """the same, for the transfer set of 7 and 8"""
    views: Literal["none", "jitter"] = "none"
    """what distilled students see: the pictures as they are, as in the paper, or jittered, as their teacher"""
    temperatures: tuple[float, ...] = (1.0, 2.5, 4.0, 8.0, 20.0)
    """T of the curves, in logits"""
    curve_widths: tuple[int, ...] = (300, 30)
    """units of each hidden layer of the curves' students"""
    teacher_width: int = 1200
    """units of each hidden layer of the teacher"""
    student_width: int = 800
    """units of each hidden layer of the students"""
    dropout: float = 0.5
    """the teacher's, of hidden units, from 0 to less than 1"""
    input_dropout: float = 0.2
    """the teacher's, of pixels, from 0 to less than 1"""
    max_norm: float = 3.5
    """the largest L2 norm of the incoming weights of a hidden unit of the teacher"""
    validation: int = 10_000
    """training pictures that are held out of the transfer sets, and in the search of everything"""
    dropouts: tuple[float, ...] = (0.5, 0.4)
    """the teacher's, of hidden units, that the search compares"""
    input_dropouts: tuple[float, ...] = (0.2, 0.0)
    """the teacher's, of pixels, that the search compares with each of those"""
    teacher_rates: tuple[float, ...] = (5e-4,)
    """Adam's for the teacher, that the search compares with `teacher_learning_rate`"""
    alphas: tuple[float, ...] = (0.0, 0.1, 0.5)
    """weights of the labels that the search compares"""
    lengths: tuple[int, ...] = (30, 300)
    """passes that the search compares with those of `epochs`"""
    search_seeds: int = 2
    """how often each setting of the search is repeated, with seeds 1000, 1001, …"""
    print_every: int = 0
    """print a line each so many epochs; 0: only after the last"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dropout", "input_dropout", "dropouts", "input_dropouts"):
            if not np.all(np.less(getattr(self, name), 1)):
                raise ValueError(f"{name} must be at least 0 and less than 1; got {getattr(self, name)!r}.")
        if self.max_norm <= 0:
            raise ValueError(f"max_norm must be greater than 0; got {self.max_norm!r}.")
        for name, rates in (
            ("teacher_learning_rate", (self.teacher_learning_rate,)),
            ("teacher_rates", self.teacher_rates),
        ):
            if 0 in rates:
                raise ValueError(f"{name} must be greater than 0; got {getattr(self, name)!r}.")
        for name in ("alpha_without_3", "alpha_only_7_8"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} must lie between 0 and 1; got {getattr(self, name)!r}.")
        compared = ("dropouts", "input_dropouts", "teacher_rates", "alphas", "lengths")
        for name in ("parts", "temperatures", "curve_widths", *compared):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must name each one once; got {values!r}.")
        if set(SEARCHES) <= set(self.parts):
            raise ValueError(
                f"parts must have one of {' and '.join(SEARCHES)}, of which the first does both; got both."
            )
        if unknown := set(self.parts) - {*SEARCHES, *PARTS}:
            raise ValueError(f"parts must be of {', '.join([*SEARCHES, *PARTS])}; got {', '.join(sorted(unknown))}.")
        if self.ledger is not None and self.ledger.is_dir():
            raise ValueError(f"ledger must be a file, or none yet; {self.ledger} is a folder.")
        if self.table is not None and not self.table.is_file():
            raise ValueError(f"table must be the file of a ledger; there is none at {self.table}.")

    def recorded(self) -> dict[str, Any]:
        """The settings that a resumption must bring again."""
        return {name: value for name, value in super().recorded().items() if name not in ("parts", "ledger", "table")}


def main(settings: Hinton2015) -> Path | None:
    console = Console()
    console.width = max(console.width, 120)  # the tables are cut otherwise
    if settings.table is not None:
        return _show(console, settings.table)
    data = settings.load()
    folder = settings.folder(ledgers.WHAT)
    ledger = settings.ledger or folder / "ledger.jsonl"
    ledgers.read(ledger)  # a damaged one is found before anything is trained
    bench = bench_of(settings, data, folder, console)
    with recorded(ledgers.WHAT, settings, data) as (results, entry, file):
        searched = next((part for part in settings.parts if part in SEARCHES), None)
        before = results.get("choice", {}).get("part")
        if searched and searched != before and (before is None or searched == "search"):
            if any(part in one for one in results["seeds"] for part in PARTS):
                raise ValueError(
                    f"parts must have {searched} before all others: this run has figures of settings that it did not choose."
                )
            found = choose(bench, entry, students=searched == "search")
            results["choice"] = _line(searched, None, found, settings, results)
            write_results(file, results)
        ledgers.add(ledger, lines_of(results))
        if "choice" in results:
            chosen = {name: value for name, value in results["choice"]["figures"].items() if name != "compared"}
            console.print(f"Chosen on validation digits: {chosen}")
            settings = replace(settings, **chosen)
            bench = replace(bench, settings=settings)

        def line(seed: int, part: str) -> dict[str, Any]:
            return _line(part, seed, PARTS[part](bench, seed), settings, results)

        for seed in range(settings.seeds):
            for part in PARTS:
                if part in settings.parts:
                    ledgers.add(ledger, [entry(seed, part, line, seed, part)])
    return ledger if set(settings.parts) <= set(SEARCHES) else _show(console, ledger)


def lines_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What the run has found so far, as the ledger has it."""
    choice = [results["choice"]] if "choice" in results else []
    return choice + [one[part] for one in results["seeds"] for part in PARTS if part in one]


def bench_of(settings: Hinton2015, data: list[Dataset], folder: Path, console: Console) -> Bench:
    """The pictures on the device; those held out are the same for all seeds."""
    train, test = (on_device(part, unit_range) for part in data)
    count, classes = len(train["labels"]), len(data[0].class_names)
    if max(NEEDED) >= classes:
        raise ValueError(f"data must have the classes {', '.join(map(str, NEEDED))}; got {classes} classes, from 0.")
    if not settings.validation < count:
        raise ValueError(f"validation must be less than the {count} training pictures; got {settings.validation}.")
    mixed = np.random.default_rng(2015).permutation(count)
    held_out, rest = np.sort(mixed[: settings.validation]), np.sort(mixed[settings.validation :])

    without, of_validation = (jax.tree.map(lambda array, own=own: array[own], train) for own in (rest, held_out))
    for name, (own, left_out) in TRANSFER.items():
        pictures = len(only(without, own, left_out)["labels"])
        if pictures < settings.batch_size:
            raise ValueError(
                f"batch_size must be at most the {pictures} pictures of {name}; got {settings.batch_size}."
            )
    return Bench(settings, folder, console, classes, train, without, of_validation, test)


def _line(part: str, seed: int | None, figures: Any, settings: Hinton2015, results: dict[str, Any]) -> dict[str, Any]:
    left_out = (*FREE, *(OF_SEARCH if part not in SEARCHES else ()))
    told = {name: value for name, value in settings.recorded().items() if name not in left_out}
    about = {name: results[name] for name in ("data", "versions", "hardware", "commit")}
    return ledgers.line_of(part, seed, figures, {"settings": told, **about})


def _show(console: Console, ledger: Path) -> Path:
    for table in ledgers.tables(ledger):
        console.print(table)
    return ledger


if __name__ == "__main__":
    start(main, Hinton2015, __doc__)
