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
    student: Float[Array, "batch classes"],
    teacher: Float[Array, "batch classes"],
    *,
    temperature: Number = 4.0,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Squared difference of how alike the two networks predict each two examples.

    $$\frac{1}{B} \left\lVert P^s P^{s\top} - P^t P^{t\top} \right\rVert^2, \qquad P_i = \operatorname{softmax}(z_i / T)$$

    Args:
      student: logits, before any softmax.
      teacher: logits of the same examples and classes.
      temperature: T > 0, one number or one for each example, [batch]; larger is softer. May be traced.
      where: which examples count, bools [batch]; the others are as if they were not there, and get 0. None: all do.

    Returns:
      Each example's share, its row of the difference, ≥ 0; the mean over the batch is the formula.

    Raises:
      ValueError: the shapes differ or are not [batch, classes], or T is not a finite number above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import multi_level_batch
      >>> student, teacher = jnp.array([[9.0, -9.0], [-9.0, 9.0]]), jnp.array([[-9.0, 9.0], [9.0, -9.0]])
      >>> multi_level_batch(student, teacher).tolist()  # which class it is does not count
      [0.0, 0.0]

    Note:
      It grows with the batch, as the paper's does.

    Reference:
      Jin, Wang and Lin, Multi-Level Logit Distillation, 2023, section 3.3.
      https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html
    """
    student, teacher = _shares(student, teacher, temperature, where)
    return jnp.sum((_math.gram(student) - _math.gram(teacher)) ** 2, axis=1)


def multi_level_class(
    student: Float[Array, "batch classes"],
    teacher: Float[Array, "batch classes"],
    *,
    temperature: Number = 4.0,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Squared difference of how often the two networks confuse each two classes, over the batch.

    $$\frac{1}{C} \left\lVert \Delta \right\rVert^2, \qquad \Delta = P^{t\top} P^t - P^{s\top} P^s, \qquad
    P_i = \operatorname{softmax}(z_i / T)$$

    Args:
      student: logits, before any softmax.
      teacher: logits of the same examples and classes.
      temperature: T > 0, one number or one for each example, [batch]; larger is softer. May be traced.
      where: which examples count, bools [batch]; the others are as if they were not there, and get 0. None: all do.

    Returns:
      Each example's share (B/C) (pᵗ Δ pᵗ − pˢ Δ pˢ), which may be negative; the mean over the batch is the formula.

    Raises:
      ValueError: the shapes differ or are not [batch, classes], or T is not a finite number above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import multi_level_class
      >>> student, teacher = jnp.array([[9.0, -9.0], [-9.0, 9.0]]), jnp.array([[-9.0, 9.0], [9.0, -9.0]])
      >>> multi_level_class(student, teacher).tolist()  # which example it is does not count
      [0.0, 0.0]

    Note:
      It grows with the square of the batch, as the paper's does.

    Reference:
      Jin, Wang and Lin, Multi-Level Logit Distillation, 2023, section 3.3.
      https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html
    """
    student, teacher = _shares(student, teacher, temperature, where)
    difference = _math.gram(teacher.T) - _math.gram(student.T)
    of_teacher, of_student = (
        jnp.einsum("bc,cd,bd->b", p, difference, p, precision=Precision.HIGHEST) for p in (teacher, student)
    )
    return _math.count(student, where) / student.shape[1] * (of_teacher - of_student)


def _softened(
    student: Array, teacher: Array, temperature: Number
) -> tuple[Float[Array, "*batch classes"], Float[Array, "*batch classes"], Number]:
    student, teacher, square = _distributions.softened(student, teacher, temperature)
    return jax.nn.log_softmax(student, axis=-1), jax.nn.log_softmax(teacher, axis=-1), square


def _shares(
    student: Array, teacher: Array, temperature: Number, where: Any
) -> tuple[Float[Array, "batch classes"], Float[Array, "batch classes"]]:
    """The probabilities; of examples that do not count, 0."""
    _checks.rank("student", student, 2, "[batch, classes]")
    _checks.rank("teacher", teacher, 2, "[batch, classes]")
    student, teacher, _ = _distributions.softened(student, teacher, temperature)
    _checks.where(where, student.shape[:1])
    student, teacher = (_math.kept(logits, where) for logits in (student, teacher))
    first, second = jax.nn.softmax(student, axis=-1), jax.nn.softmax(teacher, axis=-1)
    return _math.kept(first, where), _math.kept(second, where)
