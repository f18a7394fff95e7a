"""Losses that match activations: feature maps [batch, height, width, channels], or [batch, …] where said."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax import _checks
from kdjax._types import Number
from kdjax.losses import _math


def hint(
    student: Float[Array, " batch *dims"],
    teacher: Float[Array, " batch *dims"],
) -> Float[Array, " batch"]:
    """Mean squared difference of the features.

    mean over all elements of (A_s − A_t)².

    Args:
      student: features of any shape [batch, …], after the connector where the two networks' shapes differ.
      teacher: features of the same shape.

    Returns:
      One number ≥ 0 per example.

    Raises:
      ValueError: the shapes differ, or have only one axis.

    Example:
      Each example's number is its own, whatever stands beside it:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import hint
      >>> student, teacher = jnp.array([[1.0, 1.0], [4.0, 0.0]]), jnp.zeros((2, 2))
      >>> hint(student, teacher).tolist()
      [1.0, 8.0]

    Note:
      The paper halves the squared norm and does not divide by the number of elements; the mean is common now.

    Reference:
      Romero et al., FitNets: Hints for Thin Deep Nets, 2015, equation 3. https://arxiv.org/abs/1412.6550
    """
    _checks.rank_at_least("student", student, 2, "[batch, ...]")
    _checks.same_shape("student", student, "teacher", teacher)
    student, teacher = _math.widened(student, teacher)
    return _math.per_example_mean((student - teacher) ** 2)


def attention_transfer(
    student: Float[Array, "batch student_height student_width student_channels"],
    teacher: Float[Array, "batch teacher_height teacher_width teacher_channels"],
    *,
    power: Number = 2.0,
) -> Float[Array, " batch"]:
    """Mean squared difference of the normalised maps of where the two networks are active.

    mean over positions of (a_s/‖a_s‖ − a_t/‖a_t‖)², with a = mean_c |A|^p.

    Args:
      student: activations; channels may differ from the teacher's, and so may height and width: the larger
        activations are then averaged down to the smaller, by windows that overlap where sizes do not divide.
      teacher: activations of the same examples.
      power: p > 0; larger looks at the strongest activations alone. May be traced.

    Returns:
      One number between 0 and 4 / positions per example.

    Raises:
      ValueError: an argument is not [batch, height, width, channels], the batches differ, or p is not a finite number
        above 0.

    Example:
      Only the pattern counts, neither its strength nor the number of channels that carry it:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import attention_transfer
      >>> teacher = jnp.arange(4.0).reshape(1, 2, 2, 1)
      >>> student = 10.0 * jnp.concatenate([teacher, teacher], axis=-1)
      >>> attention_transfer(student, teacher).round(5).tolist()
      [0.0]

    Note:
      The paper takes the *norm* of the difference of the normalised maps (equation 2); its own code and most code
      since take the mean of the squares, as here. An all-zero map stays zero, and so does its gradient.

    Reference:
      Zagoruyko and Komodakis, Paying More Attention to Attention, 2017, section 3.1. https://arxiv.org/abs/1612.03928
    """
    _checks.positive("power", power)
    _checks.rank("student", student, 4, "[batch, height, width, channels]")
    _checks.rank("teacher", teacher, 4, "[batch, height, width, channels]")
    _checks.same_batch("student", student, "teacher", teacher)
    student, teacher = _math.widened(student, teacher)
    height, width = min(student.shape[1], teacher.shape[1]), min(student.shape[2], teacher.shape[2])
    student_map = _attention(_math.adaptive_average_pool(student, height, width), power)
    teacher_map = _attention(_math.adaptive_average_pool(teacher, height, width), power)
    return _math.per_example_mean((student_map - teacher_map) ** 2)


def _attention(
    activations: Float[Array, "batch height width channels"], power: Number
) -> Float[Array, "batch height width"]:
    # The map is normalised, so the activations' size does not count; left in, high powers would leave float32's range.
    size = jnp.abs(_math.over_largest(activations, (1, 2, 3)))
    return _math.unit(jnp.mean(_math.safe_power(size, power), axis=-1), (1, 2))
