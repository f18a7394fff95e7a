"""Losses that match predictions: [batch, classes] logits of both networks."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax import _checks
from kdjax._types import Number
from kdjax.losses import _math


def soft_target_kl(
    student: Float[Array, "batch classes"],
    teacher: Float[Array, "batch classes"],
    *,
    temperature: Number = 4.0,
) -> Float[Array, " batch"]:
    """Kullback–Leibler divergence of the student's softened predictions from the teacher's.

    T² Σ_c p_t (log p_t − log p_s), with p = softmax(z / T).

    The factor T² keeps the gradient's size when T changes: the gradients of softened predictions shrink as 1/T².

    Args:
      student: logits, before any softmax.
      teacher: logits of the same examples and classes. A class at −∞ has probability 0 and counts nothing.
      temperature: T > 0; larger is softer. May be traced.

    Returns:
      One number ≥ 0 per example, in nats times T².

    Raises:
      ValueError: the shapes differ or are not [batch, classes], or T is not a finite number above 0.

    Example:
      A constant added to an example's logits changes no prediction, hence no loss:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import soft_target_kl
      >>> teacher = jnp.array([[2.0, 0.0, -1.0]])
      >>> soft_target_kl(teacher + 5.0, teacher, temperature=2.0).round(5).tolist()
      [0.0]

    Note:
      The paper states the cross-entropy with soft targets; it differs by the teacher's entropy, which has no gradient.
      Code that takes the mean over batch *and* classes is C times too weak against the cross-entropy with labels.

    Reference:
      Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, section 2. https://arxiv.org/abs/1503.02531
    """
    _checks.positive("temperature", temperature)
    student, teacher = _logit_pair(student, teacher)
    log_student = jax.nn.log_softmax(student / temperature, axis=-1)
    log_teacher = jax.nn.log_softmax(teacher / temperature, axis=-1)
    share = jnp.exp(log_teacher)
    # 0 · log 0 = 0: without the mask a class that the teacher excludes (logit −∞) would give 0 · ∞.
    log_ratio = jnp.where(share == 0, 0.0, log_teacher - log_student)
    return temperature**2 * jnp.sum(share * log_ratio, axis=-1)


def logit_mse(
    student: Float[Array, "batch classes"],
    teacher: Float[Array, "batch classes"],
) -> Float[Array, " batch"]:
    """Mean squared difference of the logits.

    mean_c (z_s − z_t)².

    Args:
      student: logits, before any softmax.
      teacher: logits of the same examples and classes.

    Returns:
      One number ≥ 0 per example, in squared logits.

    Raises:
      ValueError: the shapes differ or are not [batch, classes].

    Example:
      Unlike `soft_target_kl`, it sees a constant added to all logits:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import logit_mse
      >>> teacher = jnp.array([[2.0, 0.0, -1.0]])
      >>> logit_mse(teacher + 5.0, teacher).tolist()
      [25.0]

    Note:
      The paper sums over classes and halves; the mean over classes is common now. Half of it is also the limit of
      `soft_target_kl` for T → ∞, where every example's logits have mean 0.

    Reference:
      Ba and Caruana, Do Deep Nets Really Need to be Deep?, 2014, equation 1. https://arxiv.org/abs/1312.6184
    """
    student, teacher = _logit_pair(student, teacher)
    return jnp.mean((student - teacher) ** 2, axis=-1)


def _logit_pair(student: Array, teacher: Array) -> tuple[Array, Array]:
    _checks.rank("student", student, 2, "[batch, classes]")
    _checks.rank("teacher", teacher, 2, "[batch, classes]")
    _checks.same_shape("student", student, "teacher", teacher)
    return _math.widened(student, teacher)
