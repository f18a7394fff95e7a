"""Changes of a loss's arrays, and the bad points of every loss."""

from collections.abc import Callable
from typing import Any

import numpy as np

Arrays = tuple[Any, ...]
Change = Callable[[Arrays], Arrays]
OfOne = Callable[[np.ndarray], np.ndarray]


def floats(change: OfOne) -> Change:
    """The same change of all arrays of floating-point numbers; labels and indices stay."""
    return lambda arrays: tuple(change(a) if np.issubdtype(a.dtype, np.floating) else a for a in arrays)


def of_student(change: OfOne) -> Change:
    """The change of the first array alone."""
    return lambda arrays: (change(arrays[0]), *arrays[1:])


def of_teacher(change: OfOne) -> Change:
    """The change of the second array alone."""
    return lambda arrays: (arrays[0], change(arrays[1]), *arrays[2:])


def each(change: OfOne) -> Change:
    """The same change of all arrays, labels included."""
    return lambda arrays: tuple(change(a) for a in arrays)


def _constant(array: np.ndarray) -> np.ndarray:
    """Each example constant, and different from the others."""
    return np.zeros_like(array) + array.reshape(len(array), -1)[:, 0].reshape(-1, *[1] * (array.ndim - 1))


def _first_example(change: OfOne) -> OfOne:
    return lambda array: np.concatenate([change(array[:1]), array[1:]])


BAD_POINTS: dict[str, Change] = {
    "all zero": floats(np.zeros_like),
    "student zero": of_student(np.zeros_like),
    "one example zero": floats(_first_example(np.zeros_like)),
    "identical examples": each(lambda a: np.repeat(a[:1], len(a), axis=0)),
    "two identical examples": each(lambda a: np.concatenate([a[1:2], a[1:]])),
    "student's examples identical": of_student(lambda a: np.repeat(a[:1], len(a), axis=0)),
    "each example constant": floats(_constant),
    "opposite": of_teacher(np.negative),
    "a batch of one": each(lambda a: a[:1]),
}
