"""Losses that match matrices of similarity: each network's batch against itself, then the two matrices.

As in `_relations.py`: dims may differ where not said otherwise, and a batch that is split over devices must be gathered.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax import _checks
from kdjax._types import Number
from kdjax.losses import _math
from kdjax.losses._relations import feature_pair


def similarity_preserving(
    student: Float[Array, " batch *student_dims"],
    teacher: Float[Array, " batch *teacher_dims"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Squared difference of the batch's similarities, each example's in units of their own length.

    $$\frac{1}{B} \sum_j (g^s_{ij} - g^t_{ij})^2, \qquad g_i = \frac{G_i}{\lVert G_i \rVert}, \qquad G = X X^\top$$

    Args:
      student: features [batch, dim], or [batch, …], which are flattened.
      teacher: features of the same examples; dim may differ.
      where: which examples count, bools [batch]; the others are as if they were not there, and get 0. None: all do.

    Returns:
      Each example's share, a number between 0 and 4/B; the mean over the batch is Σ_ij (g^s_ij − g^t_ij)² / B².

    Raises:
      ValueError: an argument has only one axis, or the batches differ.

    Example:
      Size and rotation of the features do not count, their place does:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import similarity_preserving
      >>> teacher = jax.random.normal(jax.random.key(0), (4, 2))
      >>> quarter_turn = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
      >>> bool((similarity_preserving(3.0 * teacher @ quarter_turn, teacher) < 1e-6).all())
      True
      >>> bool((similarity_preserving(teacher + 1.0, teacher) > 1e-3).all())
      True

    Note:
      Paper and common code agree. The factor 1/B² makes the loss small in large batches: its usual weight is in the
      thousands. An example with zero features has zero similarities.

    Reference:
      Tung and Mori, Similarity-Preserving Knowledge Distillation, 2019, section 3. https://arxiv.org/abs/1907.09682
    """
    student, teacher = feature_pair(student, teacher, where)
    return _math.mean_over_others((_row_similarities(student) - _row_similarities(teacher)) ** 2, where)


def correlation_congruence(
    student: Float[Array, " batch *dims"],
    teacher: Float[Array, " batch *dims"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Product of the absolute errors of examples that follow each other in the batch.

    $$\frac{1}{B - 1} \sum_{i=1}^{B-1} \sum_d \left|\Delta_{i,d}\right| \, \left|\Delta_{i+1,d}\right|,
    \qquad \Delta = s - t$$

    The loss is the mean over the B − 1 pairs (i, i + 1).

    Args:
      student: features [batch, dim], or [batch, …], which are flattened; after a connector where dims differ.
      teacher: features of the same shape.
      where: which examples count, bools [batch]; the others are as if they were not there, and get 0. None: all do.

    Returns:
      Each example's share, a number ≥ 0: half of each pair that it is in, times B / (B − 1), so that the mean over the
      batch is the mean over pairs. A batch of one has no pair: 0.

    Raises:
      ValueError: the shapes differ, or have only one axis.

    Example:
      Two pairs, |1| · |2| and |2| · |3|; the middle example is in both:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import correlation_congruence
      >>> student = jnp.array([[1.0], [-2.0], [3.0]])
      >>> shares = correlation_congruence(student, jnp.zeros((3, 1)))
      >>> shares.tolist(), float(shares.mean())
      ([1.5, 6.0, 4.5], 4.0)

    Note:
      This is the common implementation, and not the paper's formula: see `kernel_congruence` for that. It compares no
      relations, it depends on the order of the batch, and it is 0 already where every second example is right.

    Reference:
      Peng et al., Correlation Congruence for Knowledge Distillation, 2019. https://arxiv.org/abs/1904.01802
    """
    _checks.same_shape("student", student, "teacher", teacher)
    student, teacher = feature_pair(student, teacher, where)
    error = jnp.abs(student - teacher)
    # Those that count first, in their order: each then follows the one that it followed without the others.
    order = None if where is None else jnp.argsort(~where, stable=True)
    error = error if order is None else error[order]
    pairs = jnp.sum(error[:-1] * error[1:], axis=1)
    batch = _math.count(student, where)
    shares = (jnp.pad(pairs, (0, 1)) + jnp.pad(pairs, (1, 0))) * (batch / (2 * jnp.maximum(batch - 1, 1)))
    return shares if order is None else shares[jnp.argsort(order)]


def kernel_congruence(
    student: Float[Array, " batch *student_dims"],
    teacher: Float[Array, " batch *teacher_dims"],
    *,
    gamma: Number = 0.4,
    order: int | None = None,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Squared difference of the batch's Gaussian kernels.

    $$\frac{1}{B} \sum_j (k^s_{ij} - k^t_{ij})^2, \qquad
    k_{ij} = \exp(-\gamma \lVert x_i - x_j \rVert^2) = e^{-2\gamma} \sum_{p=0}^{\infty} \frac{(2 \gamma \, c_{ij})^p}{p!}$$

    The features x have length 1 and the cosine c_ij; `order` P stops the sum at p = P.

    Args:
      student: features [batch, dim], or [batch, …], which are flattened.
      teacher: features of the same examples; dim may differ.
      gamma: γ > 0; larger looks at nearer neighbours alone. May be traced.
      order: where to stop the kernel's Taylor series; None takes the kernel itself. The paper's experiments use 2.
      where: which examples count, bools [batch]; the others are as if they were not there, and get 0. None: all do.

    Returns:
      Each example's share, a number ≥ 0; the mean over the batch is the mean over all B² pairs.

    Raises:
      ValueError: an argument has only one axis, the batches differ, γ is not a finite number above 0, or `order` is not a
        whole number above 0.

    Example:
      Only directions count, and a short series is already near the kernel:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import kernel_congruence
      >>> student, teacher = jax.random.normal(jax.random.key(0), (2, 4, 3))
      >>> exact = kernel_congruence(student, teacher)
      >>> bool(jnp.allclose(kernel_congruence(3.0 * student, teacher, order=6), exact, atol=1e-4))
      True

    Note:
      What is commonly called by the paper's name is `correlation_congruence`. A zero vector has cosine 0 with
      everything, itself included, and zero gradient.

    Reference:
      Peng et al., Correlation Congruence for Knowledge Distillation, 2019, section 3. https://arxiv.org/abs/1904.01802
    """
    _checks.positive("gamma", gamma)
    if order is not None:
        _checks.whole("order", order, 1)
    student, teacher = feature_pair(student, teacher, where)
    difference = _gaussian_kernel(student, gamma, order) - _gaussian_kernel(teacher, gamma, order)
    return _math.mean_over_others(difference**2, where)


def kernel_alignment(
    student: Float[Array, " batch *student_dims"],
    teacher: Float[Array, " batch *teacher_dims"],
    *,
    centred: bool = True,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""How far the two networks' matrices of inner products are from pointing in the same direction.

    $$1 - \frac{\langle K^s, K^t \rangle}{\lVert K^s \rVert \, \lVert K^t \rVert}, \qquad K = X X^\top$$

    The features X are taken about their mean: this is 1 − CKA with linear kernels.

    Args:
      student: features [batch, dim], or [batch, …], which are flattened.
      teacher: features of the same examples; dim may differ.
      centred: False leaves the features where they are.
      where: which examples count, bools [batch]; the others are as if they were not there, and get 0. None: all do.

    Returns:
      Each example's share (B/2) Σ_j (k^s_ij − k^t_ij)² ≥ 0, with k = K / ‖K‖; their mean is the formula above, a number
      between 0 and 1.

    Raises:
      ValueError: an argument has only one axis, or the batches differ.

    Example:
      Place, size and rotation of the cloud of features do not count:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import kernel_alignment
      >>> teacher = jax.random.normal(jax.random.key(0), (4, 2))
      >>> quarter_turn = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
      >>> bool((kernel_alignment(3.0 * teacher @ quarter_turn + 1.0, teacher) < 1e-6).all())
      True

    Note:
      Often shown under the name of PKT, which is another loss: `pkt`. As squares the value keeps its digits near 0,
      where 1 − alignment has none. A cloud without spread has K = 0 and no direction: the mean is then 1/2 against a
      cloud with spread, and 0 against another without, each with zero gradient at the point.

    Reference:
      Kornblith et al., Similarity of Neural Network Representations Revisited, 2019, section 3.
      https://arxiv.org/abs/1905.00414
    """
    student, teacher = feature_pair(student, teacher, where)
    difference = _kernel_direction(student, centred, where) - _kernel_direction(teacher, centred, where)
    return 0.5 * _math.count(student, where) * jnp.sum(difference**2, axis=1)


def _row_similarities(features: Float[Array, "batch dim"]) -> Float[Array, "batch batch"]:
    return _math.unit(_math.gram(_math.over_largest(features, (0, 1))), (1,))


def _gaussian_kernel(
    features: Float[Array, "batch dim"], gamma: Number, order: int | None
) -> Float[Array, "batch batch"]:
    exponents = 2.0 * gamma * _math.gram(_math.unit(features, (1,)))
    if order is None:
        return jnp.exp(exponents - 2.0 * gamma)
    powers = sum(exponents**power / math.factorial(power) for power in range(order + 1))
    return jnp.exp(-2.0 * jnp.asarray(gamma, features.dtype)) * powers


def _kernel_direction(features: Float[Array, "batch dim"], centred: bool, where: Any) -> Float[Array, "batch batch"]:
    if centred:
        # First about one example, which changes nothing but rounding: equal examples are then exactly at 0, which is
        # not so about a rounded mean. Here the mean's gradient counts, unlike in `_math.centred`.
        first = features[:1] if where is None else features[jnp.argmax(where)][None]
        features = _math.kept(features - jax.lax.stop_gradient(first), where)
        mean = jnp.sum(features, axis=0, keepdims=True) / _math.count(features, where)
        features = _math.kept(features - mean, where)
    return _math.unit(_math.gram(_math.over_largest(features, (0, 1))), (0, 1))
