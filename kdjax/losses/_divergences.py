"""Divergences of two predictions beside the Kullback–Leibler ones of _logits.py."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from kdjax import _checks
from kdjax._types import Number
from kdjax.losses import _distributions, _math, _mixtures, _order


def total_variation(
    student: Float[Array, "*batch classes"], teacher: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    r"""Total variation: the probability that the two predictions do not share.

    $$\frac{1}{2} \sum_c \left|p^s_c - p^t_c\right|, \qquad p = \operatorname{softmax}(z)$$

    Args:
      student: logits, before any softmax.
      teacher: logits of the same examples and classes.

    Returns:
      One number between 0 and 1 for each example or position.

    Raises:
      ValueError: the shapes differ or are not [..., classes], or there are fewer than two classes.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import total_variation
      >>> student, teacher = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.9, 0.1]]))
      >>> [round(float(value), 4) for value in total_variation(student, teacher)]
      [0.4]

    Note:
      Bounded, and symmetric in the two. The gradient of the absolute value at 0 is 0.

    Reference:
      Wen et al., f-Divergence Minimization for Sequence-Level Knowledge Distillation, 2023, section 3.
      https://arxiv.org/abs/2307.15190
    """
    student, teacher = _distributions.logit_pair(student, teacher)
    _distributions.several_classes(student)
    return 0.5 * jnp.sum(jnp.abs(jax.nn.softmax(student, axis=-1) - jax.nn.softmax(teacher, axis=-1)), axis=-1)


def skewed_kl(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    alpha: Number = 0.1,
    temperature: Number = 1.0,
) -> Float[Array, "*batch"]:
    r"""Divergence of the teacher's prediction from the student's into which some of it is mixed.

    $$T^2 \operatorname{KL}(p^t \,\Vert\, \alpha \, p^t + (1 - \alpha) \, p^s), \qquad p = \operatorname{softmax}(z / T)$$

    Args:
      student: logits, before any softmax.
      teacher: logits of the same examples and classes.
      alpha: α between 0 and 1; at 0 it is `soft_target_kl`, at 1 nothing is left of it. May be traced.
      temperature: T > 0, one number or one for each example, [...]; larger is softer. May be traced.

    Returns:
      One number ≥ 0 for each example or position, in nats times T²; above α = 0 it is at most −log α · T².

    Raises:
      ValueError: the shapes differ or are not [..., classes], α is not between 0 and 1, or T is not a finite number above 0.

    Example:
      A student that excludes what the teacher says still has a bounded loss:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import skewed_kl
      >>> student, teacher = jnp.array([[100.0, -100.0]]), jnp.array([[-100.0, 100.0]])
      >>> bool(jnp.allclose(skewed_kl(student, teacher, alpha=0.1), -jnp.log(0.1)))
      True

    Note:
      The mixture is taken in logarithms: where α is small it is the student's probability almost alone, which float32 keeps.

    Reference:
      Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models, 2024, section 3.1.
      https://arxiv.org/abs/2402.03898
    """
    _checks.between("alpha", alpha, 0.0, 1.0)
    student, teacher, square = _distributions.softened(student, teacher, temperature)
    log_student, log_teacher = jax.nn.log_softmax(student, axis=-1), jax.nn.log_softmax(teacher, axis=-1)
    return square * jnp.sum(_mixtures.of_first(log_teacher, log_student, jnp.asarray(alpha, student.dtype)), axis=-1)


def reverse_skewed_kl(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    alpha: Number = 0.1,
    temperature: Number = 1.0,
) -> Float[Array, "*batch"]:
    r"""Divergence of the student's prediction from the teacher's into which some of it is mixed.

    $$T^2 \operatorname{KL}(p^s \,\Vert\, \alpha \, p^s + (1 - \alpha) \, p^t), \qquad p = \operatorname{softmax}(z / T)$$

    Args:
      student: logits, before any softmax.
      teacher: logits of the same examples and classes.
      alpha: α between 0 and 1; at 0 it is `reverse_kl`, at 1 nothing is left of it. May be traced.
      temperature: T > 0, one number or one for each example, [...]; larger is softer. May be traced.

    Returns:
      One number ≥ 0 for each example or position, in nats times T²; above α = 0 it is at most −log α · T².

    Raises:
      ValueError: the shapes differ or are not [..., classes], α is not between 0 and 1, or T is not a finite number above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import reverse_kl, reverse_skewed_kl
      >>> student, teacher = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
      >>> bool(jnp.allclose(reverse_skewed_kl(student, teacher, alpha=0.0), reverse_kl(student, teacher)))
      True

    Note:
      Where the teacher excludes what the student says, `reverse_kl` has no bound and this has.

    Reference:
      Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models, 2024, section 3.1.
      https://arxiv.org/abs/2402.03898
    """
    _checks.between("alpha", alpha, 0.0, 1.0)
    student, teacher, square = _distributions.softened(student, teacher, temperature)
    log_student, log_teacher = jax.nn.log_softmax(student, axis=-1), jax.nn.log_softmax(teacher, axis=-1)
    return square * jnp.sum(_mixtures.of_first(log_student, log_teacher, jnp.asarray(alpha, student.dtype)), axis=-1)


def sorted_probabilities(
    student: Float[Array, "*batch student_classes"], teacher: Float[Array, "*batch teacher_classes"]
) -> Float[Array, "*batch"]:
    r"""Absolute difference of the two predictions, each in its own order of size: for unlike vocabularies.

    $$\sum_k \left|p^s_{(k)} - p^t_{(k)}\right|, \qquad p = \operatorname{softmax}(z), \quad
    p_{(1)} \geq p_{(2)} \geq \dots$$

    The shorter is followed by zeros.

    Args:
      student: logits, before any softmax.
      teacher: logits of the same examples or positions; its classes may be others, and of another number.

    Returns:
      One number between 0 and 2 for each example or position.

    Raises:
      ValueError: the axes before the last differ, or there are fewer than two classes.

    Example:
      Which class it is does not count, only how sure the networks are:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import sorted_probabilities
      >>> student, teacher = jnp.array([[0.0, 2.0, 1.0]]), jnp.array([[2.0, 1.0, 0.0, -100.0]])
      >>> sorted_probabilities(student, teacher).round(5).tolist()
      [0.0]

    Note:
      It is the cost of moving one prediction into the other where all classes are equally far apart and none is known to be
      another's partner. Two that differ in which class they name are equal to it: it wants a term with labels beside it.
      Equal probabilities have the same gradient, the mean of their places'.

    Reference:
      Boizard et al., Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs, 2024, section 3.
      https://arxiv.org/abs/2402.12030
    """
    _checks.rank_at_least("student", student, 1, "[..., classes]")
    _checks.rank_at_least("teacher", teacher, 1, "[..., classes]")
    _checks.same_leading_axes("student", student, "teacher", teacher)
    student, teacher = _math.widened(student, teacher)
    if min(student.shape[-1], teacher.shape[-1]) < 2:
        raise ValueError(
            f"student and teacher must have the logits of two classes or more; got shapes {student.shape} and "
            f"{teacher.shape}."
        )
    return _distance_in_order(jax.nn.softmax(student, axis=-1), jax.nn.softmax(teacher, axis=-1))


@jax.custom_jvp
def _distance_in_order(first: Float[Array, "*batch classes"], second: Float[Array, "*batch other_classes"]) -> Array:
    """Σ |p₍ᵢ₎ − q₍ᵢ₎| of numbers ≥ 0, each row sorted, the shorter one after zeros."""
    return jnp.sum(jnp.abs(_difference_in_order(first, second)[0]), axis=-1)


@partial(_distance_in_order.defjvp, symbolic_zeros=True)
def _slope_in_order(given: tuple[Array, Array], moved: tuple[Any, Any]) -> tuple[Array, Array]:
    difference, in_order = _difference_in_order(*given)
    signs = jnp.sign(difference)
    slope = jnp.zeros(signs.shape[:-1], signs.dtype)
    for shares, own, sign, tangent in zip(given, in_order, (signs, -signs), moved, strict=True):
        if not isinstance(tangent, SymbolicZero):
            its_sign = sign[..., sign.shape[-1] - shares.shape[-1] :]
            slope = slope + jnp.sum(_order.at_own_places(shares, own, its_sign) * tangent, axis=-1)
    return _distance_in_order(*given), slope


def _difference_in_order(first: Array, second: Array) -> tuple[Array, list[Array]]:
    in_order = [_order.ascending(shares) for shares in (first, second)]
    longest = max(first.shape[-1], second.shape[-1])
    one, other = (jnp.pad(p, [(0, 0)] * (p.ndim - 1) + [(longest - p.shape[-1], 0)]) for p in in_order)
    return one - other, in_order
