"""Losses that match where on their maps two networks are active, [batch, height, width, channels].

The two may have different channels. Where sizes differ, the larger map is averaged down to the smaller.
"""

import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float

from kdjax import _checks
from kdjax._types import Number
from kdjax.losses import _math


def attention_transfer(
    student: Float[Array, "batch student_height student_width student_channels"],
    teacher: Float[Array, "batch teacher_height teacher_width teacher_channels"],
    *,
    power: Number = 2.0,
) -> Float[Array, " batch"]:
    r"""Mean squared difference of the normalised maps of where the two networks are active.

    $$\frac{1}{HW} \sum_x \left(\frac{a^s_x}{\lVert a^s \rVert} - \frac{a^t_x}{\lVert a^t \rVert}\right)^2, \qquad
    a_x = \frac{1}{C} \sum_c \left|A_{xc}\right|^p$$

    The first sum is over the H · W positions x of the map.

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
    student, teacher = _maps_of_one_size(student, teacher)
    return _math.per_example_mean((_attention(student, power) - _attention(teacher, power)) ** 2)


def factor_transfer(
    student: Float[Array, "batch student_height student_width student_channels"],
    teacher: Float[Array, "batch teacher_height teacher_width teacher_channels"],
    *,
    power: Number = 2.0,
) -> Float[Array, " batch"]:
    r"""Mean absolute difference of the normalised maps of where the two networks are active.

    $$\frac{1}{HW} \sum_x \left|\frac{a^s_x}{\lVert a^s \rVert} - \frac{a^t_x}{\lVert a^t \rVert}\right|, \qquad
    a_x = \frac{1}{C} \sum_c \left|A_{xc}\right|^p$$

    The first sum is over the H · W positions x of the map.

    Args:
      student: activations, or the translator's output; channels may differ from the teacher's, and so may height and
        width: the larger activations are then averaged down to the smaller.
      teacher: activations, or the paraphraser's output, of the same examples.
      power: p > 0; larger looks at the strongest activations alone. May be traced.

    Returns:
      One number between 0 and 2 / √positions per example.

    Raises:
      ValueError: an argument is not [batch, height, width, channels], the batches differ, or p is not a finite number
        above 0.

    Example:
      Small differences count for more than in `attention_transfer`, which squares them:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import attention_transfer, factor_transfer
      >>> teacher = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 2, 1)
      >>> student = teacher + 0.1
      >>> bool(factor_transfer(student, teacher) > attention_transfer(student, teacher))
      True

    Note:
      The paper compares whole factors, ‖F_s/‖F_s‖ − F_t/‖F_t‖‖ with all their channels, which the translator makes
      alike; common code first reduces them to maps, as here. An all-zero map stays zero, and so does its gradient;
      the gradient of the absolute value at 0 is 0.

    Reference:
      Kim et al., Paraphrasing Complex Network: Network Compression via Factor Transfer, 2018, section 3.
      https://arxiv.org/abs/1802.04977
    """
    _checks.positive("power", power)
    student, teacher = _maps_of_one_size(student, teacher)
    return _math.per_example_mean(jnp.abs(_attention(student, power) - _attention(teacher, power)))


def neuron_selectivity(
    student: Float[Array, "batch student_height student_width student_channels"],
    teacher: Float[Array, "batch teacher_height teacher_width teacher_channels"],
) -> Float[Array, " batch"]:
    r"""Distance of the two networks' *sets* of channel maps: the squared maximum mean discrepancy.

    $$\frac{1}{C_t^2} \sum_{i,j} k(t_i, t_j) + \frac{1}{C_s^2} \sum_{i,j} k(s_i, s_j)
    - \frac{2}{C_s C_t} \sum_{i,j} k(s_i, t_j), \qquad k(x, y) = (x \cdot y)^2$$

    The sums are over all pairs of channels; s_i and t_i are channel i's maps over positions, scaled to length 1.

    Args:
      student: activations; channels may differ from the teacher's, and so may height and width: the larger activations
        are then averaged down to the smaller, by windows that overlap where sizes do not divide.
      teacher: activations of the same examples.

    Returns:
      One number between 0 and 2 per example.

    Raises:
      ValueError: an argument is not [batch, height, width, channels], or the batches differ.

    Example:
      Neither the order, nor the size, nor the sign of channels counts:

      >>> import jax
      >>> from kdjax.losses import neuron_selectivity
      >>> teacher = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
      >>> bool((abs(neuron_selectivity(-5.0 * teacher[..., ::-1], teacher)) < 1e-6).all())
      True

    Note:
      Some code leaves mean k(t, t') out, which has no gradient for the student; with it the value is 0 at equality. An
      all-zero channel stays zero, and so does its gradient. No array larger than
      the inputs and [batch, channels, channels] is made.

    Reference:
      Huang and Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017, section 4, the
      polynomial kernel. https://arxiv.org/abs/1707.01219
    """
    student, teacher = _maps_of_one_size(student, teacher)
    student, teacher = _math.unit(student, (1, 2)), _math.unit(teacher, (1, 2))
    return _likeness(teacher, teacher) + _likeness(student, student) - 2.0 * _likeness(student, teacher)


def _maps_of_one_size(
    student: Array, teacher: Array
) -> tuple[Float[Array, "batch height width student_channels"], Float[Array, "batch height width teacher_channels"]]:
    _checks.rank("student", student, 4, "[batch, height, width, channels]")
    _checks.rank("teacher", teacher, 4, "[batch, height, width, channels]")
    _checks.same_batch("student", student, "teacher", teacher)
    return _math.averaged_to_one_size(*_math.widened(student, teacher))


def _attention(
    activations: Float[Array, "batch height width channels"], power: Number
) -> Float[Array, "batch height width"]:
    # The map is normalised, so the activations' size does not count; left in, high powers would leave float32's range.
    size = jnp.abs(_math.over_largest(activations, (1, 2, 3)))
    return _math.unit(jnp.mean(_math.safe_power(size, power), axis=-1), (1, 2))


def _likeness(
    first: Float[Array, "batch height width channels"], second: Float[Array, "batch height width other_channels"]
) -> Float[Array, " batch"]:
    """Mean over all pairs of channels of (x·y)²."""
    products = jnp.einsum("bhwi,bhwj->bij", first, second, precision=Precision.HIGHEST)
    return _math.per_example_mean(products * products)
