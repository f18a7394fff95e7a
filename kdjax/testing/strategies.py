"""What hypothesis draws for a loss: logits, features, maps, labels and masks, full of ties, zeros and extremes."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kdjax.testing._case import Case

Shape = tuple[int, ...]
Drawn = st.SearchStrategy[np.ndarray]
BATCH = 4


def wild(shape: Shape) -> Drawn:
    """Any numbers of float16 up to 10,000, its subnormals included and many of them alike, as float32.

    Args:
      shape: the array's.
    """
    return hnp.arrays(np.float32, shape, elements=st.floats(-10_000, 10_000, width=16))


def coarse(shape: Shape) -> Drawn:
    """Steps of 1/4 from −3 to 3, as float32: full of ties and zeros, and coarse enough that float32 knows the exact answer.

    Args:
      shape: the array's.
    """
    few_different = hnp.arrays(np.int8, shape, elements=st.integers(-12, 12))
    # Bytes are drawn all at once: number by number, drawing would take most of the time.
    size = math.prod(shape)
    all_different = st.binary(min_size=size, max_size=size).map(
        lambda drawn: np.frombuffer(drawn, np.uint8).reshape(shape) % 25 - 12.0
    )
    return st.one_of(few_different, all_different).map(lambda numbers: numbers.astype(np.float32) / 4)


def logits(batch: int = BATCH, classes: int = 5, *, elements: Callable[[Shape], Drawn] = wild) -> Drawn:
    """Logits [batch, classes].

    Args:
      batch: the number of examples.
      classes: the number of classes.
      elements: `wild`, `coarse` or another function from a shape to a strategy.
    """
    return elements((batch, classes))


def features(batch: int = BATCH, dim: int = 5, *, elements: Callable[[Shape], Drawn] = wild) -> Drawn:
    """Features [batch, dim].

    Args:
      batch: the number of examples.
      dim: the number of features of each.
      elements: `wild`, `coarse` or another function from a shape to a strategy.
    """
    return elements((batch, dim))


def maps(
    batch: int = BATCH, height: int = 3, width: int = 2, channels: int = 4, *, elements: Callable[[Shape], Drawn] = wild
) -> Drawn:
    """Feature maps [batch, height, width, channels].

    Args:
      batch: the number of examples.
      height: of each map.
      width: of each map.
      channels: of each map.
      elements: `wild`, `coarse` or another function from a shape to a strategy.
    """
    return elements((batch, height, width, channels))


def labels(batch: int = BATCH, classes: int = 5) -> Drawn:
    """Class numbers [batch], int32.

    Args:
      batch: the number of examples.
      classes: the number of classes.
    """
    return hnp.arrays(np.int32, (batch,), elements=st.integers(0, classes - 1))


def masks(batch: int = BATCH) -> Drawn:
    """Which examples count, bools [batch]; at least one does.

    Args:
      batch: the number of examples.
    """
    return hnp.arrays(np.bool_, (batch,)).filter(np.any)


@functools.cache
def inputs(case: Case, elements: Callable[[Shape], Drawn], batch: int = BATCH) -> Any:
    """A case's arrays with every floating-point number drawn; labels and indices are drawn with the seed of its `make`.

    Args:
      case: the loss.
      elements: `wild`, `coarse` or another function from a shape to a strategy.
      batch: the number of examples.
    """
    # All of it is made here: a maker that draws by Python's own `random`, as some type checkers do, may not do so in a draw.
    of_seeds = []
    for seed in range(16):
        arrays = case.make(np.random.default_rng(seed), batch)
        numbers = (elements(a.shape) if np.issubdtype(a.dtype, np.floating) else st.just(a) for a in arrays)
        of_seeds.append(st.tuples(*numbers).map(case.admitted))
    return st.one_of(of_seeds)
