"""What a law finds: the size of a breach, how much of it is allowed, and at which input."""

from typing import Any, NamedTuple

import jax
import numpy as np

# How much of the largest number's size is forgiven to every number: a gradient near 0 is a sum whose terms cancel.
OF_VALUES = 0.01
OF_GRADIENTS = 1.0


class Measured(NamedTuple):
    """What one law found of one loss.

    Attributes:
      error: the largest relative error found; NaN where a number that should be one is none.
      limit: the largest that the law allows.
      at: the input at which it was found, in words.
    """

    error: float
    limit: float
    at: str = ""

    @property
    def holds(self) -> bool:
        """Whether the law was kept."""
        return bool(self.error <= self.limit)  # NaN does not

    def __add__(self, other: "Measured") -> "Measured":  # type: ignore[override]
        """The worse of two under one law."""
        assert self.limit == other.limit
        return self if not self.error <= other.error else other


def relative_error(actual: Any, wanted: Any, share: float = OF_VALUES) -> float:
    """The largest |actual − wanted| / (|wanted| + share · max |wanted|); NaN where either has one."""
    actual, wanted = np.asarray(actual, np.float64), np.asarray(wanted, np.float64)
    assert actual.shape == wanted.shape, f"the shape {actual.shape} is compared with {wanted.shape}"
    difference, size = np.abs(actual - wanted), np.abs(wanted)
    size = size + share * size.max()
    return float(np.max(np.where(difference == 0, 0.0, difference / np.where(size == 0, 1e-300, size))))


def relative_error_of_trees(actual: Any, wanted: Any, share: float) -> float:
    """The largest of any leaf, each leaf against its own size."""
    return max_or_nan(jax.tree.leaves(jax.tree.map(lambda a, w: relative_error(a, w, share), actual, wanted)))


def max_or_nan(numbers: Any) -> float:
    return float(np.max([*numbers]))
