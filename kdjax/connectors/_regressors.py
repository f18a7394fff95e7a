"""Connectors that predict the teacher's feature from the student's."""

from itertools import pairwise
from typing import Any

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from kdjax import _checks
from kdjax._types import Outputs, Tree, Weights
from kdjax.connectors._connector import Added, Connector, Seen, pair_of, read_places
from kdjax.connectors.bricks import apply_chain, average_to_one_size, init_chain, resize


def regressor(
    student: str, teacher: str | None = None, *, depth: int = 1, width: int | None = None, normalize: bool = False
) -> Connector:
    """Brings the student's feature to the shape of the teacher's, by layers that act at each position alone.

    Adds ``name``: to the student's features the prediction, to the teacher's its own feature.

    Maps [batch, height, width, channels] of one size: 1 × 1 convolutions. Where the student's map is larger along an axis,
    a → b, the first layer is a convolution without padding, of stride ⌊a/b⌋ and size a − ⌊a/b⌋ (b − 1): it meets the
    teacher's size exactly and reads every position. Where it is smaller, it is first stretched bilinearly. Other features,
    [batch, …, dim]: dense layers on the last axis.

    Args:
      student: the name of the student's feature.
      teacher: the name of the teacher's; None: the same.
      depth: how many layers, with ReLUs between them.
      width: the channels between them; None: the teacher's.
      normalize: whether batch normalisation follows each layer, in its bias's place.

    Returns:
      A `Connector`.

    Raises:
      ValueError: `depth` or `width` is not a whole number above 0; later, if a feature is missing or the two cannot meet:
        one of them a map and the other not, or axes that differ between batch and channels of what is no map.

    Example:
      >>> import jax
      >>> shapes = [Outputs(None, {"stage1": jax.ShapeDtypeStruct(shape, jnp.float32)})
      ...           for shape in ((2, 8, 8, 4), (2, 4, 4, 16))]
      >>> regressor("stage1").init(jax.random.key(0), *shapes).params["layer1"]["kernel"].shape
      (2, 2, 4, 16)

    Note:
      FitNets' regressor is the convolution without padding at stride 1. With ``normalize=True`` and depth 1 it is the
      connector of Heo et al. for `overhaul` and `activation_boundary` (1811.03233, 1904.01866), whose features stand
      before the ReLU. Where the teacher's map is smaller, they average the student's or choose layers of equal size.

    Reference:
      Romero et al., FitNets: Hints for Thin Deep Nets, 2015, section 2.2. https://arxiv.org/abs/1412.6550
    """
    _checks.whole("depth", depth, 1)
    if width is not None:
        _checks.whole("width", width, 1)
    places = pair_of(student, teacher)

    def init(rng: PRNGKeyArray, of_student: Outputs, of_teacher: Outputs) -> Weights:
        own, wanted = read_places(places, of_student, of_teacher)
        sides, _ = _meeting(places[0], own, wanted)
        channels = [own.shape[-1], *[width or wanted.shape[-1]] * (depth - 1), wanted.shape[-1]]
        shapes: list[tuple[int, ...]] = list(pairwise(channels))
        if max(sides) > 1:
            shapes[0] = (*sides, *shapes[0])
        return init_chain(rng, shapes, normalize=normalize)

    def apply(params: Tree, model_state: Tree, seen: Seen) -> Added:
        own, wanted = read_places(places, seen.student, seen.teacher)
        _, strides = _meeting(places[0], own, wanted)
        if own.ndim == 4:
            own = resize(own, *(max(sides) for sides in zip(own.shape[1:3], wanted.shape[1:3], strict=True)))
        made, model_state = apply_chain(params, model_state, own, train=seen.train, strides=strides, padding="VALID")
        return {"": made}, {"": wanted}, model_state

    return Connector(init, apply, places)


def variational(
    student: str, teacher: str | None = None, *, width: int | None = None, start_variance: float = 5.0
) -> Connector:
    """Predicts the mean and the variance of the teacher's feature, for `kdjax.losses.variational_information`.

    Adds ``name``: to the student's features the mean μ, to the teacher's its feature; and ``name_raw_variance``, [channels],
    to the student's. Where the sizes of maps differ, the larger is averaged down. The term is
    ``on_outputs(variational_information, "student.vid", "teacher.vid", raw_variance="student.vid_raw_variance")``.

    Args:
      student: the name of the student's feature, [batch, height, width, channels] or [batch, …, dim].
      teacher: the name of the teacher's; None: the same.
      width: the channels between the three layers of the mean; None: the teacher's.
      start_variance: σ² > 0 of every channel before training, by the loss's own softplus.

    Returns:
      A `Connector`.

    Raises:
      ValueError: `width` or `start_variance` is out of range; later, as in `regressor`.

    Example:
      >>> import jax
      >>> shapes = [Outputs(None, {"stage1": jax.ShapeDtypeStruct((2, 4, 4, size), jnp.float32)}) for size in (3, 6)]
      >>> made = variational("stage1").init(jax.random.key(0), *shapes).params
      >>> jax.nn.softplus(made["raw_variance"]).round(3).tolist()
      [5.0, 5.0, 5.0, 5.0, 5.0, 5.0]

    Note:
      Three layers, ReLUs between them and a start at 5 are those of common code, whose layers have no bias; these have. The
      paper's mean has layers of the network's own kind.

    Reference:
      Ahn et al., Variational Information Distillation for Knowledge Transfer, 2019, section 3.2.
      https://arxiv.org/abs/1904.05835
    """
    if width is not None:
        _checks.whole("width", width, 1)
    _checks.positive("start_variance", start_variance)
    places = pair_of(student, teacher)

    def init(rng: PRNGKeyArray, of_student: Outputs, of_teacher: Outputs) -> Weights:
        own, wanted = read_places(places, of_student, of_teacher)
        _meeting(places[0], own, wanted)
        channels = wanted.shape[-1]
        middle = width or channels
        layers = init_chain(rng, [(own.shape[-1], middle), (middle, middle), (middle, channels)])
        raw = jnp.full(channels, start_variance + jnp.log(-jnp.expm1(-start_variance)), jnp.float32)
        return Weights({"mean": layers.params, "raw_variance": raw}, layers.model_state)

    def apply(params: Tree, model_state: Tree, seen: Seen) -> Added:
        own, wanted = read_places(places, seen.student, seen.teacher)
        if own.ndim == 4:
            own, wanted = average_to_one_size(own, wanted)
        mean, model_state = apply_chain(params["mean"], model_state, own, train=seen.train)
        return {"": mean, "raw_variance": params["raw_variance"]}, {"": wanted}, model_state

    return Connector(init, apply, places)


def _meeting(place: str, own: Any, wanted: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Size and stride, in height and width, of the convolution that brings the larger map to the smaller."""
    _checks.rank_at_least(place, own, 2, "[batch, ..., channels]")
    if own.ndim != wanted.ndim or (own.ndim != 4 and own.shape[1:-1] != wanted.shape[1:-1]):
        raise ValueError(
            f"{place} must be a map as the teacher's feature is, or equal in all axes between batch and channels; "
            f"got shapes {tuple(own.shape)} and {tuple(wanted.shape)}."
        )
    if own.ndim != 4:
        return (1, 1), (1, 1)
    pairs = list(zip(own.shape[1:3], wanted.shape[1:3], strict=True))
    strides = [max(a // b, 1) for a, b in pairs]
    sides = [max(a - stride * (b - 1), 1) for (a, b), stride in zip(pairs, strides, strict=True)]
    return (sides[0], sides[1]), (strides[0], strides[1])
