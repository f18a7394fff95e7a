"""Losses on predictions in which labels say how much of the teacher counts, or are the teacher."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from kdjax import _checks
from kdjax._types import Number
from kdjax.losses import _distributions, _math

_NO_LESS = 1e-7  # a cross-entropy that float32 tells from 0 beside logits of size 1


def weighted_soft_labels(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    *,
    temperature: Number = 2.0,
) -> Float[Array, "*batch"]:
    r"""`soft_target_kl` that counts less where the student is surer of the label than the teacher.

    $$\left(1 - \exp\left(-\frac{\ell^s}{\ell^t}\right)\right) T^2 \operatorname{KL}(p^t \,\Vert\, p^s), \qquad
    p = \operatorname{softmax}(z / T), \qquad \ell = -\log \operatorname{softmax}(z)_y$$

    Args:
      student: logits, before any softmax.
      teacher: logits of the same examples and classes.
      labels: the number y of each example's class; outside 0 … classes − 1 the example's loss is NaN.
      temperature: T > 0, one number or one for each example, [...]; larger is softer. May be traced.

    Returns:
      One number ≥ 0 for each example or position, in nats times T².

    Raises:
      ValueError: the logits' shapes differ or are not [..., classes], the labels are not whole numbers [...], or T is not a
        finite number above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import soft_target_kl, weighted_soft_labels
      >>> student, teacher, labels = jnp.array([[0.0, 9.0]]), jnp.array([[9.0, 0.0]]), jnp.array([0])
      >>> whole = soft_target_kl(student, teacher, temperature=2.0)
      >>> bool(jnp.allclose(weighted_soft_labels(student, teacher, labels), whole))
      True

    Note:
      Common code holds the weight fixed; here, where no loss stops a gradient, the student also lowers it by being surer of
      the label. It takes the soft labels' cross-entropy in the place of the divergence, which with a fixed weight has the
      same gradient and is not 0 where the networks agree. A teacher's ℓ below 1e-7 counts as 1e-7.

    Reference:
      Zhou et al., Rethinking Soft Labels for Knowledge Distillation, 2021, section 4.2. https://arxiv.org/abs/2102.00650
    """
    softened, taught, square = _distributions.softened(student, teacher, temperature)
    student, teacher = _distributions.logit_pair(student, teacher)
    is_target = _is_target(labels, student)
    ratio = _of_label(student, is_target) / jnp.maximum(_of_label(teacher, is_target), _NO_LESS)
    divergence = _distributions.relative_entropy(
        jax.nn.log_softmax(taught, axis=-1), jax.nn.log_softmax(softened, axis=-1)
    )
    return _of_classes(-jnp.expm1(-ratio) * square * divergence, is_target)


def virtual_teacher(
    student: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    *,
    correct: Number = 0.99,
    temperature: Number = 20.0,
) -> Float[Array, "*batch"]:
    r"""`soft_target_kl` from a teacher that no one trained: sure of the label, and of nothing else.

    $$T^2 \operatorname{KL}(p^d_T \,\Vert\, p_T), \qquad p_T = \operatorname{softmax}(z / T), \qquad
    p^d_T = \operatorname{softmax}(\log p^d / T), \qquad p^d_c = \begin{cases} a & c = y \\ (1 - a) / (C - 1) & c \neq y
    \end{cases}$$

    Args:
      student: logits, before any softmax.
      labels: the number y of each example's class; outside 0 … classes − 1 the example's loss is NaN.
      correct: a, the virtual teacher's probability of the label, between 1e-6 and 1 − 1e-6. May be traced.
      temperature: T > 0, one number or one for each example, [...]; larger is softer. May be traced.

    Returns:
      One number ≥ 0 for each example or position, in nats times T².

    Raises:
      ValueError: the logits are not [..., classes], the labels are not whole numbers [...], a is not in its range, or T is
        not a finite number above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import virtual_teacher
      >>> student = jnp.log(jnp.array([[0.9, 0.05, 0.05]]))
      >>> bool(virtual_teacher(student, jnp.array([0]), correct=0.9)[0] < 1e-5)
      True

    Note:
      Common code puts the probabilities of pᵈ themselves in the place of logits, softmax(pᵈ / 20), which is as good as even,
      and softens the teacher alone; the paper's equation 9 softens both, and a virtual teacher's logits are log pᵈ.

    Reference:
      Yuan et al., Revisiting Knowledge Distillation via Label Smoothing Regularization, 2020, section 4.2.
      https://arxiv.org/abs/1909.11723
    """
    _checks.rank_at_least("student", student, 1, "[..., classes]")
    _checks.between("correct", correct, 1e-6, 1.0 - 1e-6)
    student, _ = _math.widened(student, student)
    is_target = _is_target(labels, student)
    correct = jnp.asarray(correct, student.dtype)
    log_others = jnp.log1p(-correct) - jnp.log(jnp.asarray(max(student.shape[-1] - 1, 1), student.dtype))
    teacher = jnp.where(is_target, jnp.log(correct), log_others)
    student, teacher, square = _distributions.softened(student, teacher, temperature)
    log_student, log_teacher = jax.nn.log_softmax(student, axis=-1), jax.nn.log_softmax(teacher, axis=-1)
    return _of_classes(square * _distributions.relative_entropy(log_teacher, log_student), is_target)


def _is_target(labels: Array, logits: Float[Array, "*batch classes"]) -> Bool[Array, "*batch classes"]:
    labels = _checks.labels("labels", labels, logits.shape[:-1])
    return labels[..., None] == jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)


def _of_classes(values: Float[Array, "*batch"], is_target: Bool[Array, "*batch classes"]) -> Float[Array, "*batch"]:
    """NaN where the label is no class."""
    return jnp.where(jnp.any(is_target, axis=-1), values, jnp.nan)


def _of_label(
    logits: Float[Array, "*batch classes"], is_target: Bool[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    """The cross-entropy with the label, to full precision where it is small."""
    target = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    return jax.nn.softplus(_distributions.log_sum_without(logits, is_target) - target)
