"""Losses that match the structure of the batch: how its examples lie to each other, in each network's own space.

Student and teacher may have different dims. Every example's number depends on the whole batch: a batch that is split
over devices must be gathered before.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from kdjax import _checks
from kdjax.losses import _angles, _math


def rkd_distance(
    student: Float[Array, " batch *student_dims"],
    teacher: Float[Array, " batch *teacher_dims"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Smooth L1 difference of the distances between examples, each network's in units of its own mean distance.

    $$\frac{1}{B} \sum_j \ell\left(\frac{d^s_{ij}}{\mu_s} - \frac{d^t_{ij}}{\mu_t}\right), \qquad
    d_{ij} = \lVert x_i - x_j \rVert$$

    μ is the mean of the positive d_ij; ℓ is the smooth L1: ℓ(d) = d²/2 where |d| < 1, |d| − 1/2 beyond.

    Args:
      student: features [batch, dim], or [batch, …], which are flattened. The mean distance is differentiated too.
      teacher: features of the same examples; dim may differ.
      where: which examples count, bools [batch]; the others are as if they were not there, and get 0. None: all do.

    Returns:
      Each example's share, a number ≥ 0; the mean over the batch is the mean over all B² pairs.

    Raises:
      ValueError: an argument has only one axis, or the batches differ.

    Example:
      Neither place, nor size, nor rotation of the cloud of features counts:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import rkd_distance
      >>> teacher = jax.random.normal(jax.random.key(0), (4, 2))
      >>> quarter_turn = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
      >>> bool((rkd_distance(3.0 * teacher @ quarter_turn + 1.0, teacher) < 1e-6).all())
      True

    Note:
      Common code bounds squared distances from below by 1e-12 and so counts equal examples in the mean; here their
      distance is exactly 0, is not counted, and has zero gradient.

    Reference:
      Park et al., Relational Knowledge Distillation, 2019, section 3.2.1. https://arxiv.org/abs/1904.05068
    """
    student, teacher = feature_pair(student, teacher, where)
    difference = _relative_distances(student, where) - _relative_distances(teacher, where)
    return _math.mean_over_others(_math.smooth_l1(difference), where)


def rkd_angle(
    student: Float[Array, " batch *student_dims"],
    teacher: Float[Array, " batch *teacher_dims"],
    *,
    block: int | None = None,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Smooth L1 difference of the angles' cosines in all triangles of examples.

    $$\frac{1}{B^2} \sum_{j,k} \ell(c^s_{ijk} - c^t_{ijk}), \qquad
    c_{ijk} = \cos(x_j - x_i,\; x_k - x_i) = \frac{G_{jk} - G_{ij} - G_{ik} + G_{ii}}{d_{ij} \, d_{ik}}$$

    G = X Xᵀ is the Gram matrix and d the distances; from these, memory does not grow with dim. ℓ is the smooth L1 of
    `rkd_distance`.

    Args:
      student: features [batch, dim], or [batch, …], which are flattened.
      teacher: features of the same examples; dim may differ.
      block: how many anchors i to work on at a time. Memory is then O(block · B²), forward and backward. None takes all
        at once: O(B³), fastest for small batches; on a CPU 1 is faster from 256 on. The backward pass computes the
        cosines a second time.
      where: which examples count, bools [batch]; the others are as if they were not there, and get 0. None: all do.

    Returns:
      Each example's share as the anchor, a number between 0 and 3/2; their mean is that over all B³ triples.

    Raises:
      ValueError: an argument has only one axis, the batches differ, or `block` is not a whole number above 0.

    Example:
      Neither place nor size of the cloud of features counts, and `block` changes the memory alone:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import rkd_angle
      >>> student, teacher = jax.random.normal(jax.random.key(0), (2, 5, 3))
      >>> whole = rkd_angle(student, teacher)
      >>> bool(jnp.allclose(rkd_angle(3.0 * student + 1.0, teacher, block=2), whole, atol=1e-6))
      True

    Note:
      Triples with equal corners count in the mean, as in common code; an edge of length 0 has cosine 0 and no gradient.
      The gradient can be taken backward, not forward (`jax.jvp`).

    Reference:
      Park et al., Relational Knowledge Distillation, 2019, section 3.2.2. https://arxiv.org/abs/1904.05068
    """
    if block is not None:
        _checks.whole("block", block, 1)
    student, teacher = feature_pair(student, teacher, where)
    triples = _math.count(student, where) ** 2
    networks = tuple(_angles.seen(features, where) for features in (student, teacher))
    shares = _angles.differences(min(block or len(student), len(student)), *networks) / triples
    return _math.kept(shares, where)


def pkt(
    student: Float[Array, " batch *student_dims"],
    teacher: Float[Array, " batch *teacher_dims"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Divergence of the batch's similarities, each example's seen as a distribution over the batch.

    $$\frac{1}{B} \sum_j t_{ij} \log \frac{t_{ij} + \varepsilon}{s_{ij} + \varepsilon}, \qquad
    s_{ij} = \frac{1 + \cos(x_i, x_j)}{\sum_k (1 + \cos(x_i, x_k))}, \qquad \varepsilon = 10^{-7}$$

    s is of the student's features x, and t in the same way of the teacher's.

    Args:
      student: features [batch, dim], or [batch, …], which are flattened.
      teacher: features of the same examples; dim may differ.
      where: which examples count, bools [batch]; the others are as if they were not there, and get 0. None: all do.

    Returns:
      Each example's share; the mean over the batch is the mean over all B² pairs.

    Raises:
      ValueError: an argument has only one axis, or the batches differ.

    Example:
      Only directions count, not lengths:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import pkt
      >>> teacher = jax.random.normal(jax.random.key(0), (4, 3))
      >>> lengths = jnp.array([[1.0], [2.0], [3.0], [4.0]])
      >>> bool((abs(pkt(lengths * teacher, teacher)) < 1e-6).all())
      True

    Note:
      The paper sums over pairs; its code, as here, takes the mean. A zero vector has cosine 0 with everything, itself
      included, and zero gradient.

    Reference:
      Passalis and Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, 2018, section 3.
      https://arxiv.org/abs/1803.10837
    """
    student, teacher = feature_pair(student, teacher, where)
    of_student, of_teacher = _neighbour_distributions(student, where), _neighbour_distributions(teacher, where)
    tiny = 1e-7
    return _math.mean_over_others(of_teacher * (jnp.log(of_teacher + tiny) - jnp.log(of_student + tiny)), where)


def feature_pair(
    student: Array, teacher: Array, where: Any = None
) -> tuple[Float[Array, "batch dim"], Float[Array, "batch other_dim"]]:
    """Both as rows in float32 at least, 0 where they do not count, or the ValueError that every relational loss raises."""
    _checks.rank_at_least("student", student, 2, "[batch, dim]")
    _checks.rank_at_least("teacher", teacher, 2, "[batch, dim]")
    _checks.same_batch("student", student, "teacher", teacher)
    _checks.where(where, np.shape(student)[:1])
    student, teacher = (_math.kept(rows, where) for rows in _math.widened(student, teacher))
    return student.reshape(student.shape[0], -1), teacher.reshape(teacher.shape[0], -1)


def _relative_distances(features: Float[Array, "batch dim"], where: Any) -> Float[Array, "batch batch"]:
    distances = _math.safe_sqrt(_math.squared_distances(_math.gram(_math.centred(features, where))))
    if where is not None:
        distances = jnp.where(_math.pairs(where), distances, 0.0)
    pairs = jnp.maximum(jnp.sum(distances > 0), 1)
    return distances * _math.safe_reciprocal(jnp.sum(distances) / pairs)


def _neighbour_distributions(features: Float[Array, "batch dim"], where: Any) -> Float[Array, "batch batch"]:
    # Rounding may carry a cosine below −1, and the logarithm of a negative similarity is NaN.
    cosines = jnp.clip(_math.gram(_math.unit(features, (1,))), -1.0, 1.0)
    similarities = (1.0 + cosines) / 2.0
    if where is None:
        return similarities / jnp.sum(similarities, axis=1, keepdims=True)
    similarities = jnp.where(_math.pairs(where), similarities, 0.0)
    return similarities * _math.safe_reciprocal(jnp.sum(similarities, axis=1, keepdims=True))
