"""Losses that match how features change: from one layer to a later one, from one step of a sequence to the next."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.lax import Precision
from jaxtyping import Array, Float

from kdjax import _checks
from kdjax.losses import _math


def fsp(
    student_bottom: Float[Array, "batch student_bottom_height student_bottom_width bottom_channels"],
    student_top: Float[Array, "batch student_top_height student_top_width top_channels"],
    teacher_bottom: Float[Array, "batch teacher_bottom_height teacher_bottom_width bottom_channels"],
    teacher_top: Float[Array, "batch teacher_top_height teacher_top_width top_channels"],
) -> Float[Array, " batch"]:
    r"""Mean squared difference of how two layers' channels are active together: the flow of solution procedure.

    $$\frac{1}{I J} \sum_{i,j} (M^s_{ij} - M^t_{ij})^2, \qquad
    M_{ij} = \frac{1}{HW} \sum_x \text{bottom}_{xi} \, \text{top}_{xj}$$

    The first sum is over all pairs of one of bottom's I channels and one of top's J, the second over positions.

    Args:
      student_bottom: activations where a block begins.
      student_top: activations where it ends. If their sizes differ, the larger map is averaged down to the smaller, by
        windows that overlap where sizes do not divide.
      teacher_bottom: activations with as many channels as `student_bottom`; height and width may differ.
      teacher_top: activations with as many channels as `student_top`.

    Returns:
      One number ≥ 0 per example.

    Raises:
      ValueError: an argument is not [batch, height, width, channels], or batches or channels differ.

    Example:
      Where on the map things happen does not count, as long as they happen together:

      >>> import jax
      >>> from kdjax.losses import fsp
      >>> bottom, top = jax.random.normal(jax.random.key(0), (2, 1, 3, 3, 4))
      >>> bool(fsp(bottom[:, ::-1], top[:, ::-1], bottom, top)[0] < 1e-10)
      True

    Note:
      The paper sums the squares; the mean is common. Both use the loss alone, in a stage before training. The value grows
      with the fourth power of the features, and the gradient with the third: for features in the hundreds it leaves
      float16's range.

    Reference:
      Yim et al., A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning, 2017,
      equations 1 and 2. https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html
    """
    arguments = {
        "student_bottom": student_bottom,
        "student_top": student_top,
        "teacher_bottom": teacher_bottom,
        "teacher_top": teacher_top,
    }
    for name, features in arguments.items():
        _checks.rank(name, features, 4, "[batch, height, width, channels]")
        _checks.same_batch("student_bottom", student_bottom, name, features)
        _checks.floating(name, features)
    for layer in ("bottom", "top"):
        student, teacher = arguments[f"student_{layer}"], arguments[f"teacher_{layer}"]
        if student.shape[-1] != teacher.shape[-1]:
            raise ValueError(
                f"student_{layer} and teacher_{layer} must have as many channels, their last axis; "
                f"got shapes {student.shape} and {teacher.shape}."
            )
    student_bottom, teacher_bottom = _math.widened(student_bottom, teacher_bottom)
    student_top, teacher_top = _math.widened(student_top, teacher_top)
    return _apart(
        *_math.averaged_to_one_size(student_bottom, student_top),
        *_math.averaged_to_one_size(teacher_bottom, teacher_top),
    )


def sequence_angles(
    student: Float[Array, "batch time student_dim"],
    teacher: Float[Array, "batch time teacher_dim"],
) -> Float[Array, " batch"]:
    r"""Smooth L1 difference of the angles' cosines along a sequence: how each step bends, seen from where it starts.

    $$\frac{1}{N - 2} \sum_{n=1}^{N-2} \ell(c^s_n - c^t_n), \qquad
    c_n = \cos(x_{n+1} - x_n,\; x_{n+2} - x_n)$$

    N is the number of steps; ℓ is the smooth L1: ℓ(d) = d²/2 where |d| < 1, |d| − 1/2 beyond.

    Args:
      student: features of a sequence's steps, at least three; dim may differ from the teacher's.
      teacher: features of the same steps of the same sequences.

    Returns:
      One number between 0 and 3/2 per example.

    Raises:
      ValueError: an argument is not [batch, time, dim], batches or times differ, or there are fewer than three steps.

    Example:
      Neither place, nor size, nor rotation of a sequence counts:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import sequence_angles
      >>> teacher = jax.random.normal(jax.random.key(0), (2, 5, 2))
      >>> quarter_turn = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
      >>> bool((sequence_angles(3.0 * teacher @ quarter_turn + 1.0, teacher) < 1e-6).all())
      True

    Note:
      The paper compares triples of *examples*, as `rkd_angle` does; this is its form for the steps of one example, so no
      example depends on another. Some code compares angles: their arc cosine has infinite slope where three steps lie on
      a line. A difference of length 0 has cosine 0 and no gradient.

    Reference:
      Park et al., Relational Knowledge Distillation, 2019, section 3.2.2. https://arxiv.org/abs/1904.05068
    """
    _checks.rank("student", student, 3, "[batch, time, dim]")
    _checks.rank("teacher", teacher, 3, "[batch, time, dim]")
    if student.shape[:2] != teacher.shape[:2] or student.shape[1] < 3:
        raise ValueError(
            "student and teacher must have the same batch size and the same number of steps, at least 3; "
            f"got shapes {student.shape} for student and {teacher.shape} for teacher, [batch, time, dim]."
        )
    student, teacher = _math.widened(student, teacher)
    return _math.per_example_mean(_math.smooth_l1(_bends(student) - _bends(teacher)))


@jax.custom_jvp
def _apart(
    student_bottom: Float[Array, "batch height width channels"],
    student_top: Float[Array, "batch height width other_channels"],
    teacher_bottom: Float[Array, "batch teacher_height teacher_width channels"],
    teacher_top: Float[Array, "batch teacher_height teacher_width other_channels"],
) -> Float[Array, " batch"]:
    flows = _flow(student_bottom, student_top), _flow(teacher_bottom, teacher_top)
    return _math.per_example_mean((flows[0] - flows[1]) ** 2)


@partial(_apart.defjvp, symbolic_zeros=True)
def _slope(given: tuple[Array, Array, Array, Array], moved: tuple[Any, ...]) -> tuple[Array, Array]:
    """The derivative of the products, which JAX would give transposed: four more ways through memory."""
    difference = _flow(*given[:2]) - _flow(*given[2:])
    slope = 2.0 / difference[0].size * difference
    total = jnp.zeros_like(difference[:, 0, 0])
    for sign, network in ((1.0, 0), (-1.0, 2)):
        bottom, top = given[network : network + 2]
        by_flow = sign / (bottom.shape[1] * bottom.shape[2]) * slope
        for tangent, other, axes in zip(
            moved[network : network + 2], (top, bottom), ("j,bij->bhwi", "i,bij->bhwj"), strict=True
        ):
            if not isinstance(tangent, SymbolicZero):
                along = jnp.einsum(f"bhw{axes}", other, by_flow, precision=Precision.HIGHEST)
                total = total + jnp.sum(along * tangent, axis=(1, 2, 3))
    return _math.per_example_mean(difference**2), total


def _flow(
    bottom: Float[Array, "batch height width channels"], top: Float[Array, "batch height width other_channels"]
) -> Float[Array, "batch channels other_channels"]:
    positions = bottom.shape[1] * bottom.shape[2]
    # Divided before: a division after is fused with the subtraction of the two flows, and equal flows then differ.
    return jnp.einsum("bhwi,bhwj->bij", bottom / positions, top, precision=Precision.HIGHEST)


def _bends(steps: Float[Array, "batch time dim"]) -> Float[Array, "batch angles"]:
    ahead = steps[:, 1:] - steps[:, :-1]
    one_step, two_steps = ahead[:, :-1], ahead[:, :-1] + ahead[:, 1:]
    return jnp.sum(_math.unit(one_step, (2,)) * _math.unit(two_steps, (2,)), axis=2)
