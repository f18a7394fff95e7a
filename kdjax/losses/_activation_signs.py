"""Losses that match where activations *before* a ReLU are positive: what the ReLU cuts off counts little or nothing."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from kdjax import _checks
from kdjax._types import AnyArray, Number
from kdjax.losses import _math


def activation_boundary(
    student: Float[Array, " batch *dims"],
    teacher: Float[Array, " batch *dims"],
    *,
    margin: Number = 1.0,
) -> Float[Array, " batch"]:
    r"""Squared hinge that asks each activation to have the sign of the teacher's, and by a margin.

    $$\sum_n \begin{cases} \max(0,\; m + s_n)^2 & t_n \leq 0 \\ \max(0,\; m - s_n)^2 & t_n > 0 \end{cases}$$

    The sum is over all elements of an example's features.

    Args:
      student: activations before the ReLU, of any shape [batch, …], after the connector.
      teacher: activations before the ReLU, of the same shape. Only their signs are read: their gradient is 0.
      margin: m > 0, how far on its side of 0 an activation must lie. May be traced.

    Returns:
      One number ≥ 0 per example: a sum, which grows with the number of elements.

    Raises:
      ValueError: the shapes differ or have only one axis, or m is not a finite number above 0.

    Example:
      Where the sign is right by the margin, neither value nor gradient is left:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import activation_boundary
      >>> teacher = jnp.array([[0.1, -0.1], [0.1, -0.1]])
      >>> activation_boundary(jnp.array([[2.0, -1.0], [0.5, 0.0]]), teacher).tolist()
      [0.0, 1.25]

    Note:
      The gradient runs through 0 at the hinge s = ±m without a jump. The value jumps where t changes its sign. The paper
      and its code use the loss alone, in a stage before training, with weights by layer; those are the caller's.

    Reference:
      Heo et al., Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons, 2019, the
      alternative loss. https://arxiv.org/abs/1811.03233
    """
    _checks.positive("margin", margin)
    _checks.rank_at_least("student", student, 2, "[batch, ...]")
    _checks.same_shape("student", student, "teacher", teacher)
    student, teacher = _math.widened(student, teacher)
    side = jnp.where(teacher == 0, -1.0, jnp.sign(teacher))  # not `teacher > 0`, which would hide NaN
    return _per_example_sum(jnp.maximum(margin - side * student, 0.0) ** 2)


def overhaul(
    student: Float[Array, " batch *dims"],
    teacher: Float[Array, " batch *dims"],
    *,
    margin: Float[AnyArray, " channels"],
) -> Float[Array, " batch"]:
    r"""Squared difference to the teacher's activations, save where both lie on the negative side and the student farther.

    $$\sum_n \begin{cases} 0 & s_n \leq t'_n \leq 0 \\ (s_n - t'_n)^2 & \text{otherwise} \end{cases}
    \qquad t'_n = \max(t_n, m_c)$$

    The sum is over all elements; m_c is the margin of the channel that element n lies in.

    Args:
      student: activations before the ReLU, [batch, …, channels], after the connector.
      teacher: activations before the ReLU, of the same shape.
      margin: m ≤ 0, one number per channel, from `negative_margin`. May be traced.

    Returns:
      One number ≥ 0 per example: a sum, which grows with the number of elements.

    Raises:
      ValueError: the shapes differ or have only one axis, `margin` is not one number per channel, or a margin is above 0
        or not finite.

    Example:
      The student may be as negative as it likes where the teacher is negative:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import overhaul
      >>> teacher = jnp.array([[3.0, -5.0], [3.0, -5.0]])
      >>> overhaul(jnp.array([[3.0, -9.0], [1.0, 0.0]]), teacher, margin=jnp.array([-1.0, -1.0])).tolist()
      [0.0, 5.0]

    Note:
      The gradient runs through 0 at s = t' without a jump. The value jumps where t' passes 0 and s lies below. At t = m
      the gradient is shared between the two. The paper and its code weight the layers by 2^(l − L) / 1000 or so; that is
      the caller's.

    Reference:
      Heo et al., A Comprehensive Overhaul of Feature Distillation, 2019, section 3. https://arxiv.org/abs/1904.01866
    """
    _checks.rank_at_least("student", student, 2, "[batch, ..., channels]")
    _checks.same_shape("student", student, "teacher", teacher)
    _checks.per_channel("margin", margin, "student", student)
    if not isinstance(margin, jax.core.Tracer) and not (np.isfinite(margin) & (np.asarray(margin) <= 0)).all():
        raise _checks.OutOfRangeError(
            "margin", f"must hold finite numbers of 0 or less; got {np.asarray(margin).tolist()}."
        )
    student, teacher = _math.widened(student, teacher)
    lowest = jnp.asarray(margin, student.dtype).reshape((1,) * (student.ndim - 1) + np.shape(margin))
    target = jnp.maximum(teacher, lowest)
    free = (student <= target) & (target <= 0)
    return _per_example_sum(jnp.where(free, 0.0, (student - target) ** 2))


def negative_margin(
    scale: Float[AnyArray, "*channels"], bias: Float[AnyArray, "*channels"]
) -> Float[Array, "*channels"]:
    r"""The mean of what a ReLU cuts off, for each channel of a normalisation layer: the margin of `overhaul`.

    $$E[x \mid x < 0] = b - \left|\gamma\right| \, \frac{\varphi(b / \left|\gamma\right|)}{\Phi(-b / \left|\gamma\right|)},
    \qquad x \sim \mathcal{N}(b, \gamma^2)$$

    Where the mass Φ(−b/|γ|) of x < 0 is no more than 1e-3, it is −3 |γ|.

    Args:
      scale: γ, the standard deviation of each channel's activations; its sign does not count.
      bias: b, their mean; of the same shape.

    Returns:
      One number ≤ 0 per channel.

    Raises:
      ValueError: the shapes differ.

    Example:
      Half of N(0, 1) is cut off; of N(9, 1) practically nothing:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import negative_margin
      >>> [f"{margin:.3f}" for margin in negative_margin(jnp.array([1.0, 1.0]), jnp.array([0.0, 9.0]))]
      ['-0.798', '-3.000']

    Note:
      A channel of scale 0 is a constant: its margin is min(b, 0), the limit, and the scale's gradient there is 0. Common
      code divides by the scale and gives NaN. At the mass 1e-3 the value jumps, as in the paper's code.

    Reference:
      Heo et al., A Comprehensive Overhaul of Feature Distillation, 2019, section 3.1, equation 4, and appendix.
      https://arxiv.org/abs/1904.01866
    """
    _checks.same_shape("scale", scale, "bias", bias)
    _checks.floating("scale", scale)
    _checks.floating("bias", bias)
    deviation, mean = _math.widened(jnp.abs(scale), bias)
    # So many deviations from 0 that the density there is 0 in any precision: no division by what may be 0.
    far = jnp.abs(mean) >= 40.0 * deviation
    distance = jnp.where(far, 0.0, mean) / jnp.where(far, 1.0, deviation)
    mass = norm.cdf(-distance)
    rare = mass <= 1e-3
    expected = mean - deviation * norm.pdf(distance) / jnp.where(rare, 1.0, mass)
    near = jnp.where(rare, -3.0 * deviation, expected)
    return jnp.where(far, jnp.where(mean < 0, mean, -3.0 * deviation), near)


def _per_example_sum(values: Float[Array, " batch *rest"]) -> Float[Array, " batch"]:
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))
