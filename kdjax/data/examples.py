"""The type of data that are read one example at a time: for what is larger than memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np

from kdjax.data.dataset import Dataset


@runtime_checkable
class Indexable(Protocol):
    """Anything with a length whose items hold ``"inputs"`` and ``"labels"``, or TFDS's ``"image"`` and ``"label"``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Examples:
    """One split of a data set, none of it in memory until it is asked for. Get it from `open_examples`.

    It is a sequence: ``len(examples)``, and ``examples[i]`` is ``{"inputs": array, "labels": int32}``. `open_stream`
    takes any sequence of such mappings; this one also says what its classes are called.

    Attributes:
      read: a function that can be pickled, from an index to (input, class number); it runs in worker processes.
      count: how many examples there are.
      class_names: what the class numbers mean.
      name: the source, such as ``"folder:pictures"``.
      split: ``"train"``, ``"validation"`` or ``"test"``.
    """

    read: Callable[[int], tuple[np.ndarray, int]]
    count: int
    class_names: tuple[str, ...]
    name: str
    split: str

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.count:
            raise IndexError(f"{self.name} ({self.split}) has the examples 0..{self.count - 1}; got index {index}.")
        inputs, label = self.read(int(index))
        return {"inputs": inputs, "labels": np.int32(label)}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(self.count))


def in_memory(dataset: Dataset) -> Examples:
    """The examples of a data set that is in memory already; each worker process gets a copy of all of them."""
    read = partial(_row, dataset.inputs, dataset.labels)
    return Examples(read, len(dataset.labels), dataset.class_names, dataset.name, dataset.split)


def _row(inputs: np.ndarray, labels: np.ndarray, index: int) -> tuple[np.ndarray, int]:
    return inputs[index], int(labels[index])
