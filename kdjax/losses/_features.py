"""Losses that match activations directly: feature maps [batch, height, width, channels], or [batch, …] where said."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax import _checks
from kdjax._types import AnyArray, Number
from kdjax.losses import _math


def hint(
    student: Float[Array, " batch *dims"],
    teacher: Float[Array, " batch *dims"],
) -> Float[Array, " batch"]:
    r"""Mean squared difference of the features.

    $$\frac{1}{N} \sum_n (A^s_n - A^t_n)^2$$

    The sum is over all N elements of an example's features.

    Args:
      student: features of any shape [batch, …], after the connector where the two networks' shapes differ.
      teacher: features of the same shape.

    Returns:
      One number ≥ 0 per example.

    Raises:
      ValueError: the shapes differ, or have only one axis.

    Example:
      Each example's number is its own, whatever stands beside it:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import hint
      >>> student, teacher = jnp.array([[1.0, 1.0], [4.0, 0.0]]), jnp.zeros((2, 2))
      >>> hint(student, teacher).tolist()
      [1.0, 8.0]

    Note:
      The paper halves the squared norm and does not divide by the number of elements; the mean is common now.

    Reference:
      Romero et al., FitNets: Hints for Thin Deep Nets, 2015, equation 3. https://arxiv.org/abs/1412.6550
    """
    _checks.rank_at_least("student", student, 2, "[batch, ...]")
    _checks.same_shape("student", student, "teacher", teacher)
    student, teacher = _math.widened(student, teacher)
    return _math.per_example_mean(_math.squared_difference(student, teacher))


def cosine(
    student: Float[Array, " batch *dims"],
    teacher: Float[Array, " batch *dims"],
) -> Float[Array, " batch"]:
    r"""How far the features' directions are apart.

    $$1 - \frac{\langle A^s, A^t \rangle}{\lVert A^s \rVert \, \lVert A^t \rVert}$$

    All axes but the batch are flattened.

    Args:
      student: features of any shape [batch, …], after the connector where the two networks' shapes differ.
      teacher: features of the same shape.

    Returns:
      One number between 0 and 2 per example, to rounding.

    Raises:
      ValueError: the shapes differ, or have only one axis.

    Example:
      Only directions count, not lengths:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import cosine
      >>> teacher = jnp.array([[3.0, 0.0], [0.0, 5.0], [1.0, 0.0]])
      >>> student = jnp.array([[1.0, 0.0], [1.0, 0.0], [-7.0, 0.0]])
      >>> cosine(student, teacher).tolist()
      [0.0, 1.0, 2.0]

    Note:
      The paper takes it over hidden states of tokens. A zero vector has cosine 0 with everything, another zero vector
      included, hence the value 1 and zero gradient.

    Reference:
      Sanh et al., DistilBERT, a Distilled Version of BERT, 2019, section 2. https://arxiv.org/abs/1910.01108
    """
    _checks.rank_at_least("student", student, 2, "[batch, ...]")
    _checks.same_shape("student", student, "teacher", teacher)
    student, teacher = _math.widened(student, teacher)
    axes = tuple(range(1, student.ndim))
    return 1.0 - jnp.sum(_math.unit(student, axes) * _math.unit(teacher, axes), axis=axes)


def variational_information(
    student_mean: Float[Array, " batch *dims"],
    teacher: Float[Array, " batch *dims"],
    *,
    raw_variance: Float[AnyArray, " channels"],
    eps: Number = 1e-5,
) -> Float[Array, " batch"]:
    r"""Negative log-likelihood of the teacher's features under a Gaussian that the student predicts.

    $$\frac{1}{N} \sum_n \frac{1}{2} \left(\frac{(\mu_n - t_n)^2}{\sigma_c^2} + \log \sigma_c^2\right), \qquad
    \sigma_c^2 = \operatorname{softplus}(\text{raw}_c) + \varepsilon$$

    The sum is over all N elements; c is the channel that element n lies in.

    Args:
      student_mean: μ, the connector's prediction of the teacher's features, [batch, …, channels].
      teacher: features of the same shape.
      raw_variance: [channels]. It is learnt, hence it lives in the student's params beside the connector.
      eps: ε > 0, the smallest variance. May be traced.

    Returns:
      One number ≥ ½ mean_c log σ_c² per example; it may be negative.

    Raises:
      ValueError: the shapes differ or have only one axis, `raw_variance` is not one number per channel, or ε is not a
        finite number above 0.

    Example:
      A channel of large variance is one that the student need not predict:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import variational_information
      >>> mean, teacher = jnp.zeros((1, 2)), jnp.array([[0.0, 3.0]])
      >>> sure, unsure = jnp.array([1.0, 1.0]), jnp.array([1.0, 9.0])
      >>> bool(variational_information(mean, teacher, raw_variance=unsure)[0]
      ...      < variational_information(mean, teacher, raw_variance=sure)[0])
      True

    Note:
      The paper sums over all elements; common code takes the mean, as here, and both leave the constant ½ log 2π out. A
      variance that no optimiser is given stays as it was initialised, which is a common mistake. The gradient grows as 1/σ²:
      for a variance near ε and a large error it leaves float16's range.

    Reference:
      Ahn et al., Variational Information Distillation for Knowledge Transfer, 2019, equations 5 and 6.
      https://arxiv.org/abs/1904.05835
    """
    _checks.positive("eps", eps)
    _checks.rank_at_least("student_mean", student_mean, 2, "[batch, ..., channels]")
    _checks.same_shape("student_mean", student_mean, "teacher", teacher)
    _checks.per_channel("raw_variance", raw_variance, "student_mean", student_mean)
    _checks.floating("student_mean", student_mean)
    student_mean, teacher = _math.widened(student_mean, teacher)
    variance = jax.nn.softplus(jnp.asarray(raw_variance, student_mean.dtype)) + eps
    variance = variance.reshape((1,) * (student_mean.ndim - 1) + variance.shape)
    return _math.per_example_mean(0.5 * ((student_mean - teacher) ** 2 / variance + jnp.log(variance)))


def hierarchical_context(
    student: Float[Array, "batch height width channels"],
    teacher: Float[Array, "batch height width channels"],
    *,
    levels: tuple[int, ...] = (4, 2, 1),
) -> Float[Array, " batch"]:
    r"""Mean squared difference of the features, at full size and averaged down to smaller and smaller maps.

    $$\frac{1}{\sum_k w_k} \sum_k w_k \operatorname{MSE}(\operatorname{pool}_k(A^s), \operatorname{pool}_k(A^t)),
    \qquad w_k = 2^{-k}$$

    Here pool_0 changes nothing, pool_k averages to l_k × l_k, and w = 1, ½, ¼, … goes to the maps in this order. A level
    that is not smaller than the map is left out and takes no weight.

    Args:
      student: features after the fusion module, of the teacher's shape.
      teacher: features.
      levels: the sides l_k of the averaged maps, coarser and coarser. Where a side does not divide the map's, the windows
        overlap.

    Returns:
      One number ≥ 0 per example.

    Raises:
      ValueError: an argument is not [batch, height, width, channels], the shapes differ, or a level is not a whole number
        above 0.

    Example:
      Noise that averages out counts for less than a shift of the same size:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import hierarchical_context
      >>> teacher = jnp.zeros((1, 2, 2, 1))
      >>> noise = jnp.array([1.0, -1.0, -1.0, 1.0]).reshape(1, 2, 2, 1)
      >>> (hierarchical_context(noise, teacher) < hierarchical_context(teacher + 1.0, teacher)).tolist()
      [True]

    Note:
      The paper gives no weights; these are its code's, which compares a level with the height alone. Here a level is left
      out where it is larger than height or width, or equal to both.

    Reference:
      Chen et al., Distilling Knowledge via Knowledge Review, 2021, section 3.3. https://arxiv.org/abs/2104.09044
    """
    for place, level in enumerate(levels):
        _checks.whole(f"levels[{place}]", level, 1)
    _checks.rank("student", student, 4, "[batch, height, width, channels]")
    _checks.same_shape("student", student, "teacher", teacher)
    student, teacher = _math.widened(student, teacher)
    difference = student - teacher  # averaging is linear: one map to average, and not two
    sides = difference.shape[1:3]
    smaller = [level for level in levels if level <= min(sides) and level < max(sides)]
    maps = [difference, *(_math.adaptive_average_pool(difference, level, level) for level in smaller)]
    weights = [0.5**k for k in range(len(maps))]
    total = sum(w * _math.per_example_mean(m * m) for w, m in zip(weights, maps, strict=True))
    return jnp.asarray(total) / sum(weights)
