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


def sampled_kl(
    student: Float[Array, "*batch classes"],
    sampled_values: Float[Array, "*batch draws"],
    sampled_indices: Integer[Array, "*batch draws"],
    *,
    log_weights: Float[Array, "*batch draws"] | None = None,
) -> Float[Array, "*batch"]:
    r"""Unbiased estimate of the divergence from a teacher's prediction of which n classes were drawn.

    $$\sum_{j=1}^n w_j \, (\log p^t_{c_j} - \log p^s_{c_j}), \qquad w_j = \frac{1}{n} \quad\text{or}\quad
    \frac{p^t_{c_j}}{n \, q_{c_j}}$$

    Its mean over draws is KL(pᵗ‖pˢ), and that of its gradient is the divergence's gradient. That of the k largest classes is
    not, however it is scaled: what the others share is never seen.

    Args:
      student: logits of all classes, before any softmax.
      sampled_values: the teacher's log-probabilities, log_softmax over *all* its classes, of the classes drawn.
      sampled_indices: the classes drawn, with replacement; one outside 0 … classes − 1 makes the example's loss NaN.
      log_weights: log w of each draw, where they were drawn from another distribution q than the teacher's, such as its
        softmax at a higher temperature. None: 1/n each.

    Returns:
      One number for each example or position, in nats. A single estimate may be negative; where a stored value is above
      log 1.05, and so is no log-probability, it is NaN.

    Raises:
      ValueError: `student` is not [..., classes], the stored arrays are not all [..., draws], or the indices are not whole
        numbers.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import sampled_kl
      >>> student, teacher = jnp.array([1.0, 0.0, 0.0]), jax.nn.log_softmax(jnp.array([0.0, 1.0, 2.0]))
      >>> drawn = jax.random.categorical(jax.random.key(0), teacher, shape=(20_000,))
      >>> exact = jnp.sum(jnp.exp(teacher) * (teacher - jax.nn.log_softmax(student)))
      >>> bool(jnp.abs(sampled_kl(student, teacher[drawn], drawn) - exact) < 0.02)
      True

    Note:
      `kdjax.caching.cache_teacher` draws and stores, by ``draws``. A student that has seen the same draws often enough fits
      them, and not what they were drawn from: more draws, or others in each epoch, put that off.

    Reference:
      Anshumann et al., Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs, 2025, section 4.
      https://arxiv.org/abs/2503.16870
    """
    _checks.rank_at_least("student", student, 1, "[..., classes]")
    _checks.rank("sampled_values", sampled_values, np.ndim(student), "[..., draws]")
    _checks.same_shape("sampled_values", sampled_values, "sampled_indices", sampled_indices)
    _checks.same_leading_axes("student", student, "sampled_values", sampled_values)
    if not jnp.issubdtype(jnp.result_type(sampled_indices), jnp.integer):
        raise ValueError(
            f"sampled_indices must hold whole class numbers; got dtype {jnp.result_type(sampled_indices)}."
        )
    _checks.floating("student", student)
    _checks.floating("sampled_values", sampled_values)
    student, values = _math.widened(student, sampled_values)
    _distributions.several_classes(student)
    if not values.shape[-1]:
        raise ValueError(f"sampled_values must hold one draw at least; got shape {values.shape}.")
    # Negative numbers would count from the end; one past the end is nothing.
    indices = jnp.asarray(sampled_indices, jnp.promote_types(jnp.result_type(sampled_indices), jnp.int32))
    indices = jnp.where(indices < 0, student.shape[-1], indices)
    log_student = jnp.take_along_axis(
        jax.nn.log_softmax(student, axis=-1), indices, axis=-1, mode="fill", fill_value=jnp.nan
    )
    gaps = jnp.where(values > float(np.log(1.05)), jnp.nan, values - log_student)
    if log_weights is None:
        return jnp.mean(gaps, axis=-1)
    _checks.same_shape("log_weights", log_weights, "sampled_values", sampled_values)
    _checks.floating("log_weights", log_weights)
    weights = jnp.exp(jnp.asarray(log_weights, values.dtype))
    # What only the proposal draws counts nothing, be the teacher's log-probability −∞.
    return jnp.sum(weights * jnp.where(weights == 0, 0.0, gaps), axis=-1)


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
