"""From a run's folder to its report: reads what the run wrote, draws what fits it, and writes the page and the pictures."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdjax import _processes
from kdjax._files import write_bytes
from kdjax._types import Weights
from kdjax.runs.folders import read_object, tidy
from kdjax.runs.recipes import Trainer
from kdjax.runs.report import _curves, _examples, _kept, _maps, _numbers, _page
from kdjax.runs.report._style import Drawn, as_png, styled
from kdjax.runs.report._table import comparison_lines, measure_of

if TYPE_CHECKING:
    from kdjax.runs._seeds import Shared

Arrays = Mapping[str, np.ndarray]
PAGE = "report.html"
FIGURES = "report-figures"
USUAL = (1.0, 2.0, 4.0, 10.0)  # temperatures at which soft targets are drawn, beside the run's own


def write_report(run: str | os.PathLike[str]) -> Path:
    """Writes ``report.html`` into the folder of a finished run, and its figures as PNG into ``report-figures`` beside it.

    The page is one file that asks nothing of any network and has no script. It shows what was distilled and how, the
    networks side by side, learning curves, terms and weights, and what the run kept for it in ``report-data.npz``: what
    does not fit the run's data is left out. Writing it again writes the same.

    Args:
      run: the folder of `kdjax.runs.compare`.

    Returns:
      The page's path.

    Raises:
      FileNotFoundError: if the folder holds no ``results.json``: the run has not come to its end.
      ValueError: if a file of the run is damaged, or no comparison's.
      ModuleNotFoundError: if matplotlib is missing.
    """
    folder = Path(run)
    results = read_object(folder / "results.json")
    seeds, parameters = results.get("seeds"), results.get("parameters")
    each = [parameters, *seeds] if isinstance(seeds, list) and seeds else [None]
    if not all(isinstance(one, Mapping) and {*_maps.NAMES} <= one.keys() for one in each):
        raise ValueError(
            f"run must be the folder of a comparison; {folder / 'results.json'} has no seeds or parameters of "
            f"{', '.join(_maps.NAMES)}."
        )
    with tidy(folder):
        kept, arrays = _kept.load(folder) or (None, {})
        if (folder / FIGURES).is_symlink():
            raise ValueError(
                f"run must hold its own files; {folder / FIGURES} is a symbolic link, and is not written into."
            )
        with styled(), _as_damage(folder):
            drawn = figures(results, kept, arrays, histories(folder))
            text = _page.page(
                results.get("experiment") or "comparison",
                comparison_lines(results),
                about(results, kept),
                sections(results, kept, arrays, drawn),
            )
            pictures = {one.name: as_png(one) for group in drawn.values() for one in group}
        for name, picture in pictures.items():
            write_bytes(folder / FIGURES / f"{name}.png", picture)
        write_bytes(folder / PAGE, text.encode())
        return folder / PAGE


@contextmanager
def _as_damage(folder: Path) -> Iterator[None]:
    """What cannot be drawn is not what a run wrote: there are too many entries to ask each of them what it is."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(
            f"run must be the folder of a comparison as it was written; of {folder / 'results.json'}, the metrics.jsonl and "
            f"{_kept.FILE} beside it, one is damaged: {error!r:.200}."
        ) from error


def at_end(run: "Shared", trainers: Mapping[str, Trainer], given: Weights | None) -> str:
    """Measures and writes the report of a run that has just written its results, which no failure here may take away.

    Of several processes all call it, and the first writes.

    Returns:
      A line that names the page, or says why there is none.
    """
    again = f"The results are whole; kdjax.runs.write_report({str(run.out)!r}) tries again."
    try:
        _kept.keep(run, trainers, given)
        return f"Report: {write_report(run.out)}" if _processes.is_first() else ""
    except ModuleNotFoundError as error:
        return f"The report was not written, since {error.name} is not installed. {again}"
    except Exception as error:
        return f"The report was not written: {type(error).__name__}: {error} {again}"


def histories(folder: Path) -> _curves.History:
    """The lines of all ``metrics.jsonl`` files, by network and seed."""
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for name in _maps.NAMES:
        files = {int(file.parts[-3][5:]): file for file in folder.glob(f"seed-*/{name}/metrics.jsonl")
                 if file.parts[-3][5:].isdecimal() and file.is_file()}  # fmt: skip
        lines = [_lines(file) for _, file in sorted(files.items())]
        if any(lines):
            found[name] = lines
    return found


def _lines(file: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in file.read_text().splitlines()]
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} must hold a JSON object a line, as the run wrote it; it is damaged: {error}."
        ) from error


def about(results: Mapping[str, Any], kept: Mapping[str, Any] | None) -> str:
    """What the numbers are of, in a sentence."""
    seeds = len(results["seeds"])
    parts = [f"{seeds} seeds" if seeds > 1 else "One seed"]
    parts += [f"{kept['examples']:,} test examples"] if kept else []
    parts += ["figures named seed 0 are of the first seed's networks"] if kept else []
    return f"{'; '.join(parts)}."


def figures(
    results: Mapping[str, Any], kept: Mapping[str, Any] | None, arrays: Arrays, history: _curves.History
) -> dict[str, Sequence[Drawn]]:
    """All figures that fit the run, by section."""
    found: dict[str, Sequence[Drawn]] = {
        "learning": _curves.learning(history, results, measure_of(results)),
        "terms": _curves.terms(history, kept["numbers"] if kept else {}),
    }
    if kept is None:
        return found
    names = [str(name) for name in kept["class_names"] or range(kept["classes"])]  # runs of before kept any names
    if kept["kind"] == "classes":
        if len(names) <= _maps.MATRIX:
            found["differences"] = [*_maps.confusions(arrays, names), _maps.differences(arrays, names)]
        found["calibration"] = _maps.reliability(kept["calibration"])
        if not kept["positions"]:
            found |= _of_examples(kept, *_alike(arrays, names))
        elif len(kept["positions"]) == 2:
            found["examples"] = [_examples.label_maps(kept, arrays)]
        elif len(kept["positions"]) == 1:
            found["examples"] = [_examples.entropies(arrays)]
    elif kept["kind"] == "number":
        found["predicted"] = _examples.predicted(arrays)
    maps = kept["layers"]["maps"]
    if "pictures" in arrays and maps["teacher"] and maps["distilled"]:
        found["attention"] = [_examples.attention(kept, arrays)]
    found["alignment"] = _maps.alignments(kept["layers"])
    return found


def _alike(arrays: Arrays, names: Sequence[str]) -> tuple[Arrays, Sequence[str]]:
    """As many logits of each network as names: one may have more than there are classes, or than another has."""
    logits = {name: array for name, array in arrays.items() if name.startswith("logits_")}
    most = max([len(names), *(array.shape[-1] for array in logits.values())])
    wide = {
        name: np.pad(array, ((0, 0), (0, most - array.shape[-1])), constant_values=-np.inf)
        for name, array in logits.items()
    }
    return {**arrays, **wide}, [*names, *map(str, range(len(names), most))]


def _of_examples(kept: Mapping[str, Any], arrays: Arrays, names: Sequence[str]) -> dict[str, Sequence[Drawn]]:
    """Of one label an example: pictures with predictions, and soft targets."""
    found: dict[str, Sequence[Drawn]] = {}
    with_logits = "logits_teacher" in arrays
    if "pictures" in arrays and with_logits:
        groups = {"test-pictures": kept["first"], "differing-pictures": kept["differing"]}
        found["examples"] = [
            *([_examples.first_pictures(arrays, names)] if "train_pictures" in arrays else []),
            *(_examples.predictions(kept, arrays, names, which, name=name) for name, which in groups.items() if which),
        ]
    if with_logits:
        index = (kept["differing"] or kept["shown"])[0]
        place = kept["shown"].index(index)
        logits = {name: arrays[f"logits_{name}"][place] for name in ("teacher", "distilled")}
        found["soft targets"] = [
            _maps.soft_targets(logits, int(arrays["labels"][index]), names, temperatures_of(kept["numbers"]))
        ]
    return found


def temperatures_of(numbers: Mapping[str, Sequence[float]]) -> list[float]:
    """At which soft targets are drawn, four in all: the first of those of the run's first epoch, and usual ones."""
    own = [values[0] for name, values in numbers.items() if name.endswith(" temperature")]
    return sorted([*dict.fromkeys([*own, *USUAL])][: len(USUAL)])


def sections(
    results: Mapping[str, Any], kept: Mapping[str, Any] | None, arrays: Arrays, drawn: Mapping[str, Sequence[Drawn]]
) -> list[str]:
    """The page's sections in order; those with nothing in them are empty."""

    def own(name: str) -> Sequence[Drawn]:
        return drawn.get(name, ())

    by_class = kept is not None and kept["kind"] == "classes"
    tokens = _examples.tokens(arrays) if kept and by_class and len(kept["positions"]) == 1 else ""
    beside = both_right(arrays) if kept and by_class else ""
    return [
        _page.section("What was distilled", _numbers.distilled(results)),
        _page.section("Teacher, student alone, student distilled", _numbers.compared(results, kept)),
        _page.section("Learning curves", own("learning")),
        _page.section("Terms, weights and temperatures", own("terms")),
        _page.section("Mistakes, and where student and teacher differ", beside, own("differences")),
        _page.section("Calibration", own("calibration")),
        _page.section("Predictions", own("predicted")),
        _page.section("Examples", own("examples"), tokens),
        _page.section("Attention", own("attention")),
        _page.section("Similarity of layers", own("alignment")),
        _page.section("Soft targets", own("soft targets")),
        _page.section("Where the numbers come from", _numbers.provenance(results)),
    ]


def both_right(arrays: Mapping[str, np.ndarray]) -> str:
    """A sentence on how often teacher and distilled student are right together; -1 is no first choice."""
    counted = arrays["counted"]
    first = {name: arrays[f"first_{name}"][counted] for name in ("teacher", "distilled")}
    teacher, student = ((own == arrays["labels"][counted]) & (own >= 0) for own in first.values())
    total = len(teacher)
    counts = {
        "both are right on": teacher & student,
        "only the teacher on": teacher & ~student,
        "only the student on": ~teacher & student,
        "neither on": ~teacher & ~student,
    }
    said = ", ".join(f"{what} {int(which.sum()):,}" for what, which in counts.items())
    same = int(((first["teacher"] == first["distilled"]) & (first["teacher"] >= 0)).sum())
    whole = f"Of {total:,} test entries with a label teacher and distilled student say the same of {same:,}"
    return f"<p>{whole}; {said} (seed 0).</p>"
