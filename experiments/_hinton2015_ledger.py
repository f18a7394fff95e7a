"""The ledger of hinton2015.py, a line of JSON a seed and part, and the tables that are made from it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from experiments import _ledger
from experiments._ledger import Line
from experiments._ledger import add as add
from kdjax.metrics import mean_interval, paired_difference

WHAT = "hinton2015"
BEST_OF_PAPER = "2.5"  # with 30 units "2.5 to 4" were best; its lower end, so that no figure here chooses it

# part, figure, in words; the paper's; one trial's of one seed (200 and 100 epochs); the goal, at most; whether it is in %.
ROWS = (
    ("teacher", "errors", "teacher", 67, 72, 70, False),
    ("alone", "errors", "student alone", 146, 129, None, False),
    ("alone_jittered", "errors", "student alone, on the teacher's views", None, None, None, False),
    ("distilled", "errors", "distilled student", 74, 94, 80, False),
    ("without_3", "errors", "no 3: errors", 206, 181, None, False),
    ("without_3", "errors_of_3", "no 3: threes wrong", 133, 104, None, False),
    ("without_3", "errors_with_bias", "no 3, with bias: errors", 109, 113, 110, False),
    ("without_3", "errors_of_3_with_bias", "no 3, with bias: threes wrong", 14, 16, 14, False),
    ("without_3", "fewest_errors_of_any_bias", "no 3, best bias of the test: errors", None, None, None, False),
    ("only_7_8", "errors", "only 7 and 8: errors in %", 47.3, None, None, True),
    ("only_7_8", "errors_with_bias", "only 7 and 8, with bias: errors in %", 13.2, None, 13.2, True),
    ("only_7_8", "fewest_errors_of_any_bias", "only 7 and 8, best bias of the test: errors in %", None, None, None, True),
)  # fmt: skip


def line_of(part: str, seed: int | None, figures: Mapping[str, Any], about: Mapping[str, Any]) -> Line:
    """A line of this experiment: `part` is one of `PARTS`, or a search, which has many seeds and is told None."""
    return _ledger.line_of(WHAT, part, seed, figures, about)


def read(ledger: Path) -> list[Line]:
    """The lines of this experiment; those of others are left out."""
    return _ledger.read(ledger, WHAT)


def tables(ledger: Path) -> list[Table]:
    """One of the rows of the paper and one of the curves for each setting that the ledger has, newest line of each seed."""
    settings: dict[str, dict[tuple[str, int], Line]] = {}
    for line in read(ledger):
        if line["seed"] is not None:  # a search's line is of many seeds
            same = json.dumps({"settings": line["settings"], "data": line["data"]}, sort_keys=True)
            settings.setdefault(same, {})[line["part"], line["seed"]] = line
    if not settings:
        raise ValueError(f"ledger must hold a line of {WHAT} for a table; {ledger} has none.")
    found = []
    for lines in settings.values():
        found.append(_of_paper([*lines.values()]))
        if any(part == "curves" for part, _ in lines):
            found.append(_of_curves([line["figures"] for (part, _), line in lines.items() if part == "curves"]))
    return found


def _of_paper(lines: list[Line]) -> Table:
    settings = lines[0]["settings"]
    named = (
        "data",
        "dropout",
        "input_dropout",
        "teacher_learning_rate",
        "teacher_epochs",
        "epochs",
        "views",
        "alpha",
        "alpha_without_3",
        "alpha_only_7_8",
    )
    told = ", ".join(f"{name} {settings[name]}" for name in named if name in settings)
    shown = Table(
        "errors in the test digits", "paper", "one trial", "here", "n", "goal, at most", "reached",
        title=f"Mean ± 95 % interval over seeds, last epoch; the bias is chosen on validation digits. {told}",
    )  # fmt: skip
    for part, figure, words, paper, trial, goal, percent in ROWS:
        values = [_value(line["figures"], figure, percent) for line in lines if line["part"] == part]
        mean = mean_interval(values) if values else None
        reached = "" if mean is None or goal is None else "yes" if mean.mean <= goal else "no"
        shown.add_row(
            words, *("–" if one is None else f"{one:g}" for one in (paper, trial)),
            "not measured" if mean is None else f"{mean:.1f}", str(len(values)), "–" if goal is None else f"{goal:g}",
            reached,
        )  # fmt: skip
    # Of one seed, both have the same first weights, order and views: what is left is the teacher.
    alone = "alone_jittered" if settings.get("views") == "jitter" else "alone"
    with_it, without = (
        {line["seed"]: line["figures"]["errors"] for line in lines if line["part"] == part}
        for part in ("distilled", alone)
    )
    if less := [float(with_it[seed] - without[seed]) for seed in sorted(with_it.keys() & without.keys())]:
        words = "distilled student less student alone on the same pictures, seed by seed"
        shown.add_row(words, "–", "–", f"{mean_interval(less):.1f}", str(len(less)), "–", "")
    return shown


def _value(figures: Mapping[str, Any], figure: str, percent: bool) -> float:
    return float(figures[figure]) * (100 / figures["of"] if percent else 1)


def _of_curves(figures: list[dict[str, Any]]) -> Table:
    """Each width's errors at each T, and beside them how many fewer a T makes that the paper has among its best."""
    widths = [name for name in figures[0] if name.isdigit()]
    errors = {width: {T: [float(one[width][T]) for one in figures] for T in figures[0][width]} for width in widths}
    shown = Table("T", title=f"Test errors of small students, n = {len(figures)}; differences seed by seed")
    for width in widths:
        shown.add_column(f"2 × {width}")
        if BEST_OF_PAPER in errors[width]:
            shown.add_column(f"T = {BEST_OF_PAPER} less this")
    for temperature in errors[widths[0]]:
        cells = []
        for of_width in errors.values():
            cells.append(f"{mean_interval(of_width[temperature]):.1f}")
            if best := of_width.get(BEST_OF_PAPER):
                own = temperature == BEST_OF_PAPER
                cells.append("–" if own else f"{paired_difference(best, of_width[temperature]):.1f}")
        shown.add_row(temperature, *cells)
    return shown
