"""Factor transfer: the teacher's feature told in fewer channels, and the student's told in the same."""

from functools import partial
from itertools import pairwise

import jax
from jaxtyping import Array, PRNGKeyArray

from kdjax import _checks
from kdjax._types import Outputs, Tree, Weights
from kdjax.connectors._connector import Added, Connector, Seen, pair_of, read_places
from kdjax.connectors.bricks import apply_chain, init_chain, join


def paraphraser(teacher: str, *, rate: float = 0.5) -> Connector:
    """An autoencoder of the teacher's feature, to be trained before the student.

    Adds ``name``: to the student's features the reconstruction, to the teacher's the original, so that the term is
    ``on_feature(hint, name)``; and ``name_factor``, the code between them, to the student's. Three 3 × 3 convolutions lead
    to the factor and three back, each with batch normalisation and a leaky ReLU of slope 0.1.

    Args:
      teacher: the name of the teacher's feature, [batch, height, width, channels].
      rate: the factor's channels over the teacher's, above 0; the number is rounded, and 1 at least.

    Returns:
      A `Connector`. It trains with no student: give the step `no_student`, then `translator` the `connector_of` the state.

    Raises:
      ValueError: `rate` is not a finite number above 0; later, if the feature is missing or no map.

    Example:
      >>> import jax.numpy as jnp
      >>> shapes = Outputs(None, {"stage2": jax.ShapeDtypeStruct((2, 4, 4, 6), jnp.float32)})
      >>> paraphraser("stage2").init(jax.random.key(0), shapes, shapes).params["encoder"]["layer3"]["kernel"].shape
      (3, 3, 3, 3)

    Note:
      At stride 1 a transposed convolution is a convolution, so the way back uses those. Common code normalises and bends
      the last layer too, as here, although a reconstruction then has few negative numbers; teachers' features mostly come
      after a ReLU.

    Reference:
      Kim, Park and Kwak, Paraphrasing Complex Network: Network Compression via Factor Transfer, 2018, section 3.1.
      https://arxiv.org/abs/1802.04977
    """
    _checks.positive("rate", rate)
    place = f"teacher.{teacher}"

    def init(rng: PRNGKeyArray, of_student: Outputs, of_teacher: Outputs) -> Weights:
        (feature,) = read_places([place], of_student, of_teacher, axes=(4,))
        channels = feature.shape[-1]
        factor = max(1, round(rate * channels))
        first, second = jax.random.split(rng)
        encoder = _init_convolutions(first, (channels, channels, factor, factor))
        decoder = _init_convolutions(second, (factor, factor, channels, channels))
        return join({"encoder": encoder, "decoder": decoder})

    def apply(params: Tree, model_state: Tree, seen: Seen) -> Added:
        (original,) = read_places([place], seen.student, seen.teacher)
        factor, encoder = _factor(params["encoder"], model_state["encoder"], original, seen.train)
        again, decoder = _factor(params["decoder"], model_state["decoder"], factor, seen.train)
        return {"": again, "factor": factor}, {"": original}, {"encoder": encoder, "decoder": decoder}

    return Connector(init, apply, (place,))


def translator(student: str, teacher: str | None = None, *, paraphraser: Weights) -> Connector:
    """The student's factor against the teacher's, which a trained paraphraser tells.

    Adds ``name`` to both: the factors, [batch, height, width, factor]. The term is
    ``on_feature(kdjax.losses.factor_transfer, name)``. The translator is three 3 × 3 convolutions, as in `paraphraser`.

    Args:
      student: the name of the student's feature, [batch, height, width, channels].
      teacher: the name of the teacher's, with which the paraphraser was trained; None: the same.
      paraphraser: its weights, from `connector_of`. They are in the translator's model_state, where no optimiser and no
        gradient meets them, and it runs in inference mode.

    Returns:
      A `Connector`.

    Raises:
      ValueError: `paraphraser` is none; later, if a feature is missing or no map, or the teacher's has other channels than
        the paraphraser was trained with.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdjax.connectors import paraphraser
      >>> shapes = Outputs(None, {"stage2": jax.ShapeDtypeStruct((2, 4, 4, 6), jnp.float32)})
      >>> trained = paraphraser("stage2").init(jax.random.key(0), shapes, shapes)  # and then trained
      >>> sorted(translator("stage2", paraphraser=trained).init(jax.random.key(1), shapes, shapes).model_state)
      ['layers', 'paraphraser']

    Note:
      The paper compares whole normalised factors; common code and `factor_transfer` their attention maps.

    Reference:
      Kim, Park and Kwak, Paraphrasing Complex Network: Network Compression via Factor Transfer, 2018, section 3.2.
      https://arxiv.org/abs/1802.04977
    """
    if "encoder" not in paraphraser.params:
        raise ValueError("paraphraser must be the Weights of a trained paraphraser, from connector_of(state, name).")
    encoder = Weights(paraphraser.params["encoder"], paraphraser.model_state["encoder"])
    places = pair_of(student, teacher)

    def init(rng: PRNGKeyArray, of_student: Outputs, of_teacher: Outputs) -> Weights:
        own, others = read_places(places, of_student, of_teacher, axes=(4,))
        told = encoder.params["layer1"]["kernel"].shape[2]
        if others.shape[-1] != told:
            raise ValueError(
                f"{places[1]} must have the {told} channels that the paraphraser was trained with; "
                f"got shape {tuple(others.shape)}."
            )
        factor = encoder.params["layer3"]["kernel"].shape[3]
        layers = _init_convolutions(rng, (own.shape[-1], own.shape[-1], factor, factor))
        return Weights(layers.params, {"layers": layers.model_state, "paraphraser": encoder})

    def apply(params: Tree, model_state: Tree, seen: Seen) -> Added:
        own, others = read_places(places, seen.student, seen.teacher)
        mine, layers = _factor(params, model_state["layers"], own, seen.train)
        frozen: Weights = model_state["paraphraser"]
        wanted, _ = _factor(frozen.params, frozen.model_state, others, False)
        return {"": mine}, {"": wanted}, {**model_state, "layers": layers}

    return Connector(init, apply, places)


def _init_convolutions(rng: PRNGKeyArray, channels: tuple[int, ...]) -> Weights:
    shapes = [(3, 3, *pair) for pair in pairwise(channels)]
    return init_chain(rng, shapes, normalize=True, activated_last=True)


def _factor(params: Tree, model_state: Tree, x: Array, train: bool) -> tuple[Array, Tree]:
    leaky_relu = partial(jax.nn.leaky_relu, negative_slope=0.1)
    return apply_chain(params, model_state, x, train=train, activation=leaky_relu, activated_last=True)
