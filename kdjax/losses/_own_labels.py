"""Soft labels that a network makes for itself, from its own predictions and what one of its middle layers sees."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from kdjax import _checks
from kdjax.losses import _distributions, _math, _order


def uskd_target(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    *,
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "*batch"]:
    r"""Cross-entropy of the labelled class that counts more for the examples of which the network is surer than of others.

    $$-\left(1 + (p^t_y)^2 - \frac{1}{B} \sum_j (p^t_{j, y_j})^2\right) \log p^s_y, \qquad p = \operatorname{softmax}(z)$$

    Args:
      student: logits, before any softmax.
      teacher: the logits that weigh: the student's own, through which no gradient passes (the place
        ``"detached.logits"`` of `kdjax.on_outputs`), or another network's.
      labels: the number y of each example's class; where one that counts is outside 0 … classes − 1, all are NaN.
      where: which entries count, bools [...] or of its first axes alone; the others are as if they were not there, and
        get 0. None: all do.

    Returns:
      One number ≥ 0 for each example or position, in nats. It is a cross-entropy: not 0 where the networks agree.

    Raises:
      ValueError: the logits' shapes differ or are not [..., classes], or the labels are not whole numbers [...].

    Example:
      An example alone is an ordinary cross-entropy:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import uskd_target
      >>> logits = jnp.zeros((1, 4))
      >>> bool(jnp.allclose(uskd_target(logits, logits, jnp.array([0])), jnp.log(4.0)))
      True

    Note:
      The paper's code has examples of two mixed labels too, whose weights begin with the label's share in the place of 1.
      The paper adds it to the cross-entropy with the labels; that is a term of its own.

    Reference:
      Yang et al., From Knowledge Distillation to Self-Knowledge Distillation, 2023, section 3.3. https://arxiv.org/abs/2303.13005
    """
    student, teacher, is_target = _pair(student, teacher, labels, where)
    where = _math.spread(where, student.shape[:-1])
    # Not by a mask and a sum alone, in which the NaN of a label that is no class would be lost.
    of_label, taught = (
        jnp.where(jnp.any(is_target, axis=-1), jnp.sum(jnp.where(is_target, log_shares, 0.0), axis=-1), jnp.nan)
        for log_shares in (jax.nn.log_softmax(logits, axis=-1) for logits in (student, teacher))
    )
    squares = _math.kept(jnp.exp(2.0 * taught), where)
    mean = jnp.sum(squares) / _math.count(squares.reshape(-1), None if where is None else where.reshape(-1))
    return _math.kept(-(1.0 + squares - mean) * of_label, where)


def uskd_non_target(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    weak: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
) -> Float[Array, "*batch"]:
    r"""Cross-entropy of the other classes with Zipf's law, in the order that the network and a middle layer give them.

    $$-\sum_{c \neq y} \frac{1 / r_c}{\sum_{k=1}^{C-1} 1 / k} \log \hat p^s_c, \qquad
    \hat p_c = \frac{\exp z_c}{\sum_{k \neq y} \exp z_k}$$

    Class c has the rank r = 1, 2, … of p̂ᵗ + p̂ʷ, from the largest; equal ones share their ranks' weights.

    Args:
      student: logits, before any softmax.
      teacher: the logits that order the classes: the student's own (the place ``"detached.logits"`` of
        `kdjax.on_outputs`), or another network's. Ranks have no gradient.
      weak: logits from a middle layer of the student, such as `kdjax.connectors.auxiliary` gives.
      labels: the number y of each example's class; outside 0 … classes − 1 the example's loss is NaN.

    Returns:
      One number ≥ 0 for each example or position, in nats; 0 where there are two classes. It is a cross-entropy: not 0
      where the networks agree.

    Raises:
      ValueError: the logits' shapes differ or are not [..., classes], or the labels are not whole numbers [...].

    Example:
      What the labelled class gets does not count:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import uskd_non_target
      >>> weak, labels = jnp.zeros((1, 3)), jnp.array([0])
      >>> sure, unsure = jnp.array([[9.0, 1.0, 2.0]]), jnp.array([[0.0, 1.0, 2.0]])
      >>> bool(jnp.allclose(*(uskd_non_target(z, z, weak, labels) for z in (sure, unsure))))
      True

    Note:
      The paper ranks W/(1 − W_y) + S/(1 − S_y), which is p̂ʷ + p̂ᵗ. Its code divides logarithms of S there, and leaves a gap
      in the ranks where the label would stand. The middle layer's classifier learns by a term of its own, from smoothed
      labels in the paper.

    Reference:
      Yang et al., From Knowledge Distillation to Self-Knowledge Distillation, 2023, section 3.3. https://arxiv.org/abs/2303.13005
    """
    student, teacher, is_target = _pair(student, teacher, labels, None)
    _checks.floating("weak", weak)
    _checks.same_shape("student", student, "weak", weak)
    weak = jnp.asarray(weak, student.dtype)
    log_student, *others = (_distributions.log_softmax_without(z, is_target) for z in (student, teacher, weak))
    score = jnp.where(is_target, -1.0, sum(map(jnp.exp, others)))
    # From the smallest: the labelled class, which is given nothing, then the other C − 1.
    classes = student.shape[-1]
    law = jnp.concatenate([jnp.zeros(1), 1.0 / jnp.arange(classes - 1, 0, -1)]).astype(student.dtype)
    law = (law / jnp.sum(law)).reshape((1,) * (score.ndim - 1) + (classes,))
    weights = _order.at_own_places(score, _order.ascending(score), law)
    return -jnp.sum(weights * jnp.where(is_target, 0.0, log_student), axis=-1)


def _pair(
    student: Array, teacher: Array, labels: Array, where: Any
) -> tuple[Float[Array, "*batch classes"], Float[Array, "*batch classes"], Bool[Array, "*batch classes"]]:
    """Both logits, 0 where they do not count, NaN where the label is no class; and which class is the labelled one."""
    student, teacher = _distributions.logit_pair(student, teacher)
    _distributions.several_classes(student)
    _checks.where(where, student.shape[:-1])
    where = _math.spread(where, student.shape[:-1])
    labels = _checks.labels("labels", labels, student.shape[:-1])
    student, teacher = (_math.kept(logits, where) for logits in (student, teacher))
    labels = labels if where is None else jnp.where(where, labels, 0)
    is_target = labels[..., None] == jax.lax.broadcasted_iota(labels.dtype, student.shape, student.ndim - 1)
    known = jnp.any(is_target, axis=-1, keepdims=True)
    return jnp.where(known, student, jnp.nan), jnp.where(known, teacher, jnp.nan), is_target
