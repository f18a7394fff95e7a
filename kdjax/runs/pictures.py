"""What a run looks like: its images, what the networks predict of them, and its learning curves.

All are matplotlib figures of their own: no window, no global state; `save_figure` writes one, a notebook shows one.
"""

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdjax import _checks
from kdjax._files import write_bytes
from kdjax.runs._data import name_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RIGHT, _WRONG = "#1a7f37", "#c4320a"  # never told apart by colour alone
_COLOURS = ("#555555", "#d9822b", "#2166ac", "#7b3294", "#1a7f37")


def image_grid(images: Any, titles: Sequence[str], *, columns: int = 3) -> "Figure":
    """Draws images in rows, each under its title.

    Args:
      images: [n, height, width], or [n, height, width, channels] with 1 or 3 channels; whole numbers up to 255, or floats
        of any range: each image is drawn from its own darkest to its own brightest value.
      titles: n words, such as the labels.
      columns: images a row.

    Returns:
      A matplotlib figure.

    Raises:
      ValueError: if there is no image, or shapes and counts do not fit.
    """
    pictures = _pictures(images, columns)
    if len(titles) != len(pictures):
        raise ValueError(f"titles must be one for each of the {len(pictures)} images; got {len(titles)}.")
    figure, axes = _grid(len(pictures), columns, width=1.5, height=1.75)
    for axis, picture, title in zip(axes, pictures, titles, strict=False):
        _draw(axis, picture)
        axis.set_title(title, fontsize=11)
    return figure


def prediction_grid(
    images: Any, labels: Any, teacher_logits: Any, student_logits: Any, class_names: Sequence[str], *, columns: int = 3
) -> "Figure":
    """Draws images with what the teacher and the student say of each, and how sure they are; a wrong class stands out.

    Args:
      images: as for `image_grid`.
      labels: [n] whole class numbers; one that is none of the names' is called "none".
      teacher_logits: [n, classes].
      student_logits: [n, classes].
      class_names: one word a class.
      columns: images a row.

    Returns:
      A matplotlib figure. Probabilities are softmax's at temperature 1.

    Raises:
      ValueError: if there is no image, or shapes and counts do not fit.
    """
    pictures = _pictures(images, columns)
    numbers = np.asarray(labels)
    _checks.labels("labels", numbers, (len(pictures),))
    said = {"teacher": _most_probable(teacher_logits), "student": _most_probable(student_logits)}
    for name, logits in (("teacher_logits", teacher_logits), ("student_logits", student_logits)):
        if np.shape(logits) != (len(pictures), len(class_names)):
            raise ValueError(
                f"{name} must have shape ({len(pictures)}, {len(class_names)}), one row an image and one column a name in "
                f"class_names; got {np.shape(logits)}."
            )
    figure, axes = _grid(len(pictures), columns, width=2.4, height=2.6)
    # Without it a text would lie nearer to the next image's label than to its own image.
    figure.set_layout_engine("constrained", h_pad=0.12)
    for index, (axis, picture) in enumerate(zip(axes, pictures, strict=False)):
        _draw(axis, picture)
        axis.set_title(f"label {name_of(numbers[index], class_names)}", fontsize=11)
        for line, (who, (classes, probabilities)) in enumerate(said.items()):
            right = classes[index] == numbers[index]
            text = f"{who}: {class_names[classes[index]]} ({100 * probabilities[index]:.1f} %) {'✓' if right else '✗'}"
            style = {"color": _RIGHT} if right else {"color": _WRONG, "fontweight": "bold"}
            axis.text(
                0.5, -0.04 - 0.12 * line, text, transform=axis.transAxes, ha="center", va="top", fontsize=9, **style
            )
    return figure


def learning_curves(
    records: Mapping[str, Sequence[Mapping[str, Any]]], *, quantity: tuple[str, ...] = ("test", "accuracy")
) -> "Figure":
    """Draws a quantity over epochs, a line a network; where seeds repeat an epoch, their mean and their range.

    Args:
      records: by network, one mapping an epoch and seed: the lines of the ``metrics.jsonl`` files, in any order. Each
        has ``"epoch"`` and the quantity.
      quantity: the keys that lead to the number: ``record["test"]["accuracy"]``. Accuracies are drawn in %.

    Returns:
      A matplotlib figure.

    Raises:
      ValueError: if there is no record.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not any(records.values()):
        raise ValueError("records must hold at least one epoch of one network; got none.")
    scale, unit = (100.0, ", %") if quantity[-1] == "accuracy" else (1.0, "")
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = figure.add_subplot()
    most_seeds = 1
    for index, (name, history) in enumerate(records.items()):
        by_epoch: dict[int, list[float]] = {}
        for record in history:
            by_epoch.setdefault(record["epoch"], []).append(scale * _at(record, quantity))
        epochs = sorted(by_epoch)
        colour = _COLOURS[index % len(_COLOURS)]
        means = [float(np.mean(by_epoch[epoch])) for epoch in epochs]
        axis.plot(epochs, means, marker="o" if len(epochs) < 20 else "", markersize=4, color=colour, label=name)
        low, high = ([end(by_epoch[epoch]) for epoch in epochs] for end in (np.min, np.max))
        axis.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        most_seeds = max([most_seeds, *map(len, by_epoch.values())])
    axis.set_xlabel("epoch")
    axis.set_ylabel(" ".join(quantity).replace("_", " ") + unit)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    title = f"mean and range of {most_seeds} seeds" if most_seeds > 1 else None
    axis.legend(title=title, frameon=False, fontsize=9, title_fontsize=9)
    return figure


def save_figure(figure: "Figure", path: str | os.PathLike[str], *, dots_per_inch: int = 150) -> None:
    """Writes a figure whole or not at all, in the format of the file's ending, such as png, svg or pdf.

    Raises:
      ValueError: if the ending is no format that matplotlib writes.
    """
    ending = Path(path).suffix.lstrip(".").lower()
    _checks.one_of("path's ending", ending, sorted(figure.canvas.get_supported_filetypes()))
    content = io.BytesIO()
    figure.savefig(content, format=ending, dpi=dots_per_inch)
    write_bytes(path, content.getvalue())


def _at(record: Mapping[str, Any], keys: tuple[str, ...]) -> float:
    value: Any = record
    for key in keys:
        value = value[key]
    return math.nan if value is None else float(value)


def _pictures(images: Any, columns: int) -> np.ndarray:
    array = np.asarray(images)
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0 or not (array.ndim == 3 or (array.ndim == 4 and array.shape[-1] == 3)):
        raise ValueError(
            "images must be [n, height, width] or [n, height, width, channels] with 1 or 3 channels, n at least 1; "
            f"got shape {np.shape(images)}."
        )
    if columns < 1:
        raise ValueError(f"columns must be at least 1; got {columns!r}.")
    values = array.astype(np.float32)
    within = tuple(range(1, values.ndim))
    low, high = values.min(axis=within, keepdims=True), values.max(axis=within, keepdims=True)
    return (values - low) / np.where(high > low, high - low, 1.0)


def _most_probable(logits: Any) -> tuple[np.ndarray, np.ndarray]:
    """The class of the largest logit, and its probability."""
    array = np.asarray(logits, np.float64)
    _checks.rank("logits", array, 2, "[n, classes]")
    odds = np.exp(array - array.max(axis=1, keepdims=True))
    return array.argmax(axis=1), 1.0 / odds.sum(axis=1)


def _grid(count: int, columns: int, *, width: float, height: float) -> tuple["Figure", list[Any]]:
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(np.asarray(figure.subplots(rows, columns, squeeze=False)).ravel())
    for axis in axes:
        axis.axis("off")
    return figure, axes


def _draw(axis: Any, picture: np.ndarray) -> None:
    axis.imshow(picture, cmap="gray" if picture.ndim == 2 else None, vmin=0, vmax=1, interpolation="nearest")
