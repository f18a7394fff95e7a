"""What of the pieces of everything.py goes into the ledger: by piece, in words, and the figures by name."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

Figures = dict[str, float | int | None]
STUDENTS = (1, 8, 32, 96)
_WRN = (
    "kdjax, images/s", "PyTorch compiled with CUDA graphs, images/s", "kdjax / PyTorch",
    "kdjax, share of the stated peak", "PyTorch, share of the stated peak",
)  # fmt: skip
_LINEAR = ("soft_target_kl", "reverse_kl", "jensen_shannon")
FIGURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "tests-core": ("core tests, products in float32", ("passed", "failed")),
    "wrn-bfloat16": ("WRN-40-2 to WRN-16-2, batch 128, bfloat16", _WRN),
    "wrn-TF32": ("WRN-40-2 to WRN-16-2, batch 128, TF32", _WRN),
    "training": (
        "training of whole epochs, 50,000 pictures of 32 × 32, batch 64, TF32, the teacher run in every step",
        ("WRN-40-2 alone, epochs/s", "WRN-16-2 from WRN-40-2, epochs/s"),
    ),
    "vocabulary": (
        "losses over a vocabulary of 32,768 words, of the plain form's time; temporary MB at 131,072 words",
        tuple(f"linear_{name}, {what}" for what in ("time", "MB") for name in _LINEAR),
    ),
    "sweep": (
        "students in one program, CNNs with cached logits, the faster way",
        tuple(f"{count}, ms a step" for count in STUDENTS),
    ),
    "article": ("article C, PyTorch's seconds / kdjax's", ("teacher", "alone", "distilled", "whole")),
}


def figures_of(name: str, file: Path) -> tuple[Figures, dict[str, Any]]:
    """A piece's figures, None where there is none, and what its script wrote down of the machine: {} where nothing."""
    if file.suffix == ".xml":
        return _of_tests(file), {}
    result = json.loads(file.read_text())
    if gpu := result.get("gpu"):  # these scripts' own process is on the CPU
        result["hardware"] |= {"platform": "gpu", "device": gpu}
    found = READERS[name](result)
    return {wanted: found.get(wanted) for wanted in FIGURES[name][1]}, result


def _of_tests(file: Path) -> Figures:
    suites = ElementTree.parse(file).getroot().iter("testsuite")
    counts = [
        {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")} for suite in suites
    ]
    total = {name: sum(count[name] for count in counts) for name in ("tests", "failures", "errors", "skipped")}
    failed = total["failures"] + total["errors"]
    return {"passed": total["tests"] - failed - total["skipped"], "failed": failed}


def _of_wrn(result: dict[str, Any]) -> Figures:
    best: dict[str, dict[str, Any]] = {}
    for row in result["rows"]:
        if row["side"] == "_wrn_kdjax" or row["compiled"]:
            name = "kdjax" if row["side"] == "_wrn_kdjax" else "PyTorch"
            best[name] = max((row, best.get(name, row)), key=lambda one: one["images_per_second"])
    rates = {name: row["images_per_second"] for name, row in best.items()}
    found = {f"{name}, share of the stated peak": row["share_of_stated_peak"] for name, row in best.items()}
    if "PyTorch" in rates:
        found[_WRN[1]], found[_WRN[2]] = rates["PyTorch"], rates["kdjax"] / rates["PyTorch"]
    return found | {_WRN[0]: rates["kdjax"]}


def _of_training(result: dict[str, Any]) -> Figures:
    (line,) = result["lines"]
    seconds = line["figures"]["epoch_s"]["kdjax"]["TF32"], line["figures"]["teacher_epoch_s"]
    student, teacher = (None if one is None else 1 / one for one in seconds)
    return dict(zip(FIGURES["training"][1], (teacher, student), strict=True))


def _of_vocabulary(result: dict[str, Any]) -> Figures:
    times = {f"{row['loss']}, time": row["quartiles_ratio"][1] for row in result["times"]}
    return times | {f"{row['loss']}, MB": row["temporary_mb"] for row in result["memory"] if row["words"] == 131_072}


def _of_sweep(result: dict[str, Any]) -> Figures:
    rows = [row for row in result["rows"] if (row["network"], row["teacher"]) == ("CNN", "cached")]
    return {
        f"{count}, ms a step": min((row["quartiles_ms"][1] for row in rows if row["students"] == count), default=None)
        for count in STUDENTS
    }


def _of_article(result: dict[str, Any]) -> Figures:
    return {row["phase"]: median(row["ratios"]) for row in result["ratios"]}


READERS: dict[str, Callable[[dict[str, Any]], Figures]] = {
    "wrn-bfloat16": _of_wrn,
    "wrn-TF32": _of_wrn,
    "training": _of_training,
    "vocabulary": _of_vocabulary,
    "sweep": _of_sweep,
    "article": _of_article,
}
