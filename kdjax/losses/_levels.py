"""The three levels of multi-level logit distillation: of each example, of the batch, and of the classes."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Bool, Float

from kdjax import _checks
from kdjax._types import Number
from kdjax.losses import _distributions, _math


def multi_level_instance(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    temperatures: tuple[Number, ...] = (2.0, 3.0, 4.0, 5.0, 6.0),
) -> Float[Array, "*batch"]:
    r"""`soft_target_kl` at several temperatures at once, the mean of them.

    $$\frac{1}{K} \sum_k T_k^2 \operatorname{KL}(p^t \,\Vert\, p^s), \qquad p = \operatorname{softmax}(z / T_k)$$

    Args:
      student: logits, before any softmax.
      teacher: logits of the same examples and classes.
      temperatures: T₁, T₂, …, each > 0. May be traced.

    Returns:
      One number ≥ 0 for each example or position, in nats times T².

    Raises:
      ValueError: the shapes differ or are not [..., classes], or there is no temperature, or one is not a finite number
        above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import multi_level_instance, soft_target_kl
      >>> student, teacher = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
      >>> bool(jnp.allclose(multi_level_instance(student, teacher, temperatures=(4.0,)), soft_target_kl(student, teacher)))
      True

    Note:
      The paper's code adds the temperatures up, five times as much, and leaves out those examples of which the teacher is
      unsure; `scaled` by a place of the batch does that.

    Reference:
      Jin, Wang and Lin, Multi-Level Logit Distillation, 2023, section 3.2.
      https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html
    """
    if not isinstance(temperatures, tuple | list) or not temperatures:
        raise ValueError(f"temperatures must be a tuple of one number or more; got {temperatures!r}.")
    values = []
    for number, temperature in enumerate(temperatures):
        _checks.temperature(f"temperatures[{number}]", temperature)
        log_student, log_teacher, square = _softened(student, teacher, temperature)
        values.append(square * _distributions.relative_entropy(log_teacher, log_student))
    return jnp.mean(jnp.stack(values), axis=0)


def multi_level_batch(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    temperature: Number = 4.0,
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "*batch"]:
    r"""Squared difference of how alike the two networks predict each two examples.

    $$\frac{1}{B} \left\lVert P^s P^{s\top} - P^t P^{t\top} \right\rVert^2, \qquad P_i = \operatorname{softmax}(z_i / T)$$

    Args:
      student: logits, before any softmax.
      teacher: logits of the same examples and classes.
      temperature: T > 0, one number or one for each example, [...]; larger is softer. May be traced.
      where: which entries count, bools [...] or of its first axes alone; the others are as if they were not there, and
        get 0. None: all do.

    Returns:
      Each example's or position's share, its row of the difference, ≥ 0; the mean over the batch is the formula.

    Raises:
      ValueError: the shapes differ or are not [..., classes], or T is not a finite number above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import multi_level_batch
      >>> student, teacher = jnp.array([[9.0, -9.0], [-9.0, 9.0]]), jnp.array([[-9.0, 9.0], [9.0, -9.0]])
      >>> multi_level_batch(student, teacher).tolist()  # which class it is does not count
      [0.0, 0.0]

    Note:
      It grows with the batch, as the paper's does. Of more axes than one all entries are one batch.

    Reference:
      Jin, Wang and Lin, Multi-Level Logit Distillation, 2023, section 3.3.
      https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html
    """
    entries, (rows, taught, _) = student.shape[:-1], _shares(student, teacher, temperature, where)
    return jnp.sum((_math.gram(rows) - _math.gram(taught)) ** 2, axis=1).reshape(entries)


def multi_level_class(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    *,
    temperature: Number = 4.0,
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "*batch"]:
    r"""Squared difference of how often the two networks confuse each two classes, over the batch.

    $$\frac{1}{C} \left\lVert \Delta \right\rVert^2, \qquad \Delta = P^{t\top} P^t - P^{s\top} P^s, \qquad
    P_i = \operatorname{softmax}(z_i / T)$$

    Args:
      student: logits, before any softmax.
      teacher: logits of the same examples and classes.
      temperature: T > 0, one number or one for each example, [...]; larger is softer. May be traced.
      where: which entries count, bools [...] or of its first axes alone; the others are as if they were not there, and
        get 0. None: all do.

    Returns:
      Each example's share (B/C) (pᵗ Δ pᵗ − pˢ Δ pˢ), which may be negative; the mean over the batch is the formula.

    Raises:
      ValueError: the shapes differ or are not [..., classes], or T is not a finite number above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import multi_level_class
      >>> student, teacher = jnp.array([[9.0, -9.0], [-9.0, 9.0]]), jnp.array([[-9.0, 9.0], [9.0, -9.0]])
      >>> multi_level_class(student, teacher).tolist()  # which example it is does not count
      [0.0, 0.0]

    Note:
      It grows with the square of the batch, as the paper's does. Of more axes than one all entries are one batch.

    Reference:
      Jin, Wang and Lin, Multi-Level Logit Distillation, 2023, section 3.3.
      https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html
    """
    entries, (rows, taught, counted) = student.shape[:-1], _shares(student, teacher, temperature, where)
    difference = _math.gram(taught.T) - _math.gram(rows.T)
    of_teacher, of_student = (
        jnp.sum(jnp.einsum("bc,cd->bd", p, difference, precision=Precision.HIGHEST) * p, axis=1) for p in (taught, rows)
    )
    return (_math.count(rows, counted) / rows.shape[1] * (of_teacher - of_student)).reshape(entries)


def _softened(
    student: Array, teacher: Array, temperature: Number
) -> tuple[Float[Array, "*batch classes"], Float[Array, "*batch classes"], Number]:
    student, teacher, square = _distributions.softened(student, teacher, temperature)
    return jax.nn.log_softmax(student, axis=-1), jax.nn.log_softmax(teacher, axis=-1), square


def _shares(
    student: Array, teacher: Array, temperature: Number, where: Any
) -> tuple[Float[Array, "entries classes"], Float[Array, "entries classes"], Any]:
    """The probabilities as rows, of entries that do not count 0; and which rows count."""
    student, teacher, _ = _distributions.softened(student, teacher, temperature)
    _checks.where(where, student.shape[:-1])
    where = _math.spread(where, student.shape[:-1])
    student, teacher = (
        _math.kept(jax.nn.softmax(_math.kept(logits, where), axis=-1), where).reshape(-1, logits.shape[-1])
        for logits in (student, teacher)
    )
    return student, teacher, None if where is None else where.reshape(-1)
