"""What the comparison of losses with PyTorch comes to: a ratio for each loss, the targets, and the tables."""

from statistics import median
from typing import Any

from _script import Report, verdict
from rich.table import Column

BATCHES = (64, 256)
ANGLE, ANGLE_BATCH, ANGLE_MS = "rkd_angle", 256, 60.0
ALL_AT_ONCE = 4 * ANGLE_BATCH**3 / 1e6
"""MB of one [B, B, B] array: the temporary space below which memory counts as bounded."""
CRD_BATCH = 32
QUIET = 0.05
"""The share of the machine that others may use: PyTorch's threads wait for each other, and one without a core stops all."""


def ratios(rows: list[dict[str, Any]], batch: int) -> dict[str, float]:
    """PyTorch's best form over kdjax's best form, by the best rounds, of each loss whose rows all agree."""
    by_loss: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["batch"] == batch:
            by_loss.setdefault(row["loss"], []).append(row)
    return {
        loss: min(min(row["pytorch_ms"]) for row in of_loss) / min(min(row["kdjax_ms"]) for row in of_loss)
        for loss, of_loss in by_loss.items()
        if all(row["agree"] for row in of_loss)
    }


def targets(rows: list[dict[str, Any]], others: float | None) -> list[dict[str, Any]]:
    """What is to be reached, `is` None where it was not measured. The first says whether the rest means anything."""
    found = []

    def add(what: str, number: float | None, limit: float, least: bool = True) -> None:
        met = None if number is None else bool(number >= limit if least else number <= limit)
        found.append({"what": what, "is": number, "least" if least else "limit": limit, "met": met})

    add("share of the machine that others used meanwhile", others, QUIET, False)
    apart = [row["agree"] is False for row in rows]
    add(
        "rows in which the sides differ",
        sum(apart) if any(row["agree"] is not None for row in rows) else None,
        0,
        False,
    )
    for batch in BATCHES:
        of_all = ratios(rows, batch).values()
        add(f"PyTorch / kdjax, the least of all losses, batch {batch}", min(of_all, default=None), 1.0)
        add(f"PyTorch / kdjax, median of all losses, batch {batch}", median(of_all) if of_all else None, 3.0)
    angles = [row for row in rows if (row["loss"], row["batch"]) == (ANGLE, ANGLE_BATCH)]
    bounded = [min(row["kdjax_ms"]) for row in angles if row["temporary_mb"] < ALL_AT_ONCE]
    what = f"ms of {ANGLE}, batch {ANGLE_BATCH}, in less than {ALL_AT_ONCE:.0f} MB"
    add(what, min(bounded, default=None), ANGLE_MS, False)
    for form in ("crd", "crd_from_all"):
        of_form = [row["faster"] for row in rows if (row["form"], row["batch"]) == (form, CRD_BATCH)]
        add(f"PyTorch's {form} / kdjax's crd, batch {CRD_BATCH}", of_form[0] if of_form else None, 1.0)
    return found


def show(report: Report, rows: list[dict[str, Any]]) -> None:
    heads = ("B", "kdjax, ms", "PyTorch, ms", "PyTorch / kdjax")
    report.table(
        "Every loss beside plain PyTorch: the best of the rounds (their median)",
        (Column("", no_wrap=True), *heads),
        [
            (row["row"], str(row["batch"]), _best(row["kdjax_ms"]), _best(row["pytorch_ms"]), _faster(row))
            for row in rows
        ],
    )
    for batch in BATCHES:
        slower = {loss: ratio for loss, ratio in ratios(rows, batch).items() if ratio < 1.0}
        if slower:
            named = ", ".join(f"{loss} {ratio:.2f}" for loss, ratio in sorted(slower.items(), key=lambda item: item[1]))
            report.console.print(f"Slower than PyTorch at batch {batch}: {named}", soft_wrap=True)
    for row in rows:
        if row["agree"] is False:
            off = ", ".join(f"{number:.1e}" for number in row["differences"])
            report.console.print(f"{row['row']}, batch {row['batch']}: the sides differ by {off}", soft_wrap=True)


def show_targets(report: Report, found: list[dict[str, Any]]) -> None:
    rows = []
    for target in found:
        limit = f"≥ {target['least']:.2f}" if "least" in target else f"≤ {target['limit']:.2f}"
        number, met = target["is"], verdict(target["met"]) or "not measured"
        rows.append((target["what"], "" if number is None else f"{number:.2f}", limit, met))
    report.table("Targets", ("target", "is", "", ""), rows)


def _best(times: list[float] | None) -> str:
    return "not measured" if times is None else f"{min(times):.3f} ({median(times):.3f})"


def _faster(row: dict[str, Any]) -> str:
    if row["agree"] is False:
        return "void: they differ"
    return "" if row["faster"] is None else f"{row['faster']:.2f} ({row['faster_by_medians']:.2f})"
