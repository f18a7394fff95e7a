"""The similarity graph of a batch: who is near whom, by the labels and by the teacher."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kdjax import _checks
from kdjax._types import Number
from kdjax.losses import _math
from kdjax.losses._relations import feature_pair


def similarity_graph(
    student: Float[Array, " batch *student_dims"],
    teacher: Float[Array, " batch *teacher_dims"],
    labels: Int[Array, " batch"],
    *,
    temperature: Number = 0.1,
    neighbours: int | None = None,
    hardest: int | None = None,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Pulls examples of a class together, and the graph of cosines towards the teacher's.

    With the cosines s_ij and t_ij of examples i and j in each network, the sum of a contrastive part and a graph part:

    $$\frac{1}{\left|P_i\right|} \sum_{j \in P_i}
    \left[\log \sum_{k \in P_i \cup N_i} \exp(s_{ik} / \tau) - \frac{s_{ij}}{\tau}\right]
    + \frac{1}{\left|E_i\right|} \sum_{j \in E_i} (s_{ij} - t_{ij})^2$$

    P_i: the other examples of i's class. N_i: the examples of other classes, or those of them with the largest s_ij.
    E_i: all other examples, or those with the largest t_ij. An empty P_i or E_i makes its part 0.

    Args:
      student: features [batch, dim], or [batch, …], which are flattened.
      teacher: features of the same examples; dim may differ. It enters the graph part alone.
      labels: class numbers.
      temperature: τ > 0, in units of the cosine; smaller looks at the nearest alone. May be traced.
      neighbours: how many of its nearest examples by the teacher E_i keeps; None keeps all.
      hardest: how many of its nearest negatives by the student N_i keeps; None keeps all.
      where: which examples count, bools [batch]; the others are as if they were not there, and get 0. None: all do.

    Returns:
      Each example's share, a number ≥ 0.

    Raises:
      ValueError: an argument has only one axis, the batches differ, labels are not whole numbers [batch], τ is not a
        finite number above 0, or `neighbours` or `hardest` is not a whole number above 0.

    Example:
      Where no two labels are equal there is nothing to contrast, and equal graphs have no difference:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import similarity_graph
      >>> teacher = jax.random.normal(jax.random.key(0), (3, 4))
      >>> similarity_graph(2.0 * teacher, teacher, jnp.array([0, 1, 2])).round(5).tolist()
      [0.0, 0.0, 0.0]
      >>> bool((similarity_graph(teacher, teacher, jnp.array([0, 0, 2]))[:2] > 0).all())
      True

    Note:
      The contrastive part is the supervised contrastive loss with its sum outside the logarithm. Where examples tie for
      the last place among `neighbours` or `hardest`, all of them share it in equal parts, so that the order of the batch
      does not count. Code found under this name takes the logarithm of masked zeros, and similarities of features that
      are not normalised. A zero vector has cosine 0 with everything and zero gradient.

    Reference:
      Khosla et al., Supervised Contrastive Learning, 2020, equation 2. https://arxiv.org/abs/2004.11362
    """
    _checks.temperature("temperature", temperature)
    for name, count in (("neighbours", neighbours), ("hardest", hardest)):
        if count is not None:
            _checks.whole(name, count, 1)
    student, teacher = feature_pair(student, teacher, where)
    labels = _checks.labels("labels", labels, student.shape[:1])
    of_student, of_teacher = (_math.gram(_math.unit(features, (1,))) for features in (student, teacher))
    same = labels[:, None] == labels[None, :]
    others = ~jnp.eye(student.shape[0], dtype=bool)
    negatives = ~same
    if where is not None:
        others, negatives = others & _math.pairs(where), negatives & _math.pairs(where)
    edges = _largest(of_teacher, others, neighbours)
    graph = jnp.sum(edges * (of_student - of_teacher) ** 2, axis=1) / jnp.maximum(jnp.sum(edges, axis=1), 1.0)
    return _contrast(of_student / temperature, same & others, _largest(of_student, negatives, hardest)) + graph


def _contrast(
    scores: Float[Array, "batch batch"], positives: Bool[Array, "batch batch"], negatives: Float[Array, "batch batch"]
) -> Float[Array, " batch"]:
    count = jnp.sum(positives, axis=1)
    # An example without positives gives 0; until then its sum runs over everything, for a sum over nothing has no log.
    weights = jnp.where(count[:, None] == 0, 1.0, positives + negatives)
    log_sum = jax.nn.logsumexp(scores, axis=1, b=weights, keepdims=True)
    return jnp.sum(jnp.where(positives, log_sum - scores, 0.0), axis=1) / jnp.maximum(count, 1)


def _largest(
    values: Float[Array, "batch batch"], allowed: Bool[Array, "batch batch"], count: int | None
) -> Float[Array, "batch batch"]:
    """1 for each row's `count` largest among the allowed, 0 for the rest; ties for the last places share them."""
    if count is None or count >= values.shape[1]:
        return allowed.astype(values.dtype)
    values = jax.lax.stop_gradient(values)
    last = jax.lax.top_k(jnp.where(allowed, values, -jnp.inf), count)[0][:, -1:]
    # Cosines that are equal on paper differ by rounding.
    noise = 32.0 * float(jnp.finfo(values.dtype).eps)
    above = allowed & (values > last + noise)
    tied = allowed & (jnp.abs(values - last) <= noise)
    places = (count - jnp.sum(above, axis=1, keepdims=True)) / jnp.maximum(jnp.sum(tied, axis=1, keepdims=True), 1)
    return jnp.where(tied, places, above).astype(values.dtype)
