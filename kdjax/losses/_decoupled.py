"""Losses that match what a network says of the labelled class apart from what it says of the others.

Labels are class numbers 0 … classes − 1. Their values are not known while a function is traced, hence never an error: an
example whose label lies outside gets NaN.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from kdjax import _checks
from kdjax._types import Number
from kdjax.losses import _distributions


def target_class_kd(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    *,
    temperature: Number = 4.0,
) -> Float[Array, "*batch"]:
    r"""Divergence of how sure the two networks are of the labelled class, all others taken together.

    $$T^2 \operatorname{KL}(b^t \,\Vert\, b^s), \qquad b = [p_y,\; 1 - p_y], \qquad p = \operatorname{softmax}(z / T)$$

    Args:
      student: logits, before any softmax.
      teacher: logits of the same examples and classes.
      labels: the number y of each example's class; outside 0 … classes − 1 the example's loss is NaN.
      temperature: T > 0, one number or one for each example, [...]; larger is softer. May be traced.

    Returns:
      One number ≥ 0 for each example or position, in nats times T²; 0 where there is one class alone.

    Raises:
      ValueError: the logits' shapes differ or are not [..., classes], the labels are not whole numbers [...], or T
        is not a finite number above 0.

    Example:
      How the other classes share the rest does not count:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import target_class_kd
      >>> student, teacher = jnp.array([[2.0, 0.0, -1.0]]), jnp.array([[2.0, -1.0, 0.0]])
      >>> target_class_kd(student, teacher, jnp.array([0])).tolist()
      [0.0]

    Note:
      Common code takes logarithms of the probabilities, which are 0 for a confident network; here both come from the
      log-odds z_y − log Σ_{c≠y} exp z_c, and stay finite.

    Reference:
      Zhao et al., Decoupled Knowledge Distillation, 2022, section 3.1. https://arxiv.org/abs/2203.08679
    """
    student, teacher, is_target, square = _labelled(student, teacher, labels, temperature)
    return square * _target_divergence(student, teacher, is_target)


def non_target_class_kd(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    *,
    temperature: Number = 4.0,
) -> Float[Array, "*batch"]:
    r"""Divergence of the two networks' predictions among the classes that are not the labelled one.

    $$T^2 \sum_{c \neq y} \hat p^t_c \, (\log \hat p^t_c - \log \hat p^s_c), \qquad
    \hat p_c = \frac{\exp(z_c / T)}{\sum_{k \neq y} \exp(z_k / T)}$$

    Args:
      student: logits, before any softmax.
      teacher: logits of the same examples and classes.
      labels: the number y of each example's class; outside 0 … classes − 1 the example's loss is NaN.
      temperature: T > 0, one number or one for each example, [...]; larger is softer. May be traced.

    Returns:
      One number ≥ 0 for each example or position, in nats times T²; 0 where there are fewer than three classes.

    Raises:
      ValueError: the logits' shapes differ or are not [..., classes], the labels are not whole numbers [...], or T
        is not a finite number above 0.

    Example:
      The logit of the labelled class does not count:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import non_target_class_kd
      >>> student, teacher = jnp.array([[9.0, 1.0, -1.0]]), jnp.array([[-9.0, 1.0, -1.0]])
      >>> non_target_class_kd(student, teacher, jnp.array([0])).tolist()
      [0.0]

    Note:
      Common code takes the labelled class out by a penalty of 1000 on its logit; here it is left out exactly, whatever
      the size of the logits.

    Reference:
      Zhao et al., Decoupled Knowledge Distillation, 2022, section 3.1. https://arxiv.org/abs/2203.08679
    """
    student, teacher, is_target, square = _labelled(student, teacher, labels, temperature)
    return square * _non_target_divergence(student, teacher, is_target)


def decoupled_kd(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    *,
    alpha: Number = 1.0,
    beta: Number = 8.0,
    temperature: Number = 4.0,
) -> Float[Array, "*batch"]:
    r"""The two parts of soft-target distillation with weights of their own.

    $$\alpha \, T^2 \operatorname{KL}(b^t \,\Vert\, b^s) + \beta \, T^2 \operatorname{KL}(\hat p^t \,\Vert\, \hat p^s)$$

    The first part is `target_class_kd`, with b = [p_y, 1 − p_y]; the second is `non_target_class_kd`, with p̂ the softmax
    over the classes without y.

    `soft_target_kl` is this sum with weights 1 and 1 − p_t[y]: where the teacher is sure, what it knows of the other
    classes counts almost nothing there.

    Args:
      student: logits, before any softmax.
      teacher: logits of the same examples and classes.
      labels: the number y of each example's class; outside 0 … classes − 1 the example's loss is NaN.
      alpha: α, the weight of how sure the networks are of the labelled class. May be traced.
      beta: β, the weight of the other classes among themselves. May be traced.
      temperature: T > 0, one number or one for each example, [...]; larger is softer. May be traced.

    Returns:
      One number for each example or position, in nats times T²; ≥ 0 where both weights are.

    Raises:
      ValueError: the logits' shapes differ or are not [..., classes], the labels are not whole numbers [...], α or β
        is not a finite number, or T is not a finite number above 0.

    Example:
      With the weights 1 and 1 − p_t[y] it is the ordinary divergence:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import decoupled_kd, soft_target_kl
      >>> student, teacher = jnp.array([[0.0, 1.0, 0.0]]), jnp.array([[3.0, 0.0, 1.0]])
      >>> rest = 1.0 - jax.nn.softmax(teacher / 4.0)[0, 0]
      >>> decoupled = decoupled_kd(student, teacher, jnp.array([0]), beta=rest)
      >>> bool(jnp.allclose(decoupled, soft_target_kl(student, teacher)))
      True

    Note:
      The paper's code ramps the whole term up over the first epochs; that is a schedule of the term's weight.

    Reference:
      Zhao et al., Decoupled Knowledge Distillation, 2022, equation 7. https://arxiv.org/abs/2203.08679
    """
    _checks.finite("alpha", alpha)
    _checks.finite("beta", beta)
    student, teacher, is_target, square = _labelled(student, teacher, labels, temperature)
    of_target = _target_divergence(student, teacher, is_target)
    of_others = _non_target_divergence(student, teacher, is_target)
    return square * (alpha * of_target + beta * of_others)


def normalized_kd(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    *,
    gamma: Number = 1.5,
    temperature: Number = 1.0,
) -> Float[Array, "*batch"]:
    r"""Cross-entropy of the labelled class with a soft label, and of the other classes normalised among themselves.

    $$-p^t_y \log p^s_y - \gamma \, T^2 \sum_{c \neq y} \hat p^t_c \log \hat p^s_c, \qquad
    p = \operatorname{softmax}(z), \qquad
    \hat p_c = \frac{\exp(z_c / T)}{\sum_{k \neq y} \exp(z_k / T)}$$

    Args:
      student: logits, before any softmax.
      teacher: logits of the same examples and classes.
      labels: the number y of each example's class; outside 0 … classes − 1 the example's loss is NaN.
      gamma: γ, the weight of the other classes. May be traced.
      temperature: T > 0, of the other classes alone, one number or one for each example; larger is softer. May be
        traced.

    Returns:
      One number for each example or position, in nats; ≥ 0 where γ is. It is a cross-entropy: not 0 where the networks
      agree.

    Raises:
      ValueError: the logits' shapes differ or are not [..., classes], the labels are not whole numbers [...], γ is
        not a finite number, or T is not a finite number above 0.

    Example:
      With two classes nothing is left to compare but the labelled one:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import normalized_kd
      >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.array([[100.0, 0.0]])
      >>> bool(jnp.allclose(normalized_kd(student, teacher, jnp.array([0])), jnp.log(2.0)))
      True

    Note:
      The paper adds it to the cross-entropy with the labels; that is a term of its own. The factor T² keeps
      the gradient's size as T moves, as in `soft_target_kl`.

    Reference:
      Yang et al., From Knowledge Distillation to Self-Knowledge Distillation, 2023, section 3. https://arxiv.org/abs/2303.13005
    """
    _checks.finite("gamma", gamma)
    softened_student, softened_teacher, is_target, square = _labelled(student, teacher, labels, temperature)
    student, teacher = _distributions.logit_pair(student, teacher)
    of_student, of_teacher = (
        jnp.sum(jnp.where(is_target, jax.nn.log_softmax(logits, axis=-1), 0.0), axis=-1)
        for logits in (student, teacher)
    )
    of_target = -_distributions.weighted_log(of_teacher, of_student)
    of_others = _distributions.cross_entropy(
        _distributions.log_softmax_without(softened_teacher, is_target),
        _distributions.log_softmax_without(softened_student, is_target),
    )
    return of_target + gamma * square * of_others


def _labelled(
    student: Array, teacher: Array, labels: Array, temperature: Number
) -> tuple[Float[Array, "*batch classes"], Float[Array, "*batch classes"], Bool[Array, "*batch classes"], Number]:
    """Both logits over T, which class is the labelled one, and T²."""
    student, teacher, square = _distributions.softened(student, teacher, temperature)
    labels = _checks.labels("labels", labels, student.shape[:-1])
    is_target = labels[..., None] == jax.lax.broadcasted_iota(labels.dtype, student.shape, student.ndim - 1)
    # A label that is no class would silently compare all classes; NaN is seen.
    return jnp.where(jnp.any(is_target, axis=-1, keepdims=True), student, jnp.nan), teacher, is_target, square


def _target_divergence(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    is_target: Bool[Array, "*batch classes"],
) -> Float[Array, "*batch"]:
    of_student, of_teacher = _target_and_rest(student, is_target), _target_and_rest(teacher, is_target)
    return _distributions.relative_entropy(of_teacher, of_student)


def _non_target_divergence(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    is_target: Bool[Array, "*batch classes"],
) -> Float[Array, "*batch"]:
    log_student = _distributions.log_softmax_without(student, is_target)
    log_teacher = _distributions.log_softmax_without(teacher, is_target)
    # Of −∞ less −∞ there would be a NaN, which a debugger sees though nothing comes of it.
    return _distributions.relative_entropy(log_teacher, jnp.where(is_target, 0.0, log_student))


def _target_and_rest(
    logits: Float[Array, "*batch classes"], is_target: Bool[Array, "*batch classes"]
) -> Float[Array, "*batch 2"]:
    """[log p_y, log(1 − p_y)], both to full precision from the log-odds."""
    target = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    log_odds = target - _distributions.log_sum_without(logits, is_target)
    return jax.nn.log_sigmoid(jnp.stack([log_odds, -log_odds], axis=-1))
