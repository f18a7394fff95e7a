"""Knowledge review: deep features of the student are fused into shallower ones, stage by stage."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from kdjax import _checks
from kdjax._types import Outputs, Tree, Weights
from kdjax.connectors._connector import Added, Connector, Names, Seen, read_places, stages_of
from kdjax.connectors.bricks import apply_layer, init_layer, join, resize


def review(students: Names, teachers: Names | None = None, *, width: int | None = None) -> Connector:
    """Attention-based fusion of the student's stages, from the deepest to the shallowest.

    Adds ``name_1`` … ``name_n`` to both, in the order of `students`: the fused student's feature in the shape of the
    teacher's, and the teacher's. The terms are ``on_feature(kdjax.losses.hierarchical_context, "review_1")`` and so on.

    With x_i the stage's 1 × 1 convolution to `width` channels and y_{i+1} what comes from the next deeper stage, stretched
    to its size: a_i = sigmoid of a 1 × 1 convolution of both, y_i = a_i[0] x_i + a_i[1] y_{i+1}; the deepest has y = x. A
    3 × 3 convolution of y_i, at the teacher's size and to its channels, is what is compared. Both have batch normalisation.

    Args:
      students: names of the student's features, shallow to deep. [batch, dim] counts as a map of one position.
      teachers: the teacher's, one for each; None: the same names.
      width: the channels in which stages are fused; None: the most that any of the student's stages has.

    Returns:
      A `Connector`.

    Raises:
      ValueError: there are no names, one of the student's stands twice, there are not as many of the teacher's, or `width`
        is not a whole number above 0; later, if a feature is missing or neither a map nor [batch, dim].

    Example:
      >>> shapes = Outputs(None, {"stage1": jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32),
      ...                         "stage2": jax.ShapeDtypeStruct((2, 4, 4, 6), jnp.float32)})
      >>> fused = review(("stage1", "stage2")).init(jax.random.key(0), shapes, shapes)
      >>> fused.params["stage1"]["attention"]["kernel"].shape
      (12, 2)

    Note:
      Sizes are changed by the nearest neighbour, as in the paper's code, and the width, which it sets by hand for each pair
      of networks, is close to this default there.

    Reference:
      Chen et al., Distilling Knowledge via Knowledge Review, 2021, section 3.3. https://arxiv.org/abs/2104.09044
    """
    own_places, other_places = stages_of(students, teachers)
    if len(own_places) != len(other_places):
        raise ValueError(f"teachers must name one feature for each of students, {len(students)}; got {teachers!r}.")
    if width is not None:
        _checks.whole("width", width, 1)

    def pairs_of(of_student: Outputs, of_teacher: Outputs | None) -> list[tuple[Any, Any]]:
        read = partial(read_places, student=of_student, teacher=of_teacher, axes=(2, 4))
        return list(zip(read(own_places), read(other_places), strict=True))

    def init(rng: PRNGKeyArray, of_student: Outputs, of_teacher: Outputs) -> Weights:
        pairs = pairs_of(of_student, of_teacher)
        middle = width or max(own.shape[-1] for own, _ in pairs)
        stages = {}
        for i, (name, (own, wanted)) in enumerate(zip(students, pairs, strict=True)):
            keys = jax.random.split(jax.random.fold_in(rng, i), 3)
            parts = {
                "narrow": init_layer(keys[0], (own.shape[-1], middle), normalize=True),
                "out": init_layer(keys[1], (3, 3, middle, wanted.shape[-1]), normalize=True),
            }
            if i < len(pairs) - 1:
                parts["attention"] = init_layer(keys[2], (2 * middle, 2))
            stages[name] = join(parts)
        return join(stages)

    def apply(params: Tree, model_state: Tree, seen: Seen) -> Added:
        fused, wanted, states = {}, {}, {}
        deeper = None
        stages = list(enumerate(zip(students, pairs_of(seen.student, seen.teacher), strict=True), start=1))
        for i, (name, (own, other)) in reversed(stages):
            layers, state = params[name], dict(model_state[name])
            target = _as_map(other)
            x, state["narrow"] = apply_layer(layers["narrow"], state["narrow"], _as_map(own), train=seen.train)
            if deeper is not None:
                deeper = resize(deeper, *x.shape[1:3], method="nearest")
                both = jnp.concatenate([x, deeper], axis=-1)
                attention = jax.nn.sigmoid(apply_layer(layers["attention"], {}, both, train=seen.train)[0])
                x = attention[..., :1] * x + attention[..., 1:] * deeper
            deeper = x
            x = resize(x, *target.shape[1:3], method="nearest")
            made, state["out"] = apply_layer(layers["out"], state["out"], x, train=seen.train)
            fused[str(i)], wanted[str(i)], states[name] = made, target, state
        return fused, wanted, states

    return Connector(init, apply, (*own_places, *other_places))


def _as_map(feature: Array) -> Array:
    return feature[:, None, None, :] if feature.ndim == 2 else feature
