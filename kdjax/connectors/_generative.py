"""A connector that generates the teacher's map from what a mask leaves of the student's."""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from kdjax import _checks
from kdjax._types import Number, Outputs, Tree, Weights
from kdjax.connectors._connector import Added, Connector, Seen, key_of, pair_of, read_places
from kdjax.connectors.bricks import apply_chain, average_to_one_size, init_chain, join


def masked_generative(student: str, teacher: str | None = None, *, share: Number = 0.15) -> Connector:
    r"""Masked generative distillation: the student's map, with a share of its positions masked, must give the teacher's.

    $$\text{generated} = W_2 * \max(0, \; W_1 * (M \odot f(A^s))), \qquad M_{ij} = [r_{ij} \ge \lambda], \quad
    r_{ij} \sim U(0, 1)$$

    Adds ``name``: to the student's features the generated map, to the teacher's its own. f is a 1 × 1 convolution to the
    teacher's channels, the identity where the student has as many; W₁ and W₂ are 3 × 3 convolutions. All have biases. Each
    example has a mask of its own, the same for all channels, drawn from the step's key.

    Args:
      student: the name of the student's feature, [batch, height, width, channels].
      teacher: the name of the teacher's; None: the same.
      share: λ, how likely a position is masked, from 0 to less than 1.

    Returns:
      A `Connector`.

    Raises:
      ValueError: `share` is out of range; later, if a feature is missing or no map, or there is no key while training.

    Example:
      The term has the paper's squared error, as a mean over elements:

      >>> from kdjax import losses, on_feature, weighted_sum
      >>> beside = {"mgd": masked_generative("stage2", share=0.5)}
      >>> objective = weighted_sum(generated=(1.0, on_feature(losses.hint, "mgd")))
      >>> shapes = [Outputs(None, {"stage2": jax.ShapeDtypeStruct((2, 4, 4, size), "float32")}) for size in (3, 6)]
      >>> weights = beside["mgd"].init(jax.random.key(0), *shapes)
      >>> weights.params["align"]["layer1"]["kernel"].shape, weights.params["generate"]["layer2"]["kernel"].shape
      ((3, 6), (3, 3, 6, 6))

    Note:
      The paper's loss is a sum over elements, this term's weight is then its α times the teacher's height · width ·
      channels. The default is its λ for classification; for detection it has 0.45 to 0.65. Its code for classification
      masks whole channels instead of positions. The paper's maps have one size; here the larger is averaged down. Outside of
      training nothing is masked.

    Reference:
      Yang et al., Masked Generative Distillation, 2022, equations 1 to 4. https://arxiv.org/abs/2205.01529
    """
    _checks.between("share", share, 0.0, 1.0)
    if share == 1:
        raise ValueError(f"share must be less than 1, or nothing is left to generate from; got {share!r}.")
    places = pair_of(student, teacher)

    def init(rng: PRNGKeyArray, of_student: Outputs, of_teacher: Outputs) -> Weights:
        first, second = jax.random.split(rng)
        own, wanted = (feature.shape[-1] for feature in read_places(places, of_student, of_teacher, axes=(4,)))
        generate = init_chain(second, [(3, 3, wanted, wanted)] * 2)
        return join({"align": init_chain(first, [(own, wanted)] if own != wanted else []), "generate": generate})

    def apply(params: Tree, model_state: Tree, seen: Seen) -> Added:
        own, wanted = average_to_one_size(*read_places(places, seen.student, seen.teacher, axes=(4,)))
        x, _ = apply_chain(params["align"], model_state["align"], own, train=seen.train)
        if seen.train:
            kept = jax.random.uniform(key_of(seen.rng, "a masked student"), (*x.shape[:3], 1)) >= share
            x = jnp.where(kept, x, 0.0)
        made, _ = apply_chain(params["generate"], model_state["generate"], x, train=seen.train)
        return {"": made}, {"": wanted}, model_state

    return Connector(init, apply, places)
