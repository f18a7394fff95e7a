"""Losses that match predictions of which only the largest were kept, as one keeps them for a great many classes."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from kdjax import _checks
from kdjax._types import Number
from kdjax.losses import _distributions, _math


def top_k_kl(
    student: Float[Array, "*batch classes"],
    top_values: Float[Array, "*batch k"],
    top_indices: Integer[Array, "*batch k"],
    *,
    temperature: Number = 4.0,
    tail: bool = True,
) -> Float[Array, "*batch"]:
    r"""Kullback–Leibler divergence of the student's softened predictions from a teacher's of which k classes were stored.

    $$T^2 \sum_j p^t_j \, (\log p^t_j - \log p^s_j), \qquad p = \operatorname{softmax}(\tilde z / T)$$

    The sum is over the k stored classes and, with `tail`, one bucket for the C − k others.

    What the teacher says within the bucket was not stored, hence each network's rest is spread evenly: all of its classes
    get the level z̃ = log(ρ / (C − k)), where ρ is the network's own probability of the rest at T = 1. That makes it 0
    for a student that agrees with the teacher on the stored classes, at every T; at T = 1 it is the divergence of the
    predictions with the rest taken together; and for k = C it is `soft_target_kl`.

    Args:
      student: logits of all C classes, before any softmax.
      top_values: the teacher's log-probabilities at T = 1 of the k stored classes: ``log_softmax`` over *all* its
        classes, then the k largest. Plain logits do not tell the rest's probability, 1 − Σ exp(top_values): where their
        probabilities sum to more than 1.05, which rounding does not explain, the loss is NaN. Without `tail`, or for
        k = C, they do as well. Where nothing is left for the rest, the teacher gives it 0 and the student's rest still
        counts against the student.
      top_indices: the stored classes' numbers, all different; one outside 0 … C − 1 makes the example's loss NaN.
      temperature: T > 0, one number or one for each example, [...]; larger is softer. May be traced.
      tail: whether the other classes count, as one. If not, both networks are compared among the stored classes alone.

    Returns:
      One number ≥ 0 for each example or position, in nats times T².

    Raises:
      ValueError: `student` is not [..., classes], the stored arrays are not both [..., k], k is 0 or larger than
        the number of classes, the indices are not whole numbers, or T is not a finite number above 0.

    Example:
      A student that agrees on the stored classes may share the rest as it likes:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import top_k_kl
      >>> teacher = jnp.log(jnp.array([[0.7, 0.2, 0.06, 0.04]]))
      >>> student = jnp.log(jnp.array([[0.7, 0.2, 0.01, 0.09]]))
      >>> values, indices = jax.lax.top_k(jax.nn.log_softmax(teacher), 2)
      >>> bool((abs(top_k_kl(student, values, indices)) < 1e-6).all())
      True

    Note:
      Common code either scales the stored probabilities up to 1, and so teaches that nothing else is possible, or knows
      the rest at T = 1 alone. A rest stored in float32 is known to about 1e-7.

    Reference:
      Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, section 2, of all classes.
      https://arxiv.org/abs/1503.02531
    """
    student, top_values, top_indices = _stored(student, top_values, top_indices)
    _checks.temperature("temperature", temperature, student.shape[:-1])
    temperature, divisor = _distributions.beside(temperature, student)
    rest_classes = student.shape[-1] - top_values.shape[-1]
    log_student = jax.nn.log_softmax(student, axis=-1)
    top_student = jnp.take_along_axis(log_student, top_indices, axis=-1, mode="fill", fill_value=jnp.nan)
    student_logits, teacher_logits = top_student / divisor, top_values / divisor
    if tail and rest_classes:
        is_stored = jnp.put_along_axis(
            jnp.zeros(student.shape, bool), top_indices, True, axis=-1, inplace=False, mode="drop"
        )
        student_rest = _distributions.log_sum_without(log_student, is_stored)
        teacher_rest, none_left = _log_rest(top_values)
        level = float(np.log(rest_classes))
        student_level = (student_rest - level) / temperature + level
        teacher_level = jnp.where(none_left, -jnp.inf, (teacher_rest - level) / temperature + level)
        # Numbers that are no log-probabilities have no rest; NaN is seen.
        teacher_level = jnp.where(jnp.sum(jnp.exp(top_values), axis=-1) > 1.05, jnp.nan, teacher_level)
        student_logits = jnp.concatenate([student_logits, student_level[..., None]], axis=-1)
        teacher_logits = jnp.concatenate([teacher_logits, teacher_level[..., None]], axis=-1)
    log_student, log_teacher = jax.nn.log_softmax(student_logits, axis=-1), jax.nn.log_softmax(teacher_logits, axis=-1)
    return temperature**2 * _distributions.relative_entropy(log_teacher, log_student)


def _stored(
    student: Array, top_values: Array, top_indices: Array
) -> tuple[Float[Array, "*batch classes"], Float[Array, "*batch k"], Integer[Array, "*batch k"]]:
    _checks.rank_at_least("student", student, 1, "[..., classes]")
    _checks.rank("top_values", top_values, np.ndim(student), "[..., k]")
    _checks.same_shape("top_values", top_values, "top_indices", top_indices)
    _checks.same_leading_axes("student", student, "top_values", top_values)
    _checks.floating("student", student)
    _checks.floating("top_values", top_values)
    if not jnp.issubdtype(jnp.result_type(top_indices), jnp.integer):
        raise ValueError(f"top_indices must hold whole class numbers; got dtype {jnp.result_type(top_indices)}.")
    _distributions.several_classes(student)
    classes, k = np.shape(student)[-1], np.shape(top_values)[-1]
    if not 1 <= k <= classes:
        raise ValueError(f"top_values must hold between 1 and {classes} classes, all that student has; got k = {k}.")
    student, top_values = _math.widened(student, top_values)
    # Negative numbers would count from the end; one past the end is nothing.
    indices = jnp.asarray(top_indices, jnp.promote_types(jnp.result_type(top_indices), jnp.int32))
    return student, top_values, jnp.where(indices < 0, classes, indices)


def _log_rest(log_stored: Float[Array, "*batch k"]) -> tuple[Float[Array, "*batch"], Bool[Array, "*batch"]]:
    """log(1 − Σ p), and where it has no meaning because nothing is left; there the first is 0."""
    log_stored = jnp.minimum(log_stored, 0.0)
    place = jax.lax.broadcasted_iota(jnp.int32, log_stored.shape, log_stored.ndim - 1)
    is_largest = place == jnp.argmax(log_stored, axis=-1, keepdims=True)
    # Of a sure teacher 1 − p is small: taken first, and by expm1, it keeps the digits that 1 − Σ p would lose.
    rest = jnp.sum(jnp.where(is_largest, -jnp.expm1(log_stored), -jnp.exp(log_stored)), axis=-1)
    none_left = rest <= 0
    return jnp.log(jnp.where(none_left, 1.0, rest)), none_left
