"""Losses on maps whose channels mean something by themselves, [batch, height, width, channels]: classes, or detectors."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.lax import Precision
from jaxtyping import Array, Float

from kdjax import _checks
from kdjax._types import Number
from kdjax.losses import _distributions, _math


def channel_wise(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch height width channels"],
    *,
    temperature: Number = 4.0,
) -> Float[Array, " batch"]:
    r"""Divergence of where each channel's map is active, each map taken as a distribution over positions.

    $$\frac{T^2}{C} \sum_c \operatorname{KL}(\varphi(A^t_c) \,\Vert\, \varphi(A^s_c)), \qquad
    \varphi(a) = \operatorname{softmax}_x(a_x / T)$$

    Args:
      student: activations or maps of logits, before any softmax.
      teacher: the same of the same examples, of the same shape.
      temperature: T > 0, one number or one for each example, [batch]; larger looks at more positions. May be traced.

    Returns:
      One number ≥ 0 for each example, in nats times T².

    Raises:
      ValueError: the shapes differ or are not [batch, height, width, channels], there is one position alone, or T is not a
        finite number above 0.

    Example:
      How strong a channel is everywhere does not count:

      >>> import jax
      >>> from kdjax.losses import channel_wise
      >>> teacher = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
      >>> bool((abs(channel_wise(teacher + 5.0, teacher)) < 1e-5).all())
      True

    Note:
      Unlike channels want a 1 × 1 convolution before, a `regressor`, as in the paper.

    Reference:
      Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, 2021, section 3.2. https://arxiv.org/abs/2011.13256
    """
    student, teacher = _of_same_channels(student, teacher)
    _checks.same_shape("student", student, "teacher", teacher)
    if student.shape[1] * student.shape[2] < 2:
        raise ValueError(f"student must have two positions or more; got shape {student.shape}.")
    _checks.temperature("temperature", temperature, student.shape[:1])
    temperature, divisor = _distributions.beside(temperature, student[:, 0, 0])
    divisor = divisor[..., None] if np.ndim(divisor) else divisor
    student, teacher = (maps.reshape(len(maps), -1, maps.shape[3]) / divisor for maps in (student, teacher))
    return temperature**2 * jnp.mean(_divergence(teacher, student), axis=1)


def inter_channel_correlation(
    student: Float[Array, "batch student_height student_width channels"],
    teacher: Float[Array, "batch teacher_height teacher_width channels"],
) -> Float[Array, " batch"]:
    r"""Squared difference of how alike each network's channels are among themselves.

    $$\frac{1}{C} \sum_{i,j} \left(g^s_{ij} - g^t_{ij}\right)^2, \qquad g_i = \frac{G_i}{\lVert G_i \rVert}, \qquad
    G_{ij} = \sum_x A_{xi} A_{xj}$$

    Args:
      student: activations.
      teacher: activations of the same examples and channels; height and width may differ.

    Returns:
      One number between 0 and 4 for each example.

    Raises:
      ValueError: an argument is not [batch, height, width, channels], or batches or channels differ.

    Example:
      Where a channel is active does not count:

      >>> import jax
      >>> from kdjax.losses import inter_channel_correlation
      >>> teacher = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
      >>> bool((inter_channel_correlation(2.0 * teacher[:, ::-1], teacher) < 1e-6).all())
      True

    Note:
      The paper's equation squares the products themselves, over C²; its code scales each row to length 1 and divides by C,
      as here. An all-zero channel stays zero, and so does its gradient. The paper cuts large maps into patches: give
      each as an example.

    Reference:
      Liu et al., Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation, 2021, section 3.2.
      https://arxiv.org/abs/2202.03680
    """
    student, teacher = _of_same_channels(student, teacher)
    difference = _correlations(student) - _correlations(teacher)
    return jnp.sum(difference**2, axis=(1, 2)) / student.shape[3]


def class_attention(
    student: Float[Array, "batch student_height student_width classes"],
    teacher: Float[Array, "batch teacher_height teacher_width classes"],
    *,
    resolution: int = 2,
) -> Float[Array, " batch"]:
    r"""Mean squared difference of the two networks' normalised class activation maps.

    $$\frac{1}{R^2 C} \sum_{x,c} \left(\frac{a^s_{xc}}{\lVert a^s_c \rVert} - \frac{a^t_{xc}}{\lVert a^t_c \rVert}\right)^2,
    \qquad a = \operatorname{pool}_{R \times R}(A)$$

    Args:
      student: class activation maps: the last activations [batch, height, width, dim] times the classifier's weights
        [dim, classes], before they are averaged to logits.
      teacher: those of the same examples and classes; height and width may differ.
      resolution: R, the side to which maps are averaged.

    Returns:
      One number between 0 and 4 / R² for each example.

    Raises:
      ValueError: an argument is not [batch, height, width, classes], batches or classes differ, or R is not a whole number
        of 1 or more that both maps have.

    Example:
      >>> import jax
      >>> from kdjax.losses import class_attention
      >>> maps = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
      >>> class_attention(7.0 * maps, maps).round(5).tolist()
      [0.0, 0.0]

    Note:
      An all-zero map stays zero, and so does its gradient.

    Reference:
      Guo et al., Class Attention Transfer Based Knowledge Distillation, 2023, section 3.3. https://arxiv.org/abs/2304.12777
    """
    _checks.whole("resolution", resolution, 1)
    student, teacher = _of_same_channels(student, teacher)
    smallest = min(*student.shape[1:3], *teacher.shape[1:3])
    if resolution > smallest:
        raise ValueError(f"resolution must be at most {smallest}, the smallest side of the maps; got {resolution}.")
    student, teacher = (
        _math.unit(_math.adaptive_average_pool(maps, resolution, resolution), (1, 2)) for maps in (student, teacher)
    )
    return _math.per_example_mean(_math.squared_difference(student, teacher))


def _of_same_channels(student: Array, teacher: Array) -> tuple[Array, Array]:
    _checks.rank("student", student, 4, "[batch, height, width, channels]")
    _checks.rank("teacher", teacher, 4, "[batch, height, width, channels]")
    _checks.same_batch("student", student, "teacher", teacher)
    student, teacher = _math.widened(student, teacher)
    for name, maps in (("student", student), ("teacher", teacher)):
        if 0 in maps.shape[1:]:
            raise ValueError(f"{name} must have positions and channels; got shape {maps.shape}.")
    if student.shape[3] != teacher.shape[3]:
        raise ValueError(
            f"student and teacher must have the same channels, their last axis; got {student.shape} for student and "
            f"{teacher.shape} for teacher."
        )
    return student, teacher


def _correlations(maps: Float[Array, "batch height width channels"]) -> Float[Array, "batch channels channels"]:
    maps = _math.over_largest(maps, (1, 2, 3))
    return _math.unit(jnp.einsum("bhwi,bhwj->bij", maps, maps, precision=Precision.HIGHEST), (2,))


@jax.custom_jvp
def _divergence(
    first: Float[Array, "batch positions channels"], second: Float[Array, "batch positions channels"]
) -> Float[Array, "batch channels"]:
    """KL(p‖q) of the softmaxes over positions. Its slope makes both anew: kept, they are as large as the maps."""
    log_first, log_second = jax.nn.log_softmax(first, axis=1), jax.nn.log_softmax(second, axis=1)
    return jnp.sum(jnp.exp(log_first) * _log_ratio(log_first, log_second), axis=1)


@partial(_divergence.defjvp, symbolic_zeros=True)
def _slope(given: tuple[Array, Array], moved: tuple[Any, Any]) -> tuple[Array, Array]:
    log_first, log_second = (jax.nn.log_softmax(logits, axis=1) for logits in given)
    shares, found = jnp.exp(log_first), _divergence(*given)
    slope = jnp.zeros_like(found)
    if not isinstance(moved[0], SymbolicZero):
        slope += jnp.sum(shares * (_log_ratio(log_first, log_second) - found[:, None]) * moved[0], axis=1)
    if not isinstance(moved[1], SymbolicZero):
        slope += jnp.sum((jnp.exp(log_second) - shares) * moved[1], axis=1)
    return found, slope


def _log_ratio(log_first: Array, log_second: Array) -> Array:
    """The logarithm of p/q; 0 where p is 0, which counts nothing."""
    return jnp.where(jnp.exp(log_first) == 0, 0.0, log_first - log_second)
