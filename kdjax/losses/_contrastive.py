"""Losses that match identity: a student's embedding must find its own teacher's among others.

Student and teacher have one dim, by a connector where they differ, and only the directions of embeddings count.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import Precision
from jaxtyping import Array, Bool, Float, Int

from kdjax import _checks
from kdjax._types import Number
from kdjax.losses import _math
from kdjax.losses._bank import Bank, moved, places

_AS_DEAR = 16  # how many rows of a bank a product takes in the time of one that is gathered; measured on CPUs


def info_nce(
    student: Float[Array, "batch dim"],
    teacher: Float[Array, "batch dim"],
    *,
    temperature: Number = 0.07,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    r"""Cross-entropy of finding one's own partner in the batch, student to teacher and teacher to student.

    $$\frac{1}{2} \left[\log \sum_j \exp(c_{ij} / \tau) + \log \sum_j \exp(c_{ji} / \tau)\right] - \frac{c_{ii}}{\tau},
    \qquad c_{ij} = \cos(s_i, t_j)$$

    Args:
      student: embeddings, after a connector where dims differ.
      teacher: embeddings of the same examples.
      temperature: τ > 0, in units of the cosine. May be traced.
      where: which examples count, bools [batch]; the others are as if they were not there, and get 0. None: all do.

    Returns:
      Each example's share, a number ≥ 0 in nats; log B where nothing is known. A batch that is split over devices must
      be gathered before.

    Raises:
      ValueError: the shapes differ or are not [batch, dim], or τ is not a finite number above 0.

    Example:
      Partners are told apart where they point alike, however long they are:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import info_nce
      >>> teacher = jnp.eye(3)
      >>> info_nce(5.0 * teacher, teacher).round(4).tolist()
      [0.0, 0.0, 0.0]
      >>> bool(jnp.allclose(info_nce(jnp.ones((3, 3)), teacher), jnp.log(3.0)))
      True

    Note:
      The paper has one direction, from a context to what is predicted; with two networks both are common now, and their
      mean is taken. Examples of one class are each other's negatives. A zero vector has cosine 0 and zero gradient.

    Reference:
      Van den Oord, Li and Vinyals, Representation Learning with Contrastive Predictive Coding, 2018, equation 4.
      https://arxiv.org/abs/1807.03748
    """
    _checks.temperature("temperature", temperature)
    student, teacher = _embedding_pair(student, teacher, where)
    scores = jnp.einsum("id,jd->ij", student, teacher, precision=Precision.HIGHEST) / temperature
    if where is not None:
        # One that does not count is left with itself: its share is 0.
        scores = jnp.where(_math.pairs(where) | jnp.eye(len(where), dtype=bool), scores, -jnp.inf)
    among_teachers, among_students = (jax.nn.logsumexp(scores, axis=axis) for axis in (1, 0))
    return 0.5 * (among_teachers + among_students) - jnp.diagonal(scores)


def similarity_distribution(
    student: Float[Array, "batch dim"],
    teacher: Float[Array, "batch dim"],
    queue: Float[Array, "queue dim"],
    *,
    temperatures: tuple[Number, Number],
) -> Float[Array, " batch"]:
    r"""Cross-entropy between whom the teacher and whom the student finds similar, without labels.

    $$-\sum_j p_j \log q_j, \qquad p = \operatorname{softmax}_j(\cos(t, d_j) / \tau_t), \qquad
    q = \operatorname{softmax}_j(\cos(s, d_j) / \tau_s)$$

    The d_j are the queue's embeddings d_1 … d_K and, as one more, the teacher's own embedding t of the example.

    Args:
      student: embeddings, after a connector where dims differ.
      teacher: embeddings of the same examples.
      queue: the teacher's embeddings of other examples, such as of the batches before. One at least.
      temperatures: τ_s, τ_t > 0, the student's and the teacher's; the paper uses (0.2, 0.01). May be traced.

    Returns:
      One number ≥ 0 per example, in nats. Its least is the entropy of p, which the student cannot move.

    Raises:
      ValueError: the shapes differ or are not [batch, dim] and [queue, dim], `temperatures` is not a pair, or one of them
        is not a finite number above 0.

    Example:
      Where the queue is far from the example, the teacher's own embedding is all there is to find:

      >>> import jax.numpy as jnp
      >>> from kdjax.losses import similarity_distribution
      >>> teacher, queue = jnp.array([[1.0, 0.0]]), jnp.array([[-1.0, 0.0], [0.0, 1.0]])
      >>> similarity_distribution(teacher, teacher, queue, temperatures=(0.1, 0.1)).round(3).tolist()
      [0.0]
      >>> similarity_distribution(-teacher, teacher, queue, temperatures=(0.1, 0.1)).round(3).tolist()
      [20.0]

    Note:
      The teacher's own place is what tells an example from all others; code that leaves it out only compares
      neighbourhoods. A zero vector has cosine 0 with everything and zero gradient.

    Reference:
      Fang et al., SEED: Self-supervised Distillation for Visual Representation, 2021, section 3.2.
      https://arxiv.org/abs/2101.04731
    """
    if not (isinstance(temperatures, tuple) and len(temperatures) == 2):
        raise _checks.OutOfRangeError(
            "temperatures", f"must be a pair, the student's and the teacher's; got {temperatures!r}."
        )
    for position, temperature in enumerate(temperatures):
        _checks.temperature(f"temperatures[{position}]", temperature)
    student, teacher = _embedding_pair(student, teacher)
    _checks.floating("queue", queue)
    if jnp.ndim(queue) != 2 or queue.shape[0] == 0 or queue.shape[1] != student.shape[1]:
        raise ValueError(f"queue must have shape [queue, {student.shape[1]}], as student; got {tuple(queue.shape)}.")
    queue = _math.unit(jnp.asarray(queue, student.dtype), (1,))

    def log_similarities(anchor: Array, temperature: Number) -> Float[Array, "batch one_more"]:
        own = jnp.sum(anchor * teacher, axis=1, keepdims=True)
        others = jnp.einsum("id,jd->ij", anchor, queue, precision=Precision.HIGHEST)
        return jax.nn.log_softmax(jnp.concatenate([own, others], axis=1) / temperature, axis=1)

    of_student, of_teacher = map(log_similarities, (student, teacher), temperatures)
    return -jnp.sum(jnp.exp(of_teacher) * of_student, axis=1)


def crd(
    student: Float[Array, "batch dim"],
    teacher: Float[Array, "batch dim"],
    indices: Int[Array, " batch"],
    bank: Bank,
    negatives: Int[Array, "batch count"],
    *,
    temperature: Number = 0.07,
    momentum: Number = 0.5,
    warmup: int = 100,
    chunk: int = 512,
) -> tuple[Float[Array, " batch"], Bank]:
    r"""Tells each embedding's own partner in the other network's bank from drawn others, in both directions.

    $$-\log D(a \cdot v_+) - \sum_{k=1}^{m} \log(1 - D(a \cdot v_k)), \qquad
    D(c) = \frac{p}{p + m / N}, \qquad p = \frac{\exp(c / \tau)}{Z}$$

    It is the sum of this with the student's embeddings as anchors a and the teacher's bank as v, its entry v₊ the
    anchor's partner, and of the same with the two networks exchanged.

    D is the probability that a partner came from the data rather than from m noise draws over N bank entries. Its
    log-odds c/τ − log Z − log(m/N) are computed as they stand, so exp(1/τ) is never formed and no τ overflows.

    Args:
      student: embeddings, after a connector where dims differ.
      teacher: embeddings of the same examples; the gradient goes into these too, for a connector behind the teacher.
      indices: the examples' places in the bank.
      bank: from `init_bank` or from the batch before. A constant: no gradient goes into or comes out of it.
      negatives: places of m others for each example, from `draw_negatives`.
      temperature: τ > 0. May be traced.
      momentum: how much of an entry stays when its example is seen, between 0 and 1. May be traced.
      warmup: how many first batches Z is averaged over. Each gives N times the mean of exp(c / τ) over its negatives; the
        first batch uses its own, every other the mean of those before it, and after `warmup` batches Z stays.
      chunk: how many negatives are gathered at a time: memory is O(batch · chunk · dim), forward and backward.

    Returns:
      One number ≥ 0 per example, and the new bank. There an example's entry is momentum · entry + (1 − momentum) ·
      embedding, at length 1; of an example that stands twice in the batch, the mean of its embeddings. Where that sum
      is 0, the entry stays.

    Raises:
      ValueError: shapes do not fit each other, indices or negatives are no whole numbers, τ is not a finite number above
        0, the momentum is outside 0 … 1, or `warmup` or `chunk` is not a whole number above 0.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from kdjax.losses import crd, draw_negatives, init_bank
      >>> bank = init_bank(jax.random.key(0), 10, 4)
      >>> student, teacher = jax.random.normal(jax.random.key(1), (2, 3, 4))
      >>> indices = jnp.array([7, 1, 2])
      >>> negatives = draw_negatives(jax.random.key(2), indices, 5, 10)
      >>> values, bank = crd(student, teacher, indices, bank, negatives)
      >>> values.shape, int(bank.batches)
      ((3,), 1)

    Note:
      The paper leaves Z open. Common code takes it from the very first batch and keeps it; the mean of many first batches
      is the same without that batch's chance. There the anchor's own partner counts in that mean too; here Z is of the
      noise alone. As there, an anchor's own partner is the bank's entry, not the batch's embedding. An index outside
      the bank, also a negative one, makes the example's loss NaN.

    Reference:
      Tian, Krishnan and Isola, Contrastive Representation Distillation, 2020, section 3.1.
      https://arxiv.org/abs/1910.10699
    """
    _checks.temperature("temperature", temperature)
    _checks.between("momentum", momentum, 0.0, 1.0)
    _checks.whole("warmup", warmup, 1)
    _checks.whole("chunk", chunk, 1)
    student, teacher = _embedding_pair(student, teacher)
    places("indices", indices)
    _checks.same_batch("student", student, "indices", indices)
    _fitting(student, bank, negatives)
    bank = lax.stop_gradient(bank)
    size = bank.student.shape[0]
    in_bank = (indices >= 0) & (indices < size) & jnp.all((negatives >= 0) & (negatives < size), axis=1)

    values, estimates = [], []
    for anchors, memory, kept in (
        (student, bank.teacher, bank.log_normalisers[0]),
        (teacher, bank.student, bank.log_normalisers[1]),
    ):
        own = _cosines(anchors, memory, indices[:, None], 1)[:, 0] / temperature
        others = _cosines(anchors, memory, negatives, chunk) / temperature
        count = negatives.shape[1]
        estimate = lax.stop_gradient(jax.nn.logsumexp(others) + math.log(size / others.size))
        # What p must exceed for a partner to be likelier than noise: Z m/N, as a logarithm.
        threshold = jnp.where(bank.batches == 0, estimate, kept) + math.log(count / size)
        values.append(jax.nn.softplus(threshold - own) + jnp.sum(jax.nn.softplus(others - threshold), axis=1))
        estimates.append(estimate)

    # The mean of Z over the batches so far, in logarithms. After the warm-up the weight is 0, and its logarithm −∞.
    weight = jnp.where(bank.batches < warmup, 1.0 / (bank.batches + 1), 0.0)
    log_normalisers = jnp.logaddexp(bank.log_normalisers + jnp.log1p(-weight), jnp.stack(estimates) + jnp.log(weight))
    return jnp.where(in_bank, values[0] + values[1], jnp.nan), Bank(
        moved(bank.student, indices, lax.stop_gradient(student), momentum),
        moved(bank.teacher, indices, lax.stop_gradient(teacher), momentum),
        log_normalisers.astype(bank.log_normalisers.dtype),
        bank.batches + 1,
    )


def _cosines(
    anchors: Float[Array, "batch dim"], memory: Float[Array, "size dim"], places: Int[Array, "batch count"], chunk: int
) -> Float[Array, "batch count"]:
    if len(memory) <= min(chunk * memory.shape[1], _AS_DEAR * places.shape[1]):
        products = jnp.einsum("bd,sd->bs", anchors, memory.astype(anchors.dtype), precision=Precision.HIGHEST)
        return jnp.take_along_axis(products, places, axis=1, mode="clip")

    # The backward pass gathers once more: kept from the forward pass, all chunks together would be [batch, count, dim].
    @jax.checkpoint
    def of_one_each(place: Int[Array, " batch"]) -> Float[Array, " batch"]:
        entries = memory[place].astype(anchors.dtype)
        return jnp.einsum("id,id->i", anchors, entries, precision=Precision.HIGHEST)

    return lax.map(of_one_each, places.T, batch_size=chunk).T


def _embedding_pair(
    student: Array, teacher: Array, where: Any = None
) -> tuple[Float[Array, "batch dim"], Float[Array, "batch dim"]]:
    """Both with rows of length 1, in float32 at least, 0 where they do not count, or the ValueError that says why not."""
    _checks.rank("student", student, 2, "[batch, dim]")
    _checks.rank("teacher", teacher, 2, "[batch, dim]")
    _checks.same_shape("student", student, "teacher", teacher)
    _checks.where(where, student.shape[:1])
    student, teacher = (_math.kept(rows, where) for rows in _math.widened(student, teacher))
    return _math.unit(student, (1,)), _math.unit(teacher, (1,))


def _fitting(student: Array, bank: Bank, negatives: Array) -> None:
    batch, dim = student.shape
    size = bank.student.shape[0]
    for name, memory in (("bank.student", bank.student), ("bank.teacher", bank.teacher)):
        if memory.shape != (size, dim):
            raise ValueError(f"{name} must have shape [{size}, {dim}]; got {tuple(memory.shape)}.")
    whole_numbers = jnp.issubdtype(jnp.result_type(negatives), jnp.integer)
    if negatives.ndim != 2 or negatives.shape[0] != batch or negatives.shape[1] == 0 or not whole_numbers:
        raise ValueError(
            f"negatives must be whole numbers of shape [{batch}, count]; "
            f"got shape {tuple(negatives.shape)} and dtype {negatives.dtype}."
        )
