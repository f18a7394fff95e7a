"""What happened over time: the test measures, each term of the objective, its weight, and its numbers such as T."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.runs._peers import PEER
from kdjax.runs.report._style import COLOURS, DASHES, MARKERS, SERIES, Drawn, panel

History = Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
"""By network a list of epochs a seed: the lines of ``metrics.jsonl``."""


def learning(history: History, results: Mapping[str, Any], measure: Mapping[str, Any]) -> list[Drawn]:
    """The first measure on the test data, and the loss on the training data, over epochs."""
    scale, unit = (100.0, ", %") if measure["percent"] else (1.0, "")
    name = measure["name"]
    found = []
    for key, part, what, factor, label in (
        ("learning", "test", name, scale, f"test {name}{unit}"),
        ("loss", "train", "loss", 1.0, "training loss"),
    ):
        lines = {network: _over_epochs(seeds, part, what, factor) for network, seeds in history.items()}
        lines = {network: values for network, values in lines.items() if np.isfinite(values).any()}
        if not lines:
            continue
        figure, axes = panel()
        for network, values in lines.items():
            _band(axes, values, network, color=COLOURS[network], linestyle=DASHES[network], marker=MARKERS[network])
        if key == "learning" and "teacher" not in lines:
            given = results["seeds"][0]["teacher"].get(name)
            if given is not None:
                axes.axhline(
                    factor * given, color=COLOURS["teacher"], linestyle=DASHES["teacher"], label="teacher, as given"
                )
        cut = _axes(axes, label, lines.values())
        axes.legend()
        seeds = max(len(values) for values in lines.values())
        last = ", ".join(
            f"{network} {np.nanmean(values[:, -1]):{_digits(measure, key)}}"
            f"{'' if len(values) == seeds else f' ({_seeds(len(values))})'}"
            for network, values in lines.items()
        )
        finding = f"After the last epoch, mean of {_seeds(seeds)}: {last}."
        finding += " Each is the network's own objective: they are not to be compared." if key == "loss" else ""
        found.append(Drawn(key, _sentence(f"{label} by epoch; {_bands(seeds)}{cut}"), finding, figure))
    return found


def terms(history: History, numbers: Mapping[str, Sequence[float]]) -> list[Drawn]:
    """The distilled student's terms, what each weighs, and their numbers, over epochs; what there is none of is left out."""
    seeds = history.get("distilled", [])
    if not seeds or not seeds[0]:
        return []
    keys = sorted({key for lines in seeds for line in lines for key in line["train"]})
    keys = [key for key in keys if not key.startswith(PEER)]
    weights = [key for key in keys if key.endswith("_weight") and key.removesuffix("_weight") in keys]
    named = [key.removesuffix("_weight") for key in weights]
    others = [key for key in keys if key not in {*weights, *named, "loss", "accuracy"} and not key.endswith(" count")]

    def line_of(key: str) -> np.ndarray:
        return _over_epochs(seeds, "train", key)

    found = []
    drawn = (
        ("terms", "Each term", {name: line_of(name) for name in named}, "mean, unweighted"),
        ("weights", "Effective weight of each term", {name: line_of(f"{name}_weight") for name in named}, "weight"),
        (
            "numbers",
            "Temperatures and other numbers of the terms",
            {name: np.asarray([values]) for name, values in numbers.items() if name.replace(" ", "_") not in others}
            | {name.replace("_", " "): line_of(name) for name in others},
            "value",
        ),
    )
    for key, title, lines, label in drawn:
        lines = {name: values for name, values in lines.items() if np.isfinite(values).any()}
        if not lines:
            continue
        figure, axes = panel(3.7, 2.9)
        for place, (name, values) in enumerate(lines.items()):
            colour, dash = SERIES[place % len(SERIES)]
            _band(axes, values, name, color=colour, linestyle=dash, marker="o")
        cut = _axes(axes, label, lines.values())
        if min(np.nanmin(values) for values in lines.values()) >= 0:
            axes.set_ylim(bottom=0)
        axes.legend()
        each = ", ".join(f"{name} {_moved(values)}" for name, values in lines.items())
        finding = f"From the first to the last epoch: {each}."
        found.append(
            Drawn(key, f"{title} of the distilled student by epoch; {_bands(len(seeds))}{cut}.", finding, figure)
        )
    return found


def _moved(values: np.ndarray) -> str:
    first, last = (f"{np.nanmean(values[:, place]):.4g}" for place in (0, -1))
    means = np.nanmean(values, axis=0)
    still = np.ptp(means) <= 1e-6 * np.max(np.abs(means))
    return f"is {first}" if len(means) == 1 else f"stays at {first}" if still else f"goes from {first} to {last}"


def _over_epochs(seeds: Sequence[Sequence[Mapping[str, Any]]], part: str, key: str, scale: float = 1.0) -> np.ndarray:
    """[seeds, epochs]; NaN where nothing was measured."""
    found = np.full((len(seeds), max((len(lines) for lines in seeds), default=0)), np.nan)
    for row, lines in enumerate(seeds):
        for column, line in enumerate(lines):
            value = line[part].get(key)
            found[row, column] = scale * value if isinstance(value, int | float) else np.nan
    return found


def _band(axes: Any, values: np.ndarray, label: str, *, color: str, linestyle: Any, marker: str) -> None:
    """Mean over the seeds, and their range where there are several."""
    epochs = np.arange(1, values.shape[1] + 1)
    known = np.isfinite(values).any(axis=0)
    epochs, values = epochs[known], values[:, known]
    marked = {"marker": marker, "markersize": 4} if len(epochs) < 20 else {}
    axes.plot(
        epochs, np.nanmean(values, axis=0), color=color, linestyle=linestyle, label=label, linewidth=1.6, **marked
    )
    if len(values) > 1:
        low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
        axes.fill_between(epochs, low, high, color=color, alpha=0.18, linewidth=0)


def _axes(axes: Any, label: str, lines: Iterable[np.ndarray]) -> str:
    """Epochs below and numbers at the side; of long runs the first tenth does not set the scale, which the words say."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
    axes.grid(alpha=0.2, color=COLOURS["ink"], linewidth=0.6)
    later = np.concatenate([values[:, values.shape[1] // 10 :].ravel() for values in lines])
    low, high = float(np.nanmin(later)), float(np.nanmax(later))
    bottom, top = axes.get_ylim()
    if not low < high or high - low > 0.6 * (top - bottom):
        return ""
    margin = 0.05 * (high - low)
    axes.set_ylim(max(bottom, low - margin), min(top, high + margin))
    return "; what lies above or below in the first tenth of the epochs is cut off"


def _digits(measure: Mapping[str, Any], key: str) -> str:
    return ".2f" if measure["percent"] and key == "learning" else ".4g"


def _seeds(count: int) -> str:
    return f"{count} seeds" if count > 1 else "one seed"


def _bands(count: int) -> str:
    return f"lines are means, bands the range of {count} seeds" if count > 1 else "one seed, hence no band"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
