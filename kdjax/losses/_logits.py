"""Losses that match whole predictions: [..., classes] logits of both networks, every class alike.

Any axes may lead, such as [batch], [batch, time] or [batch, height, width]; a loss returns one number for each entry.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax import _checks
from kdjax._types import Number
from kdjax.losses import _distributions, _math, _mixtures


def soft_target_kl(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    temperature: Number = 4.0,
) -> Float[Array, "*batch"]:
    r"""Kullback–Leibler divergence of the student's softened predictions from the teacher's.

    $$T^2 \sum_c p^t_c \, (\log p^t_c - \log p^s_c), \qquad p = \operatorname{softmax}(z / T)$$

    The factor T² keeps the gradient's size when T changes: the gradients of softened predictions shrink as 1/T².

    Args:
      student: logits, before any softmax.
      teacher: logits of the same examples and classes. A class at −∞ has probability 0 and counts nothing.
      temperature: T > 0, one number or one for each example, [...]; larger is softer. May be traced.

    Returns:
      One number ≥ 0 for each example or position, in nats times T².

    Raises:
      ValueError: the shapes differ or are not [..., classes], or T is not a finite number above 0.

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
    log_student, log_teacher, square = _softened(student, teacher, temperature)
    return square * _distributions.relative_entropy(log_teacher, log_student)


def reverse_kl(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    temperature: Number = 1.0,
) -> Float[Array, "*batch"]:
    r"""Kullback–Leibler divergence of the teacher's softened predictions from the student's.

    $$T^2 \sum_c p^s_c \, (\log p^s_c - \log p^t_c), \qquad p = \operatorname{softmax}(z / T)$$

    Where `soft_target_kl` asks the student to cover every class that the teacher thinks possible, this asks it to stay
    within them: a student too small to follow the teacher everywhere keeps to the teacher's main answers.

    Args:
      student: logits, before any softmax. A class at −∞ has probability 0 and counts nothing.
      teacher: logits of the same examples and classes. Where a class is at −∞ and the student's is not, the loss is ∞.
      temperature: T > 0, one number or one for each example, [...]; larger is softer. May be traced.

    Returns:
      One number ≥ 0 for each example or position, in nats times T².

    Raises:
      ValueError: the shapes differ or are not [..., classes], or T is not a finite number above 0.

    Example:
      It is `soft_target_kl` with the networks in each other's place, but its gradient still moves the student:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import reverse_kl, soft_target_kl
      >>> student, teacher = jnp.array([[3.0, 0.0, 0.0]]), jnp.array([[1.0, 1.0, -1.0]])
      >>> bool((reverse_kl(student, teacher) == soft_target_kl(teacher, student, temperature=1.0)).all())
      True

    Note:
      The paper takes whole sequences that the student has written, and estimates the divergence from them; here it is
      exact and of one prediction. The factor T² is not the paper's: see `soft_target_kl`.

    Reference:
      Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, 2024, section 2.1. https://arxiv.org/abs/2306.08543
    """
    log_student, log_teacher, square = _softened(student, teacher, temperature)
    return square * _distributions.relative_entropy(log_student, log_teacher)


def jensen_shannon(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    beta: Number = 0.5,
    temperature: Number = 1.0,
) -> Float[Array, "*batch"]:
    r"""Divergence of both networks' softened predictions from a mixture of the two.

    $$T^2 \left(\beta \operatorname{KL}(p^t \,\Vert\, m) + (1 - \beta) \operatorname{KL}(p^s \,\Vert\, m)\right), \qquad
    m = \beta \, p^t + (1 - \beta) \, p^s, \qquad p = \operatorname{softmax}(z / T)$$

    At β = 0 and β = 1 this is 0 for all predictions. What it tends to, divided by the weight that vanishes, is
    T² KL(p_t ‖ p_s) for β → 0 and T² KL(p_s ‖ p_t) for β → 1, and exactly these stand at the two ends.

    Args:
      student: logits, before any softmax. A class at −∞ has probability 0; both networks may have such classes.
      teacher: logits of the same examples and classes.
      beta: β between 0 and 1, the teacher's part in the mixture. May be traced, the ends included.
      temperature: T > 0, one number or one for each example, [...]; larger is softer. May be traced.

    Returns:
      One number ≥ 0 for each example or position, in nats times T²; inside the ends it is at most log 2 · T².

    Raises:
      ValueError: the shapes differ or are not [..., classes], β is not between 0 and 1, or T is not a finite number
        above 0.

    Example:
      Contrary predictions cost no more than log 2, where both Kullback–Leibler divergences grow without bound:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import jensen_shannon
      >>> student, teacher = jnp.array([[100.0, -100.0]]), jnp.array([[-100.0, 100.0]])
      >>> bool(jnp.allclose(jensen_shannon(student, teacher), jnp.log(2.0)))
      True
      >>> jensen_shannon(student, teacher, beta=0.0).tolist()
      [200.0]

    Note:
      The ends are those of common code. They jump: the value at β = 0.01 is about a hundredth of that at 0, and a
      schedule of β that starts at an end should give the term a weight that makes up for it. The factor T² is not the
      paper's: see `soft_target_kl`.

    Reference:
      Agarwal et al., On-Policy Distillation of Language Models, 2024, section 2. https://arxiv.org/abs/2306.13649
    """
    _checks.between("beta", beta, 0.0, 1.0)
    log_student, log_teacher, square = _softened(student, teacher, temperature)
    beta = jnp.asarray(beta, log_student.dtype)
    return square * jnp.sum(_mixtures.of_both(log_teacher, log_student, beta), axis=-1)


def soft_target_bce(
    student: Float[Array, "*batch labels"],
    teacher: Float[Array, "*batch labels"],
    *,
    temperature: Number = 1.0,
) -> Float[Array, "*batch"]:
    r"""Kullback–Leibler divergence of softened yes-or-no predictions, label by label: several labels may hold at once.

    $$T^2 \sum_c \left(p^t_c \log \frac{p^t_c}{p^s_c} + (1 - p^t_c) \log \frac{1 - p^t_c}{1 - p^s_c}\right), \qquad
    p = \sigma(z / T)$$

    Args:
      student: logits, before any sigmoid, one for each label; a single one is a choice between two classes.
      teacher: logits of the same examples and labels.
      temperature: T > 0, one number or one for each example, [...]; larger is softer. May be traced.

    Returns:
      One number ≥ 0 for each example or position, in nats times T².

    Raises:
      ValueError: the shapes differ or are not [..., labels], or T is not a finite number above 0.

    Example:
      A single logit z is the two logits [0, z] of a softmax:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import soft_target_bce, soft_target_kl
      >>> student, teacher = jnp.array([[0.5]]), jnp.array([[-2.0]])
      >>> both = [jnp.pad(logit, ((0, 0), (1, 0))) for logit in (student, teacher)]
      >>> bool(jnp.allclose(soft_target_bce(student, teacher), soft_target_kl(*both, temperature=1.0)))
      True

    Note:
      The binary cross-entropy with soft targets differs from it by the teacher's entropy, which has no gradient. Common
      code takes the mean over labels, and is as many times too weak against a cross-entropy that is summed over them.

    Reference:
      Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, section 2, of one choice among classes;
      here each label is a choice of its own. https://arxiv.org/abs/1503.02531
    """
    student, teacher = _distributions.logit_pair(student, teacher)
    _checks.temperature("temperature", temperature, student.shape[:-1])
    temperature, divisor = _distributions.beside(temperature, student)
    student, teacher = student / divisor, teacher / divisor
    return temperature**2 * jnp.sum(_of_yes_and_no(student, teacher), axis=-1)


def logit_mse(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
) -> Float[Array, "*batch"]:
    r"""Mean squared difference of the logits.

    $$\frac{1}{C} \sum_c (z^s_c - z^t_c)^2$$

    Args:
      student: logits, before any softmax.
      teacher: logits of the same examples and classes.

    Returns:
      One number ≥ 0 for each example or position, in squared logits.

    Raises:
      ValueError: the shapes differ or are not [..., classes].

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
    student, teacher = _distributions.logit_pair(student, teacher)
    return jnp.mean(_math.squared_difference(student, teacher), axis=-1)


@jax.custom_jvp
def _of_yes_and_no(student: Float[Array, "*batch labels"], teacher: Float[Array, "*batch labels"]) -> Array:
    """KL(σ(t)‖σ(s)), label by label."""
    _, student, (_, _, log_student), (yes, no, log_teacher) = _as_of_likely(student, teacher)
    apart = log_teacher - log_student
    # Where the student excludes what is likely, the other part is finite beside an infinite one, and ∞ − ∞ no number.
    excluded = student == -jnp.inf
    other = jnp.where(excluded, 0.0, apart) + (jnp.where(excluded, 0.0, student) - jnp.abs(teacher))
    return yes * apart + jnp.where(no == 0, 0.0, no * other)


@partial(_of_yes_and_no.defjvp, symbolic_zeros=True)
def _slope_of_yes_and_no(given: tuple[Array, Array], moved: tuple[Any, Any]) -> tuple[Array, Array]:
    sign, student, (yes, no, _), (taught_yes, taught_no, _) = _as_of_likely(*given)
    sure = taught_no == 0
    apart = jnp.where(sure, 0.0, jnp.abs(given[1])) - jnp.where(sure, 0.0, student)
    value = _of_yes_and_no(*given)
    # σ(s) − σ(t), by products that keep the digits where both are nearly 1.
    slopes = sign * (taught_no * yes - taught_yes * no), sign * taught_yes * taught_no * apart
    return value, _math.along(slopes, moved, value)


def _as_of_likely(student: Array, teacher: Array) -> tuple[Array, Array, tuple[Array, ...], tuple[Array, ...]]:
    """With what the teacher denies turned round, which changes no divergence: signs, the student's logits, and both."""
    sign = jnp.where(teacher < 0, -1.0, 1.0)
    student = sign * student
    small, likely, rest = _beyond(teacher)
    its_small, its_likely, its_rest = _beyond(student)
    its_unlikely = its_small * its_likely
    denies = student < 0
    of_student = (
        jnp.where(denies, its_unlikely, its_likely),
        jnp.where(denies, its_likely, its_unlikely),
        jnp.minimum(student, 0.0) - its_rest,
    )
    return sign, student, of_student, (likely, small * likely, -rest)


def _beyond(logits: Array) -> tuple[Array, Array, Array]:
    """With e = exp(−|z|): e, 1/(1 + e) and log(1 + e)."""
    small = jnp.exp(-jnp.abs(logits))
    return small, 1.0 / (1.0 + small), _math.log_quotient(small, 2.0 + small)


def _softened(
    student: Array, teacher: Array, temperature: Number
) -> tuple[Float[Array, "*batch classes"], Float[Array, "*batch classes"], Number]:
    """Both log-probabilities at T, and T²."""
    student, teacher, square = _distributions.softened(student, teacher, temperature)
    return jax.nn.log_softmax(student, axis=-1), jax.nn.log_softmax(teacher, axis=-1), square
