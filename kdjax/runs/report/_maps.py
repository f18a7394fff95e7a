"""Matrices and diagrams of what networks say of the test data: confusions, calibration, alignment, soft targets."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.runs._data import name_of
from kdjax.runs.report._style import COLOURS, DASHES, MAP, MARKERS, Drawn, panel

MATRIX = 30  # classes, at most, of a matrix that can be read
CELLS = 12  # of a matrix with a number in each cell
FEW = 5  # of a bin tell nothing of how often it is right
BARS = 12  # classes of the soft targets, at most
NAMES = ("teacher", "alone", "distilled")
TITLES = {"teacher": "teacher", "alone": "student alone", "distilled": "student distilled"}


def confusions(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> list[Drawn]:
    """One matrix a network: rows are labels, columns first choices, the last of them none of the labels' classes."""
    counted = arrays["counted"]
    labels = arrays["labels"][counted]
    found = []
    for network in NAMES:
        first = arrays[f"first_{network}"][counted]
        counts = confusion(labels, first, len(names))
        columns = [*names, "none"] if counts[:, -1].any() else names
        counts = counts[:, : len(columns)]
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        figure, axes = panel(4.3, 3.9)
        # The root shows the few beside the many.
        image = axes.imshow(np.sqrt(shares), cmap=MAP, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        if len(names) <= CELLS:
            _cells(axes, np.sqrt(shares), [[_count(one) for one in row] for row in counts.tolist()])
        _named(axes, columns, names)
        axes.set_xlabel(f"first choice of the {TITLES[network]}")
        axes.set_ylabel("label")
        bar = figure.colorbar(image, ax=axes, ticks=np.sqrt([0, 0.05, 0.2, 0.5, 1]), fraction=0.05)
        bar.set_ticklabels(["0", "5", "20", "50", "100"])
        bar.set_label("% of the label's")
        bar.outline.set_visible(False)
        wrong = int(counts.sum() - np.trace(counts))
        said = f"The {TITLES[network]} is wrong on {wrong:,} of {int(counts.sum()):,}"
        found.append(
            Drawn(
                f"confusion-{network}",
                f"{TITLES[network].capitalize()}: labels against first choices, n = {int(counts.sum()):,}, seed 0.",
                f"{said}{most_confused(counts, columns)}.",
                figure,
            )
        )
    return found


def confusion(labels: np.ndarray, first: np.ndarray, classes: int) -> np.ndarray:
    """How often each first choice is made of each label, [labels, choices + 1]; the last is of none of them, as -1 is."""
    # Of 8 bits, as runs of before have kept some, the number of a cell would be another cell's.
    labels, first = (np.asarray(one).astype(np.int64) for one in (labels, first))
    known = (labels >= 0) & (labels < classes)
    choices = np.where((first >= 0) & (first < classes), first, classes)[known]
    shape = (classes, classes + 1)
    return np.bincount(labels[known] * shape[1] + choices, minlength=shape[0] * shape[1]).reshape(shape)


def most_confused(counts: np.ndarray, names: Sequence[str]) -> str:
    """The commonest mistake, in words; nothing where there is none."""
    off = counts.copy()
    np.fill_diagonal(off, 0)
    if not off.any():
        return ""
    label, choice = map(int, np.unravel_index(off.argmax(), off.shape))
    return f", most often taking label {names[label]} for {names[choice]} ({off.max():,} of {counts[label].sum():,})"


def differences(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> Drawn:
    """For each class, how much more often the distilled student is right than the teacher, and than the student alone."""
    counted = arrays["counted"]
    labels = arrays["labels"][counted]
    right = {name: arrays[f"first_{name}"][counted] == labels for name in NAMES}
    classes = [number for number in range(len(names)) if (labels == number).any()]
    figure, axes = panel(4.3, 3.7)
    places = np.arange(len(classes))
    gains = {}
    for shift, other in enumerate(("teacher", "alone")):
        points = [100 * (right["distilled"][labels == c].mean() - right[other][labels == c].mean()) for c in classes]
        gains[other] = np.asarray(points)
        axes.bar(
            places + 0.4 * (shift - 0.5),
            points,
            width=0.38,
            color=COLOURS[other],
            label=f"than the {TITLES[other]}",
        )
    axes.axhline(0, color=COLOURS["ink"], linewidth=0.8)
    _ticks(axes.xaxis, [names[c] for c in classes])
    axes.set_xlabel("label")
    axes.set_ylabel("more often right, points")
    axes.grid(axis="y", alpha=0.2, color=COLOURS["ink"], linewidth=0.6)
    figure.legend(
        loc="outside lower center", ncols=2, title="the distilled student is right more often", title_fontsize=9
    )
    low, high = int(gains["teacher"].argmin()), int(gains["alone"].argmax())
    worst, best = gains["teacher"][low], gains["alone"][high]
    finding = (
        f"Behind the teacher most for label {names[classes[low]]} ({worst:+.1f} points)"
        if worst < 0
        else "For no label behind the teacher"
    )
    finding += (
        f"; ahead of the student alone most for label {names[classes[high]]} ({best:+.1f} points)."
        if best > 0
        else "; for no label ahead of the student alone."
    )
    title = f"Where the distilled student differs, by class; n = {len(labels):,}, seed 0."
    return Drawn("differences", title, finding, figure)


def reliability(calibration: Mapping[str, Any]) -> list[Drawn]:
    """How often the first choice is right against how probable it is said to be; a point's area is its bin's share.

    A network of which the calibration is not known, since it gives NaN somewhere, is left out.
    """
    known = [name for name in NAMES if calibration[name]["calibration"] is not None]
    if not known:
        return []
    figure, axes = panel(4.3, 4.1)
    axes.plot([0, 100], [0, 100], color=COLOURS["ink"], linewidth=0.8, linestyle=":")
    said = []
    for network in known:
        own = calibration[network]
        table = np.asarray(
            [[np.nan if value is None else value for value in row] for row in own["reliability"]], np.float64
        )
        table = 100 * table[table[:, 2] > 0]
        drawn = table[table[:, 2] * own["n"] / 100 >= FEW - 0.5]
        error = 100 * own["calibration"]
        label = f"{TITLES[network]}, ECE {error:.2f} %"
        style = {"color": COLOURS[network], "marker": MARKERS[network]}
        axes.plot(drawn[:, 0], drawn[:, 1], color=COLOURS[network], linestyle=DASHES[network], linewidth=1.3)
        axes.scatter(drawn[:, 0], drawn[:, 1], s=14 + 1.3 * drawn[:, 2], alpha=0.75, linewidth=0, **style)
        axes.plot([], [], linestyle=DASHES[network], markersize=5, label=label, **style)
        sure, right = (float(np.sum(table[:, column] * table[:, 2]) / np.sum(table[:, 2])) for column in (0, 1))
        said.append(f"the {TITLES[network]} gives its first choice {sure:.1f} % and is right in {right:.1f} %")
    axes.set(xlim=(0, 102), ylim=(0, 102), xlabel="probability of the first choice, %", ylabel="right, %")
    axes.grid(alpha=0.2, color=COLOURS["ink"], linewidth=0.6)
    figure.legend(loc="outside lower left")
    title = (
        f"Reliability, n = {int(calibration[known[0]]['n']):,}, seed 0: ten bins, a point's area is the bin's share, bins "
        f"of fewer than {FEW} are left out; on the dotted line probabilities mean what they say."
    )
    return [Drawn("reliability", title, f"On average {', '.join(said)}.", figure)]


def alignments(layers: Mapping[str, Any]) -> list[Drawn]:
    """Centred kernel alignment of each student's layers with the teacher's."""
    found = []
    for student in ("distilled", "alone"):
        if student not in layers["cka"]:
            continue
        own = layers["cka"][student]
        values = np.asarray([[np.nan if one is None else one for one in row] for row in own["values"]], np.float64)
        figure, axes = panel(4.3, 1.6 + 0.45 * len(values))
        image = axes.imshow(values, cmap=MAP, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        texts = [["–" if np.isnan(one) else f"{one:.2f}" for one in row] for row in values]
        _cells(axes, np.nan_to_num(values), texts)
        _named(axes, own["teacher"], own["student"], turned=True)
        axes.set_xlabel("layer of the teacher")
        axes.set_ylabel(f"layer, {TITLES[student]}")
        figure.colorbar(image, ax=axes, fraction=0.05, label="CKA").outline.set_visible(False)
        finding = f"The logits of teacher and {TITLES[student]} are aligned to {texts[-1][-1]}, where 1 is alike."
        title = (
            f"CKA between layers, {TITLES[student]}: debiased, linear, n = {layers['examples']} test examples, seed 0."
        )
        found.append(Drawn(f"cka-{student}", title, finding, figure))
    return found


def soft_targets(
    logits: Mapping[str, np.ndarray], label: int, names: Sequence[str], temperatures: Sequence[float]
) -> Drawn:
    """What the teacher says of one example at several temperatures, and the distilled student beside it."""
    from matplotlib.figure import Figure

    chosen = np.sort(np.argsort(-logits["teacher"], kind="stable")[:BARS])
    rows = -(-len(temperatures) // 2)
    figure = Figure(figsize=(4.3, 0.6 + 1.9 * rows), layout="constrained")
    panels = np.ravel(figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False))
    entropies = []
    for axes, temperature in zip(panels, temperatures, strict=False):
        said = {name: softmax(values / temperature) for name, values in logits.items()}
        places = np.arange(len(chosen))
        axes.bar(places, 100 * said["teacher"][chosen], color=COLOURS["teacher"], alpha=0.75, label="teacher")
        axes.plot(
            places,
            100 * said["distilled"][chosen],
            linestyle="",
            marker="o",
            markersize=5,
            color=COLOURS["distilled"],
            label="student distilled",
        )
        axes.set_title(f"T = {temperature:g}")
        _ticks(axes.xaxis, [names[number] for number in chosen])
        own = said["teacher"]
        entropies.append(float(-np.sum(own * np.log2(np.where(own > 0, own, 1.0)))))
    for axes in panels[len(temperatures) :]:
        axes.axis("off")
    for axes in panels[-2:]:
        axes.set_xlabel("class")
    figure.supylabel("probability, %", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    each = ", ".join(f"{one:.2f} at T = {t:g}" for one, t in zip(entropies, temperatures, strict=True))
    finding = f"The softer, the more is said of the other classes: the teacher's entropy in bits is {each}."
    few = f"; the teacher's first {BARS} of {len(names)} classes" if len(names) > BARS else ""
    called = name_of(label, names)
    title = f"Soft targets of one test example, n = 1, label {called}, seed 0, at several temperatures T{few}."
    return Drawn("soft-targets", title, finding, figure)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Of one example's logits."""
    odds = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return odds / odds.sum()


def _cells(axes: Any, shade: np.ndarray, texts: Sequence[Sequence[str]]) -> None:
    """A text in each cell, dark on what is bright; all but black, which a page takes for no colour at all."""
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            colour = "#000001" if shade[row, column] > 0.55 else "#ffffff"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8.5)


def _count(number: int) -> str:
    """For a cell: of many digits the thousands, of 0 nothing."""
    return f"{number / 1000:.0f}k" if number >= 10_000 else str(number or "")


def _named(axes: Any, columns: Sequence[str], rows: Sequence[str], *, turned: bool = False) -> None:
    _ticks(axes.xaxis, columns, turned=turned)
    _ticks(axes.yaxis, rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _ticks(axis: Any, names: Sequence[str], *, turned: bool = False) -> None:
    """Names at 0, 1, …; turned where they are long, thinned out where they are many."""
    step = -(-len(names) // 15)
    long = max(map(len, names), default=0) > 3
    rotation = 35 if turned or (long and axis.axis_name == "x") else 0
    labels = [name if len(name) < 15 else f"{name[:13]}…" for name in names[::step]]
    slanted = {"rotation": rotation, "ha": "right", "rotation_mode": "anchor"} if rotation else {}
    axis.set_ticks(np.arange(len(names))[::step], labels, fontsize=9, **slanted)
