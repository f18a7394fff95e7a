"""A connector in which each of the student's layers attends to those of the teacher's that mean the same."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from kdjax import _checks
from kdjax._types import Outputs, Tree, Weights
from kdjax.connectors._connector import Added, Connector, Names, Seen, read_places, stages_of
from kdjax.connectors.bricks import apply_chain, at_least_float32, average_to_one_size, flatten, init_chain, join
from kdjax.losses import _math, hint


def semantic_calibration(students: Names, teachers: Names | None = None, *, batch_size: int) -> Connector:
    r"""Semantic calibration: every layer of the student learns from all of the teacher's, by a learnt attention.

    $$\sum_{s,t} \alpha_{st} \, \frac{1}{N} \| A^t - \text{Proj}_{st}(A^s) \|^2, \qquad
    \alpha_{st} = \frac{\exp(Q_s \cdot K_t)}{\sum_u \exp(Q_s \cdot K_u)}$$

    all for one example: Q_s and K_t, of length 1, are what two dense layers with a ReLU between them make of the example's
    row in the batch's matrix of inner products, F Fᵀ of the flattened features F. Every layer has dense layers of its own,
    every pair a projection of three convolutions, 1 × 1, 3 × 3 and 1 × 1, ReLUs between them.

    Adds to the student's features ``name``, [batch], the loss, and ``name_attention``, α, [batch, students, teachers].

    Args:
      students: names of the student's features, [batch, height, width, channels].
      teachers: the teacher's; None: the same names. They may be more or fewer.
      batch_size: of the whole batch in training, which is the length of the rows that the attention reads.

    Returns:
      A `Connector`. Its loss is of a batch of `batch_size` examples only.

    Raises:
      ValueError: there are no names, one of the student's stands twice, or `batch_size` is no whole number or less than 4;
        later, if a feature is missing or no map, or the batch has another size.

    Example:
      >>> from kdjax.objectives import computed, weighted_sum
      >>> beside = {"semckd": semantic_calibration(("stage1", "stage2"), batch_size=8)}
      >>> objective = weighted_sum(layers=(1.0, computed("semckd")))
      >>> maps = {"stage1": jnp.ones((8, 4, 4, 3)), "stage2": jnp.ones((8, 2, 2, 6))}
      >>> seen = Seen(Outputs(None, maps), Outputs(None, maps), {}, True, None)
      >>> weights = beside["semckd"].init(jax.random.key(0), seen.student, seen.teacher)
      >>> added, _, _ = beside["semckd"].apply(*weights, seen)
      >>> added["attention"].sum(2).shape, bool(jnp.allclose(added["attention"].sum(2), 1.0))
      ((8, 2), True)

    Note:
      Length 1, the dense layers' widths (half and a quarter of the batch), the projections' (twice the teacher's channels)
      and averaging down the larger of two maps are those of the paper's code. It also has batch normalisation in the
      projections, and divides by the number of the student's layers.

    Reference:
      Chen et al., Cross-Layer Distillation with Semantic Calibration, 2021, "Semantic Calibration for Distillation".
      https://arxiv.org/abs/2012.03236
    """
    own, others = stages_of(students, teachers)
    places, pairs = (*own, *others), [(place, other) for place in own for other in others]
    _checks.whole("batch_size", batch_size, 4)

    def init(rng: PRNGKeyArray, of_student: Outputs, of_teacher: Outputs) -> Weights:
        maps = dict(zip(places, read_places(places, of_student, of_teacher, axes=(4,)), strict=True))
        layers = {place: [(batch_size, batch_size // 2), (batch_size // 2, batch_size // 4)] for place in places}
        channels = [(maps[place].shape[-1], maps[other].shape[-1]) for place, other in pairs]
        projections = [[(a, 2 * b), (3, 3, 2 * b, 2 * b), (2 * b, b)] for a, b in channels]
        shapes = layers | dict(zip(map(" to ".join, pairs), projections, strict=True))
        keys = jax.random.split(rng, len(shapes))
        return join({name: init_chain(key, shapes[name]) for name, key in zip(shapes, keys, strict=True)})

    def apply(params: Tree, model_state: Tree, seen: Seen) -> Added:
        run = {name: partial(apply_chain, params[name], model_state[name], train=seen.train) for name in params}
        maps = dict(zip(places, read_places(places, seen.student, seen.teacher, axes=(4,)), strict=True))
        if (got := maps[places[0]].shape[0]) != batch_size:
            raise ValueError(f"The batch must have the connector's batch_size, {batch_size} examples; got {got}.")
        rows = {place: _math.gram(at_least_float32(flatten(x))) for place, x in maps.items()}
        vectors = {place: _math.unit(run[place](x)[0], (1,)) for place, x in rows.items()}
        scores = [jnp.sum(vectors[place] * vectors[other], axis=1) for place, other in pairs]
        attention = jax.nn.softmax(jnp.stack(scores, 1).reshape(-1, len(own), len(others)), axis=2)
        met = [average_to_one_size(maps[place], maps[other]) for place, other in pairs]
        apart = [hint(run[" to ".join(pair)](x)[0], wanted) for pair, (x, wanted) in zip(pairs, met, strict=True)]
        loss = jnp.sum(attention.reshape(-1, len(pairs)) * jnp.stack(apart, 1), axis=1)
        return {"": loss, "attention": attention}, {}, model_state

    return Connector(init, apply, places, compares_examples=True)
