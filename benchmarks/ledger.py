"""The tables of benchmarks/README.md that are made from the ledger, and the command that writes them there.

python benchmarks/ledger.py             # writes the tables into the page
python benchmarks/ledger.py --check     # says whether the page has them, by its exit code

The ledger, ledger.jsonl, has a line of JSON a result: what was measured, figures, settings, versions, hardware, commit and
date. Scripts with ``--ledger`` add to it. A table stands between two comments in the page, ``<!-- ledger: NAME -->`` and
``<!-- end of NAME -->``. Of what was measured again with the same settings, data and hardware, the newest line counts.
"""

import argparse
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from _everything_figures import FIGURES
from _pairs_judged import ENOUGH

from experiments._ledger import Line, newest, read
from kdjax.metrics import mean_interval

HERE = Path(__file__).parent
LEDGER, PAGE = HERE / "ledger.jsonl", HERE / "README.md"
NOT_MEASURED = "not measured"
SAME = ("what", "part", "seed", "settings", "data")


def pairs(lines: list[Line], *names: str) -> list[str]:
    """A table for each setting, a row a method: how far losses are apart at the most, and the mean accuracies."""
    lines = [line for line in newest(lines, *SAME) if line["what"] == "pairs" and line["settings"]["pair"] in names]
    found: list[str] = []
    for alike in _grouped(lines, "settings", "data", "versions"):
        settings, figures = alike[0]["settings"], alike[0]["figures"]
        recipe, precisions = settings["recipe"], settings["precisions"]
        train, test = settings["pictures"]
        told = (
            f"{recipe['teacher']} → {recipe['student']}, {recipe['steps']:,} steps at {recipe['learning_rate']}, "
            f"{figures['compared']} compared; {settings['source']}, {train:,} pictures and {test:,} to test on. "
            f"The teacher's test accuracy is {100 * figures['teacher_accuracy']:.2f} %. {_where(alike[0])}, {_dates(alike)}."
        )
        apart = [f"losses apart, {precision} (≤ {ENOUGH[precision]:.0e})" for precision in precisions]
        rows = []
        for own in _grouped(alike, "part"):
            each = [line["figures"] for line in own]
            accuracies = [_mean([one["accuracy"][who][precisions[0]] for one in each]) for who in ("kdjax", "PyTorch")]
            largest = [_largest(each, precision) for precision in precisions]
            rows.append((own[0]["part"], str(len(own)), *largest, *accuracies))
        heads = ("method", "n", *apart, "test accuracy, %: kdjax", "PyTorch")
        found += ["", told, "", *_table(heads, rows)]
    return [*found, ""] if found else ["", f"{NOT_MEASURED.capitalize()}.", ""]


def everything(lines: list[Line]) -> list[str]:
    """What `everything.py` measures on a GPU, a row a figure: the newest of each part."""
    found = {
        line["part"]: line for line in lines if line["what"] == "everything" and line["hardware"]["platform"] == "gpu"
    }
    rows = []
    for part, (words, names) in FIGURES.items():
        line = found.get(part)
        for place, name in enumerate(names):
            value = None if line is None else line["figures"].get(name)
            on = "" if line is None else f"{_where(line)}, {line['date'][:10]}"
            rows.append((words if place == 0 else "…", name, _number(value), on if place == 0 else ""))
    return _table(("what", "figure", "is", "on"), rows)


TABLES: dict[str, Callable[[list[Line]], list[str]]] = {
    "small pairs": lambda lines: pairs(lines, "small"),
    "whole pairs": lambda lines: pairs(lines, "wrn", "unlike"),
    "everything": everything,
}


def written(page: str, lines: list[Line]) -> str:
    """The page with the tables that these lines give.

    Raises:
      ValueError: if a table's two comments do not stand in the page once, one after the other.
    """
    for name, made in TABLES.items():
        start, end = f"<!-- ledger: {name} -->", f"<!-- end of {name} -->"
        if page.count(start) != 1 or page.count(end) != 1 or page.index(start) > page.index(end):
            raise ValueError(f"The page must have {start} and, after it, {end}, once each.")
        table = "\n".join(made(lines))
        page = re.sub(
            f"{re.escape(start)}.*{re.escape(end)}",
            lambda _, t=table, s=start, e=end: f"{s}\n{t}\n{e}",
            page,
            flags=re.S,
        )
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 where the page has other tables"
    )
    given = parser.parse_args()
    before = PAGE.read_text()
    after = written(before, read(LEDGER))
    if given.check:
        raise SystemExit(None if before == after else f"{PAGE} has other tables than {LEDGER} gives.")
    PAGE.write_text(after)
    print(f"{PAGE}: {'as it was' if before == after else 'written'}")


def _grouped(lines: Iterable[Line], *names: str) -> list[list[Line]]:
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(repr([line[name] for name in names]), []).append(line)
    return [groups[key] for key in groups]


def _largest(figures: list[dict[str, Any]], precision: str) -> str:
    measured = [found for one in figures if (found := one["largest_difference"][precision]) is not None]
    if not measured:
        return NOT_MEASURED
    worst = max(measured)
    return f"{worst:.1e}, {'met' if worst <= ENOUGH[precision] else '**missed**'}"


def _mean(values: list[float | None]) -> str:
    measured = [100 * value for value in values if value is not None]
    if not measured:
        return NOT_MEASURED
    mean = mean_interval(measured)
    return f"{mean.mean:.2f}" + (f" ± {mean.half_width:.2f}" if np.isfinite(mean.half_width) else "")


def _where(line: Line) -> str:
    hardware, versions = line["hardware"], line["versions"]
    on_cpu = hardware["platform"] == "cpu"
    device = f"{hardware['cores']} core(s) of {hardware.get('cpu', 'a CPU')}" if on_cpu else hardware["device"]
    return f"{device}, jax {versions['jax']}, torch {versions.get('torch') or 'none'}"


def _dates(lines: list[Line]) -> str:
    dates = sorted(line["date"][:10] for line in lines)
    return " to ".join(dict.fromkeys((dates[0], dates[-1])))


def _number(value: Any) -> str:
    if value is None:
        return NOT_MEASURED
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ("---",) * len(heads), *rows)]


if __name__ == "__main__":
    main()
