"""The one type of data set, and the one door into it: arrays that have been checked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set, whole, in the host's memory. Build it with `make_dataset`.

    It is no pytree on purpose: names are not for `jax.jit`. `kdjax.data.on_device` gives the arrays.

    Attributes:
      inputs: uint8 in 0..255, or float32. Images are [examples, height, width, channels], vectors [examples, values].
      labels: int32 [examples], whole class numbers from 0.
      class_names: what the numbers mean, in words; as many as there are classes.
      name: the source that the data came from, such as ``"mnist"``.
      split: ``"train"``, ``"validation"`` or ``"test"``.
    """

    inputs: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    name: str
    split: str


def make_dataset(
    inputs: np.ndarray, labels: np.ndarray, *, class_names: Sequence[str], name: str, split: str
) -> Dataset:
    """Check the arrays of a classification data set and bring them into their one form.

    Args:
      inputs: uint8 or finite floating-point, any width (it becomes float32). Images [examples, height, width, channels],
        grey images [examples, height, width] (they gain a channel axis), or vectors [examples, values].
      labels: whole numbers [examples], each at least 0 and less than the number of classes.
      class_names: one string a class, all different.
      name: where the data came from; errors begin with it.
      split: which part of it this is; errors name it too.

    Returns:
      A `Dataset`.

    Raises:
      ValueError: if rank, dtype, length, a label or a value is not as above.

    Example:
      >>> import numpy as np
      >>> from kdjax.data import make_dataset
      >>> grey = np.zeros((5, 8, 8), np.uint8)
      >>> dataset = make_dataset(grey, np.array([0, 1, 1, 0, 1]), class_names=("no", "yes"), name="mine", split="train")
      >>> dataset.inputs.shape, str(dataset.labels.dtype)
      ((5, 8, 8, 1), 'int32')
    """
    here = f"{name} ({split})"
    # A word is a sequence, too: of its letters.
    if isinstance(class_names, str) or not isinstance(class_names, Iterable):
        raise ValueError(f"{here}: class_names must be names, one a class; got {class_names!r:.99}.")
    names = tuple(class_names)
    odd = [one for one in names if not isinstance(one, str)]
    if odd:
        raise ValueError(
            f"{here}: class_names must be strings, as tuple(map(str, class_names)) makes them; {odd[0]!r:.99} is "
            f"{type(odd[0]).__name__}, in {class_names!r:.99}."
        )
    if not names or len(set(names)) != len(names):
        raise ValueError(f"{here}: class_names must be different names, at least one; got {names!r}.")
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    words = tuple(map(str, names))  # plain ones, of NumPy's too
    return Dataset(_inputs(here, inputs), checked_labels(here, labels, len(inputs), len(words)), words, name, split)


def numbered_classes(here: str, labels: Iterable[np.ndarray]) -> tuple[str, ...]:
    """The names ``"0"``, ``"1"``, … up to the greatest label of all splits, for data that does not name its classes."""
    whole = [np.asarray(each) for each in labels]
    if any(not np.issubdtype(each.dtype, np.integer) or each.size == 0 for each in whole):
        found = ", ".join(f"shape {each.shape} and dtype {each.dtype}" for each in whole)
        raise ValueError(f"{here}: labels must be whole numbers, at least one in each split; got {found}.")
    numbers = sorted({number for each in whole for number in np.unique(each).tolist() if number >= 0})
    # One stray byte would otherwise make a network of 256 classes, and one stray number a list of as many names.
    gap = next((place for place, number in enumerate(numbers) if number != place), None)
    if gap is not None:
        raise ValueError(
            f"{here}: labels must be numbered without gaps, since they name the classes; the greatest is {numbers[-1]} "
            f"and no example has {gap}. An npz file may name its classes in class_names."
        )
    return tuple(map(str, numbers))


def require_split(source: str, split: str, available: Sequence[str]) -> None:
    """Say what there is, where a source lacks the split that was asked for."""
    if split not in available:
        raise ValueError(f"source {source!r} has no split {split!r}; it has {', '.join(available)}.")


def require_alike(datasets: Sequence[Dataset]) -> None:
    """Refuse splits that no single network could read: found now rather than at the first evaluation."""
    first = datasets[0]
    for other in datasets[1:]:
        if other.inputs.shape[1:] != first.inputs.shape[1:] or other.inputs.dtype != first.inputs.dtype:
            raise ValueError(
                f"{first.name}: the examples of all splits must have one shape and dtype; got {first.inputs.shape[1:]} "
                f"{first.inputs.dtype} in {first.split} and {other.inputs.shape[1:]} {other.inputs.dtype} in {other.split}."
            )


def _inputs(here: str, inputs: np.ndarray) -> np.ndarray:
    if inputs.ndim not in (2, 3, 4) or inputs.size == 0:
        raise ValueError(
            f"{here}: inputs must be images [examples, height, width, channels] or [examples, height, width], or vectors "
            f"[examples, values], with no empty axis; got shape {inputs.shape}."
        )
    if inputs.ndim == 3:
        inputs = inputs[..., None]
    if inputs.dtype == np.uint8:
        return inputs
    if not np.issubdtype(inputs.dtype, np.floating):
        raise ValueError(f"{here}: inputs must be uint8 or floating-point; got dtype {inputs.dtype}.")
    # A float64 beyond float32's range becomes inf here and is counted with the rest below.
    with np.errstate(over="ignore"):
        inputs = inputs.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(inputs.reshape(len(inputs), -1)).all(axis=1))
    if bad.size:
        raise ValueError(
            f"{here}: inputs must be finite in float32; {bad.size} of {len(inputs)} examples hold NaN or infinity, "
            f"the first is number {bad[0]}."
        )
    return inputs


def checked_labels(here: str, labels: np.ndarray, examples: int, classes: int) -> np.ndarray:
    """Labels as int32 [examples], each a class; errors begin with `here`."""
    if labels.shape != (examples,):
        raise ValueError(
            f"{here}: labels must have shape ({examples},), one for each of the {examples} inputs; got {labels.shape}."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{here}: labels must be whole class numbers; got dtype {labels.dtype}.")
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if bad.size:
        raise ValueError(
            f"{here}: labels must lie in 0..{classes - 1}, for {classes} classes; {bad.size} of {examples} do not, "
            f"the first is {labels[bad[0]]}, of example {bad[0]}."
        )
    return labels.astype(np.int32)
