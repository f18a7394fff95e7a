"""Losses that match the pattern of predictions, whatever their level and spread: [..., classes] logits."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax import _checks
from kdjax._types import Number
from kdjax.losses import _distributions, _math
from kdjax.losses._logits import soft_target_kl


def dist(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    beta: Number = 1.0,
    gamma: Number = 1.0,
    temperature: Number = 1.0,
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "*batch"]:
    r"""Correlation of the two networks' predictions: among the classes of an example, and among examples for a class.

    $$T^2 \left(\beta \, (1 - r_i) + \frac{\gamma}{C} \sum_c (1 - r_c)\right), \qquad p = \operatorname{softmax}(z / T)$$

    Here r_i is Pearson's correlation of the networks' p over the classes of example i, and r_c that over the batch of the
    probabilities of class c.

    1 − r is half the squared distance of the two centred vectors of length 1, which gives each example its share of the
    second part.

    Args:
      student: logits, before any softmax.
      teacher: logits of the same examples and classes.
      beta: β, the weight of the correlation among classes. May be traced.
      gamma: γ, the weight of the correlation among examples. May be traced.
      temperature: T > 0, one number or one for each example, [...]; larger is softer. May be traced.
      where: which entries count, bools [...] or of its first axes alone; the others are as if they were not there, and
        get 0. None: all do.

    Returns:
      Each example's own part and its share of the batch's; ≥ 0 where both weights are. The mean over the batch is the
      loss. A batch that is split over devices must be gathered before.

    Raises:
      ValueError: the shapes differ or are not [..., classes], β or γ is not a finite number, or T is not a finite
        number above 0.

    Example:
      With two classes a correlation of ±1 is all there is; nothing asks for the teacher's confidence:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import dist
      >>> student, teacher = jnp.array([[0.1, 0.0], [0.0, 0.1]]), jnp.array([[5.0, 0.0], [0.0, 5.0]])
      >>> abs(dist(student, teacher)).round(4).tolist()
      [0.0, 0.0]

    Note:
      Constant probabilities have no pattern and no correlation: they stand as a zero vector, with zero gradient. Where
      both networks' are constant, as in a batch of one, that part is 0; where one's are, it is 1/2. Common code, which
      adds 1e-8 to the lengths, has 1 in both cases.

    Reference:
      Huang et al., Knowledge Distillation from A Stronger Teacher, 2022, section 4. https://arxiv.org/abs/2205.10536
    """
    _checks.finite("beta", beta)
    _checks.finite("gamma", gamma)
    student, teacher, square = _distributions.softened(student, teacher, temperature)
    _checks.where(where, student.shape[:-1])
    where = _math.spread(where, student.shape[:-1])
    student, teacher = (jax.nn.softmax(_math.kept(logits, where), axis=-1) for logits in (student, teacher))
    among_classes = 0.5 * jnp.sum((_pattern(student, -1) - _pattern(teacher, -1)) ** 2, axis=-1)
    rows, taught = (shares.reshape(-1, shares.shape[-1]) for shares in (student, teacher))
    counted = None if where is None else where.reshape(-1)
    size = _math.count(rows, counted)
    among_examples = 0.5 * size * jnp.mean((_pattern(rows, 0, counted) - _pattern(taught, 0, counted)) ** 2, axis=-1)
    values = square * (beta * among_classes + gamma * among_examples.reshape(among_classes.shape))
    return _math.kept(values, where)


def standardize_logits(z: Float[Array, "*batch classes"]) -> Float[Array, "*batch classes"]:
    r"""Logits of mean 0 and standard deviation 1 in each example; the transformation before `standardized_kd`, no loss.

    $$\frac{z_c - \bar z}{\sigma + 10^{-7}}, \qquad \bar z = \frac{1}{C} \sum_c z_c, \qquad
    \sigma^2 = \frac{1}{C - 1} \sum_c (z_c - \bar z)^2$$

    Args:
      z: finite logits, the classes along the last axis.

    Returns:
      An array of the same shape, float32 at least; 0, with zero gradient, where all of an example's logits are equal.

    Raises:
      ValueError: `z` has no axis, or does not hold floating-point numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import standardize_logits
      >>> standardize_logits(jnp.array([[10.0, 20.0, 30.0], [7.0, 7.0, 7.0]])).round(4).tolist()
      [[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]

    Note:
      At equal logits the formula's own slope is 1e7, more than float16 holds and of no use to anybody; 0 stands for it.

    Reference:
      Sun et al., Logit Standardization in Knowledge Distillation, 2024, algorithm 1. https://arxiv.org/abs/2403.01427
    """
    _checks.rank_at_least("z", z, 1, "[..., classes]")
    _checks.floating("z", z)
    z = jnp.asarray(z, jnp.result_type(z, jnp.float32))
    # Rounding may carry the mean of equal numbers away from them, but not the mean of zeros.
    z = z - jax.lax.stop_gradient(z[..., :1])
    centred = z - jnp.mean(z, axis=-1, keepdims=True)
    variance = jnp.sum(centred * centred, axis=-1, keepdims=True) / max(z.shape[-1] - 1, 1)
    deviation = _math.safe_sqrt(variance)
    return centred * jnp.where(deviation == 0, 0.0, 1.0 / (deviation + 1e-7))


def standardized_kd(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    temperature: Number = 2.0,
) -> Float[Array, "*batch"]:
    r"""Soft-target distillation that asks for the teacher's ranking and proportions, not for the size of its logits.

    $$T^2 \sum_c p^t_c \, (\log p^t_c - \log p^s_c), \qquad
    p = \operatorname{softmax}\left(\frac{1}{T} \cdot \frac{z - \bar z}{\sigma + 10^{-7}}\right)$$

    It is `soft_target_kl` of the logits after `standardize_logits`.

    Args:
      student: finite logits, before any softmax.
      teacher: logits of the same examples and classes.
      temperature: T > 0, of the standardised logits, one number or one for each example; larger is softer. May be
        traced.

    Returns:
      One number ≥ 0 for each example or position, in nats times T².

    Raises:
      ValueError: the shapes differ or are not [..., classes], or T is not a finite number above 0.

    Example:
      Neither level nor size of a network's logits counts:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import standardized_kd
      >>> teacher = jnp.array([[2.0, 0.0, -1.0]])
      >>> bool((abs(standardized_kd(0.1 * teacher + 5.0, teacher)) < 1e-5).all())
      True

    Note:
      An example whose logits are all equal has no pattern: its standardised logits are 0, and so is their gradient.

    Reference:
      Sun et al., Logit Standardization in Knowledge Distillation, 2024, algorithm 1. https://arxiv.org/abs/2403.01427
    """
    student, teacher = _distributions.logit_pair(student, teacher)
    return soft_target_kl(standardize_logits(student), standardize_logits(teacher), temperature=temperature)


def _pattern(shares: Float[Array, "*batch classes"], axis: int, where: Any = None) -> Float[Array, "*batch classes"]:
    """Centred and of length 1 along `axis`; 0 where constant up to rounding, or smaller than a gradient can bear."""
    limits = jnp.finfo(shares.dtype)
    own = True if where is None else where[:, None]
    largest = jnp.max(shares, axis=axis, keepdims=True, initial=0.0, where=own)
    spread = largest - jnp.min(shares, axis=axis, keepdims=True, initial=1.0, where=own)
    constant = spread <= 16.0 * float(limits.eps) * largest + float(limits.tiny) / float(limits.eps)
    size = shares.shape[axis] if where is None else _math.count(shares, where)
    centred = _math.kept(shares - jnp.sum(_math.kept(shares, where), axis=axis, keepdims=True) / size, where)
    return _math.unit(jnp.where(constant, 0.0, centred), (axis,))
