"""What a run found: the table that compares its networks, and the sentences under it."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kdjax.metrics import accuracy_transfer_rate, mean_interval, paired_difference

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_NETWORKS = ("teacher", "alone", "distilled")


def comparison(results: Mapping[str, Any], console: "Console") -> None:
    """Prints `comparison_table`, and `comparison_lines` under it.

    Args:
      results: as an experiment's ``results.json`` holds it; see `comparison_table`.
      console: where to.
    """
    console.print(comparison_table(results))
    for line in comparison_lines(results):
        console.print(line, highlight=False, markup=False)


def comparison_table(results: Mapping[str, Any]) -> "Table":
    """Sets teacher, student alone and student distilled side by side, each as mean ± 95 % interval over the seeds.

    Args:
      results: ``"parameters"``: a number by network; ``"seeds"``: a list with an entry a seed, which has for each of
        ``"teacher"``, ``"alone"``, ``"distilled"`` its test ``"accuracy"`` and, for students, ``"agreement"`` with the
        teacher, both fractions, and ``"seconds"`` of training. ``"experiment"``, where given, is the title. ``"measure"``,
        where given, is what stands in the place of the accuracy: its ``"name"``, whether it is a fraction to be read in
        ``"percent"``, and whether ``"lower_is_better"``.

    Returns:
      A table that rich prints: parameters, the measure, agreement in %, mean seconds a network.

    Raises:
      ValueError: if there is no seed.
    """
    from rich.table import Table
    from rich.text import Text

    count = len(results["seeds"])
    caption = f"mean ± 95 % interval (Student's t) over {count} seeds" if count > 1 else "one seed: no interval"
    title = results.get("experiment")
    # Names are the user's own, and no markup.
    table = Table(title=None if title is None else Text(title, style="table.title"), caption=caption)
    table.add_column("network")
    measure = measure_of(results)
    measured = f"test {measure['name']}{', %' if measure['percent'] else ''}"
    for heading in ("parameters", measured, "agrees with teacher, %", "seconds"):
        table.add_column(Text(heading), justify="right")
    for network in _NETWORKS:
        each = over_seeds(results, network, "seconds")
        own = np.count_nonzero(each)
        seconds = np.sum(each) / max(own, 1)
        agreement = "" if network == "teacher" else percent(over_seeds(results, network, "agreement"))
        values = over_seeds(results, network, measure["name"])
        # One teacher that served all seeds, from a file or of the first seed: of it no spread is known.
        values = values if own == len(values) else values[:1]
        value = percent(values) if measure["percent"] else number(values)
        time = f"{seconds:.1f}" if seconds else "given"
        table.add_row(network, f"{results['parameters'][network]:,}", value, agreement, time)
    return table


def comparison_lines(results: Mapping[str, Any]) -> list[str]:
    """Says in plain sentences what the teacher changed, and whether the seeds suffice to say so.

    Args:
      results: as for `comparison_table`.

    Returns:
      A line on distilled − alone, paired by seed, and one on the accuracy transfer rate of the mean accuracies; one line
      where the measure is missing or not finite anywhere. A line more for each network that diverged.

    Example:
      >>> seed = {"teacher": {"accuracy": 0.9}, "alone": {"accuracy": 0.7}, "distilled": {"accuracy": 0.8}}
      >>> for line in comparison_lines({"seeds": [seed]}):
      ...     print(line)
      distilled − alone: +10.00 points with 1 seed, hence no interval: this shows nothing yet
      accuracy transfer rate: 50.00 % of the teacher's lead of 20.00 points over the student alone
    """
    measure = measure_of(results)
    name, unit, scale = (
        measure["name"],
        "points" if measure["percent"] else measure["name"],
        100 if measure["percent"] else 1,
    )
    teacher, alone, distilled = (scale * over_seeds(results, network, name) for network in _NETWORKS)
    if np.isnan([teacher, alone, distilled]).any():
        return [f"distilled − alone: {name} was not measured in every network and seed", *_mended(results)]
    lead = np.mean(teacher) - np.mean(alone)
    rate = 100 * accuracy_transfer_rate(float(np.mean(distilled)), float(np.mean(alone)), float(np.mean(teacher)))
    digits, shown = (2, ".2f") if measure["percent"] else (12, ".4g")
    if round(-lead if measure["lower_is_better"] else lead, digits) > 0:
        transfer = f"{rate:.2f} % of the teacher's lead of {abs(lead):{shown}} {unit} over the student alone"
    else:
        transfer = f"none, since the teacher does not lead the student alone ({lead:+{shown}} {unit})"
    better = -1 if measure["lower_is_better"] else 1
    difference = _difference(distilled, alone, unit, better, shown)
    return [f"distilled − alone: {difference}", f"{name} transfer rate: {transfer}", *_mended(results)]


def _mended(results: Mapping[str, Any]) -> list[str]:
    """A warning for each network that was not trained as it was to be, since it diverged."""
    found = []
    for network in _NETWORKS:
        for what, said in (("rate", "with its learning rate times"), ("skipped", "without this share of its updates:")):
            values = [seed[network][what] for seed in results["seeds"] if what in seed.get(network, {})]
            if values:
                each, seeds = ", ".join(f"{value:.3g}" for value in values), len(results["seeds"])
                found.append(
                    f"Beware: {network} diverged in {len(values)} of {seeds} seeds and was then trained {said} {each}; "
                    "a difference is then not the teacher's alone."
                )
    return found


def transferred(results: Mapping[str, Any]) -> str:
    """The transfer rate of the mean values, in %; "none" where the teacher does not lead."""
    measure = measure_of(results)
    teacher, alone, distilled = (float(np.mean(over_seeds(results, name, measure["name"]))) for name in _NETWORKS)
    lead = alone - teacher if measure["lower_is_better"] else teacher - alone
    if np.isnan([lead, distilled]).any():
        return "not measured"
    if round(100 * lead, 2) <= 0 if measure["percent"] else round(lead, 12) <= 0:
        return "none"
    return f"{100 * accuracy_transfer_rate(distilled, alone, teacher):.2f}"


def over_seeds(results: Mapping[str, Any], network: str, quantity: str) -> np.ndarray:
    """One number a seed; NaN for what was not measured, since JSON has null there, and for what is not finite."""
    if not results["seeds"]:
        raise ValueError("results['seeds'] must hold at least one seed; got none.")
    found = [seed[network].get(quantity) for seed in results["seeds"]]
    values = np.asarray([math.nan if value is None else value for value in found], np.float64)
    return np.where(np.isfinite(values), values, math.nan)


def percent(fractions: np.ndarray) -> str:
    """Mean ± interval of fractions, in %."""
    return f"{mean_interval(100 * fractions):.2f}" if np.isfinite(fractions).all() else "not measured"


def measure_of(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the table compares."""
    return results.get("measure", {"name": "accuracy", "percent": True, "lower_is_better": False})


def number(values: np.ndarray) -> str:
    """Mean ± interval."""
    return f"{mean_interval(values):.4g}" if np.isfinite(values).all() else "not measured"


def _difference(distilled: np.ndarray, alone: np.ndarray, unit: str, better: int, shown: str) -> str:
    points = paired_difference(distilled, alone)
    if points.n == 1:
        return f"{points.mean:+{shown}} {unit} with 1 seed, hence no interval: this shows nothing yet"
    # Differences that are alike differ by rounding, which would be the interval.
    if np.ptp(distilled - alone) <= 1e-12 * np.abs([distilled, alone]).max():
        return (
            f"{points.mean:+{shown}} {unit} in each of {points.n} paired seeds: no spread was seen, hence no interval"
        )
    if not points.excludes_zero:
        verdict = "zero lies within, these seeds show no difference"
    else:
        verdict = f"clear of zero, the teacher {'helped' if better * points.mean > 0 else 'hurt'}"
    return f"{points.mean:+{shown}} ± {points.half_width:{shown}} {unit} (95 %, {points.n} paired seeds): {verdict}"
