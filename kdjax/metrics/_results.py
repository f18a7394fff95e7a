"""What a distillation bought: accuracies, agreement and intervals, as numbers on the host."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax import _checks
from kdjax._types import Tree


class Interval(NamedTuple):
    """A mean over independent runs, and how far it can be trusted.

    Attributes:
      mean: of the n values, in their unit.
      half_width: the confidence interval is mean ± half_width; NaN where n = 1, since one value tells no spread.
      n: the number of values.
      std: their sample standard deviation, with n − 1; NaN where n = 1.
    """

    mean: float
    half_width: float
    n: int
    std: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero; False where there is no interval."""
        return abs(self.mean) > self.half_width

    def __format__(self, spec: str) -> str:
        """Mean ± half width, both by a float's format; a sign is the mean's alone; one value has no spread to show.

        Example:
          >>> f"{Interval(0.724, 0.49, 32, 1.3):+.2f}", f"{Interval(97.1, math.nan, 1, math.nan):.1f}"
          ('+0.72 ± 0.49', '97.1')
        """
        if not spec:
            return str(self)
        mean = format(self.mean, spec)
        return mean if self.n == 1 else f"{mean} ± {format(self.half_width, spec.lstrip('+ '))}"


def accuracy_transfer_rate(student: float, baseline: float, teacher: float) -> float:
    """Tells how much of the teacher's lead over a student trained alone the distilled student has gained.

    rate = (student − baseline) / (teacher − baseline): 0 is no gain, 1 is the teacher's accuracy, below 0 is harm.

    Args:
      student: accuracy of the distilled student, a fraction or a percentage like the others.
      baseline: accuracy of the same student trained alone.
      teacher: accuracy of the teacher.

    Returns:
      The rate; NaN where teacher = baseline, since there is no lead to transfer. Where the teacher is behind, the
      sign turns: read the rate only where teacher > baseline, by a lead well above the noise of the two accuracies.

    Example:
      >>> accuracy_transfer_rate(student=0.75, baseline=0.5, teacher=1.0)
      0.5
      >>> accuracy_transfer_rate(student=0.75, baseline=0.5, teacher=0.5)
      nan

    Note:
      Over several seeds, give it the mean accuracies: the mean of the seeds' rates is ruled by the seed with the
      smallest lead.
    """
    lead = float(teacher) - float(baseline)
    return (float(student) - float(baseline)) / lead if lead != 0 else math.nan


def agreement(first_logits: Any, second_logits: Any) -> float:
    """Tells how often two networks say the same class, right or wrong.

    agreement = mean over examples of [argmax_c first = argmax_c second]. The lowest class wins a tie.

    Args:
      first_logits: [batch, classes].
      second_logits: [batch, classes], of the same examples in the same order.

    Returns:
      A fraction of the examples, between 0 and 1.

    Raises:
      ValueError: if the shapes differ, there is no example, or a logit is NaN and thus names no class.

    Example:
      >>> agreement(np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([[0.0, 9.0], [1.0, 2.0]]))
      0.5
    """
    first, second = np.asarray(first_logits), np.asarray(second_logits)
    _checks.rank("first_logits", first, 2, "[batch, classes]")
    _checks.same_shape("first_logits", first, "second_logits", second)
    if first.size == 0:
        raise ValueError(f"first_logits must hold at least one example and class; got shape {first.shape}.")
    for name, logits in (("first_logits", first), ("second_logits", second)):
        if np.isnan(logits.astype(np.float32)).any():
            raise ValueError(f"{name} must be numbers; got NaN.")
    return float(np.mean(first.argmax(axis=1) == second.argmax(axis=1)))


def mean_interval(values: Sequence[float] | np.ndarray, *, confidence: float = 0.95) -> Interval:
    """Gives a mean over independent runs with Student's confidence interval.

    mean ± t · s / √n, where s² = Σ (x − mean)² / (n − 1), and t is the (1 + confidence) / 2 quantile of Student's
    distribution with n − 1 degrees of freedom.

    Args:
      values: one number a run, such as the test accuracy of each seed.
      confidence: the share of such intervals that would hold the true mean, were the values normal; between 0 and 1.

    Returns:
      An `Interval` in the unit of `values`; its half_width and std are NaN for a single value.

    Raises:
      ValueError: if there is no value, a value is not finite, or confidence is out of range.

    Example:
      >>> interval = mean_interval([1.0, 2.0, 3.0])
      >>> interval.mean, round(interval.half_width, 3), interval.n, interval.std
      (2.0, 2.484, 3, 1.0)
      >>> mean_interval([1.0]).half_width
      nan
    """
    array = _numbers("values", values)
    _checks.rank("values", array, 1, "[runs]")
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"values must be one or more finite numbers; got {array.tolist()}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be above 0 and below 1; got {confidence!r}.")
    if array.size == 1:
        return Interval(float(array[0]), math.nan, 1, math.nan)
    from scipy.special import stdtrit

    std = float(array.std(ddof=1))
    quantile = float(stdtrit(array.size - 1, (1 + confidence) / 2))
    return Interval(float(array.mean()), quantile * std / math.sqrt(array.size), array.size, std)


def paired_difference(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray, *, confidence: float = 0.95
) -> Interval:
    """Gives the mean of first − second, seed by seed: what the seeds have in common drops out of the interval.

    `mean_interval` of d_i = first_i − second_i.

    Args:
      first: one number a seed, such as the distilled students' accuracies.
      second: one number a seed, in the same order: the same seeds alone.
      confidence: as in `mean_interval`.

    Returns:
      An `Interval`; where it ``excludes_zero``, the difference is more than the seeds' noise at that confidence.

    Raises:
      ValueError: if the lengths differ, or as in `mean_interval`.

    Example:
      >>> paired_difference([0.9, 0.8], [0.8, 0.7]).excludes_zero
      True
      >>> paired_difference([0.9, 0.8], [0.8, 0.9]).excludes_zero
      False
    """
    first_array, second_array = _numbers("first", first), _numbers("second", second)
    _checks.rank("first", first_array, 1, "[seeds]")
    _checks.same_shape("first", first_array, "second", second_array)
    return mean_interval(first_array - second_array, confidence=confidence)


def parameter_count(params: Tree) -> int:
    """Counts the numbers in a tree of arrays.

    Args:
      params: a pytree of arrays, or of the shapes that `jax.eval_shape` gives.

    Returns:
      The sum over leaves of the product of the leaf's axes; a scalar counts 1.

    Example:
      >>> parameter_count({"kernel": np.zeros((3, 4)), "bias": np.zeros(4)})
      16
    """
    return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(params))


def _numbers(name: str, values: Any) -> np.ndarray:
    try:
        if values is not None:
            return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{name} must be numbers, one for each run; got {values!r:.99}.")
