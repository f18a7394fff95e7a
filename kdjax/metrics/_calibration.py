"""Whether a network's probabilities mean what they say: calibration error, reliability, Brier score."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kdjax import _checks
from kdjax._types import Batch, Outputs
from kdjax.metrics._measures import Measure
from kdjax.objectives._places import read_batch


def calibration_error(bins: int = 15) -> Measure:
    r"""Expected calibration error: how far the first choice's probability is from how often it is right.

    $$\sum_b \frac{n_b}{n} \left| \operatorname{acc}(b) - \operatorname{conf}(b) \right|$$

    over bins of equal width of the largest probability, $((b - 1) / B,\; b / B]$.

    Args:
      bins: B, how many.

    Raises:
      ValueError: if `bins` is not a whole number above 0.

    Example:
      Sure to 0.88, and right every time:

      >>> outputs, batch = Outputs(jnp.array([[2.0, 0.0], [0.0, 2.0]]), {}), {"labels": jnp.array([0, 1])}
      >>> from kdjax.metrics import finished, sums_of
      >>> measures = {"error": calibration_error()}
      >>> round(finished(measures, sums_of(measures, outputs, None, batch))["error"], 3)
      0.119

    Reference:
      Guo et al., On Calibration of Modern Neural Networks, 2017, section 2, eq. 3. https://arxiv.org/abs/1706.04599
    """
    return Measure(_by_bin(bins), _error, percent=True, lower_is_better=True)


def reliability(bins: int = 15) -> Measure:
    """What a reliability diagram draws: [bins, 3], each bin's mean probability, how often it was right, and its share.

    Args:
      bins: how many of equal width, as in `calibration_error`.

    Raises:
      ValueError: if `bins` is not a whole number above 0.

    Example:
      >>> outputs, batch = Outputs(jnp.array([[2.0, 0.0], [0.0, 2.0]]), {}), {"labels": jnp.array([0, 0])}
      >>> from kdjax.metrics import finished, sums_of
      >>> measures = {"bins": reliability(2)}
      >>> finished(measures, sums_of(measures, outputs, None, batch))["bins"].round(2).tolist()  # nothing is below one half
      [[nan, nan, 0.0], [0.88, 0.5, 1.0]]
    """
    return Measure(_by_bin(bins), lambda sums, count: _table(sums, count))


def brier_score() -> Measure:
    r"""The squared distance of probabilities from the label's one-hot vector, from 0 to 2.

    $$\frac{1}{n} \sum_i \sum_c (p_{ic} - [c = y_i])^2$$

    Example:
      >>> outputs, batch = Outputs(jnp.array([[0.0, 0.0]]), {}), {"labels": jnp.array([0])}
      >>> from kdjax.metrics import finished, sums_of
      >>> finished({"brier": brier_score()}, sums_of({"brier": brier_score()}, outputs, None, batch))
      {'brier': 0.5}

    Reference:
      Brier, Verification of Forecasts Expressed in Terms of Probability, 1950, eq. 2.
      https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2
    """

    def values(student: Outputs, teacher: Outputs | None, batch: Batch) -> Array:
        probabilities, labels = _read(student, batch)
        distance = jnp.sum((probabilities - jax.nn.one_hot(labels, probabilities.shape[-1])) ** 2, axis=-1)
        return jnp.where((labels < 0) | (labels >= probabilities.shape[-1]), jnp.nan, distance)

    return Measure(values, lambda sums, count: float(sums / count), lower_is_better=True)


def _read(student: Outputs, batch: Batch) -> tuple[Array, Array]:
    logits = student.logits.astype(jnp.promote_types(student.logits.dtype, jnp.float32))
    if logits.shape[-1] < 2:
        raise ValueError(f"logits must be of two classes or more, for a softmax; got shape {logits.shape}.")
    labels = _checks.labels('batch["labels"]', read_batch(batch, "labels"), logits.shape[:-1])
    return jax.nn.softmax(logits, axis=-1), labels


def _by_bin(bins: int) -> Callable[[Outputs, Outputs | None, Batch], dict[str, Array]]:
    """For each entry its probability, whether it is right, and 1, each in the bin of its probability."""
    _checks.whole("bins", bins, 1)

    def values(student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Array]:
        probabilities, labels = _read(student, batch)
        largest = jnp.max(probabilities, axis=-1)
        right = (jnp.argmax(probabilities, axis=-1) == labels).astype(largest.dtype)
        # A label that is no class, and a probability that is none, are seen.
        right = jnp.where((labels < 0) | (labels >= probabilities.shape[-1]) | jnp.isnan(largest), jnp.nan, right)
        place = jnp.clip(jnp.ceil(largest * bins).astype(jnp.int32) - 1, 0, bins - 1)
        own = jax.nn.one_hot(place, bins)
        return {"sure": own * largest[..., None], "right": own * right[..., None], "count": own}

    return values


def _error(sums: Mapping[str, np.ndarray], count: float) -> float:
    return float(np.sum(np.abs(np.asarray(sums["right"]) - np.asarray(sums["sure"]))) / count)


def _table(sums: Mapping[str, Any], count: float) -> np.ndarray:
    sure, right, own = (np.asarray(sums[name], np.float64) for name in ("sure", "right", "count"))
    means = [np.divide(one, own, out=np.full(own.shape, np.nan), where=own > 0) for one in (sure, right)]
    return np.stack([*means, own / count], axis=1)
