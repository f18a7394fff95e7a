"""What two trainings of one method come to: how far their losses are apart, and the figures of a line of the ledger."""

from collections.abc import Mapping
from typing import Any

import numpy as np

ENOUGH = {"float32": 1e-4, "float64": 1e-9, "TF32": 1e-1}
"""By how much of their size two losses may differ, at any step; TF32 has 10 bits, and rounding grows."""
Trained = Mapping[str, Any]
"""``curves`` by term, ``accuracy`` and ``epochs_s``, each epoch's seconds, of one side."""


def apart(ours: list[float], theirs: list[float]) -> list[float]:
    """At each step |a − b| / max(|a|, |b|); two zeros are equal."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return list(np.abs(a - b) / np.maximum(np.maximum(np.abs(a), np.abs(b)), np.finfo(np.float64).tiny))


def figures_of(trained: Mapping[tuple[str, str], Trained]) -> dict[str, Any]:
    """Of both sides' trainings, by ``("kdjax" or "PyTorch", precision)``; None where PyTorch was not run.

    Raises:
      ValueError: if the sides have other terms, or a loss is not finite.
    """
    for (who, precision), one in trained.items():
        for name, values in one["curves"].items():
            if not np.isfinite(values).all():
                step = int(np.argmin(np.isfinite(values)))
                raise ValueError(f"{name} of {who} in {precision} is {values[step]} at step {step}.")
    precisions = [precision for who, precision in trained if who == "kdjax"]
    names = {
        who: {precision: trained.get((who, precision)) for precision in precisions} for who in ("kdjax", "PyTorch")
    }
    figures: dict[str, Any] = {"compared": len(trained["kdjax", precisions[0]]["curves"]["loss"])}
    losses = trained["kdjax", precisions[0]]["curves"]["loss"]
    figures["losses"] = [losses[0], losses[-1]] if losses else None
    for name, told in (("accuracy", lambda one: one["accuracy"]), ("epoch_s", lambda one: an_epoch(one["epochs_s"]))):
        figures[name] = {
            who: {precision: None if one is None else told(one) for precision, one in of_side.items()}
            for who, of_side in names.items()
        }
    figures["largest_difference"] = dict.fromkeys(precisions)
    figures["largest_differences_of_terms"] = dict.fromkeys(precisions)
    for precision in precisions:
        ours, theirs = names["kdjax"][precision], names["PyTorch"][precision]
        if theirs is None:
            continue
        if ours["curves"].keys() != theirs["curves"].keys():
            raise ValueError(f"Both sides must have the same terms; got {[*ours['curves']]} and {[*theirs['curves']]}.")
        largest = {
            name: max(apart(values, theirs["curves"][name]), default=None) for name, values in ours["curves"].items()
        }
        figures["largest_difference"][precision] = largest.pop("loss")
        figures["largest_differences_of_terms"][precision] = largest
    return figures


def an_epoch(seconds: list[float]) -> float | None:
    """The median, without the first epoch, in which programs are compiled; None where there is no other."""
    return float(np.median(seconds[1:])) if len(seconds) > 1 else None


def row_of(line: Mapping[str, Any]) -> str:
    """One result in words."""
    figures = line["figures"]
    parts = [f"{line['part']}, seed {line['seed']}:"]
    for precision, difference in figures["largest_difference"].items():
        accuracies = [figures["accuracy"][who][precision] for who in ("kdjax", "PyTorch")]
        shown = " and ".join("not measured" if one is None else f"{one:.2%}" for one in accuracies)
        told = "not compared" if difference is None else f"losses within {difference:.1e}"
        parts.append(f"{precision} {told}, accuracies {shown}.")
    return " ".join(parts)
