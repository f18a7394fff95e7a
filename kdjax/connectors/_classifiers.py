"""Connectors that read the student's feature with the teacher's own classifier, which stays as it is."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float, PRNGKeyArray

from kdjax import _checks
from kdjax._types import Outputs, Tree, Weights
from kdjax.connectors._connector import Added, Connector, Features, Seen, pair_of, read_places
from kdjax.connectors.bricks import (
    apply_chain,
    at_least_float32,
    average_to_size,
    average_to_vector,
    init_chain,
)

Classifier = Callable[[Tree, Array], Array]


def average_and_dense(weights: Tree, features: Float[Array, "batch ..."]) -> Float[Array, "batch classes"]:
    """The common end of a classifier: maps averaged over their positions, then logits = x W + b.

    Args:
      weights: ``{"kernel": [dim, classes], "bias": [classes]}``, as Flax's Dense has them.
      features: [batch, height, width, dim] or [batch, dim].
    """
    x = average_to_vector(at_least_float32(features))
    return x @ weights["kernel"] + weights["bias"][None, :]


def projector(
    student: str,
    teacher: str | None = None,
    *,
    classifier_weights: Tree,
    classifier: Classifier = average_and_dense,
    reduction: int = 2,
) -> Connector:
    """Projects the student's feature into the teacher's, and classifies it there as the teacher does.

    Adds ``name`` to both, the projected feature and the teacher's, for ``on_feature(hint, name)``; and ``name_logits``, the
    teacher's classifier's answer to the projected feature, and the teacher's logits. Three layers, each with batch
    normalisation and ReLU: 1 × 1 to channels / reduction, 3 × 3, 1 × 1 to the teacher's channels. Maps of two sizes: the
    larger is averaged down. A map and a vector [batch, dim]: the map is averaged to a vector, and all layers are dense.

    Args:
      student: the name of the student's feature, the last before its own classifier.
      teacher: the name of the teacher's, the one that its classifier reads; None: the same.
      classifier_weights: the teacher's classifier's. They are in the model_state, where no optimiser and no gradient
        meets them.
      classifier: ``classifier(weights, features) -> logits``.
      reduction: how many times fewer channels the middle has than the teacher.

    Returns:
      A `Connector`. It is a part of the network that leaves: evaluate and export it by `through`.

    Raises:
      ValueError: `reduction` is not a whole number above 0; later, if a feature is missing or neither a map nor
        [batch, dim], or if the classifier does not turn the teacher's feature into the teacher's number of classes.

    Example:
      >>> from kdjax import connectors
      >>> def network(params, model_state, inputs, *, train, rng=None):
      ...     embedding = inputs @ params["embed"]
      ...     return Outputs(embedding @ params["head"], {"embedding": embedding}), model_state
      >>> student = Weights({"embed": jnp.ones((4, 5)), "head": jnp.ones((5, 3))}, {})
      >>> teacher = Weights({"embed": jnp.ones((4, 8)), "head": jnp.ones((8, 3))}, {})
      >>> head = {"kernel": teacher.params["head"], "bias": jnp.zeros(3)}
      >>> beside = {"simkd": projector("embedding", classifier_weights=head)}
      >>> key, inputs = jax.random.key(0), jnp.ones((2, 4))
      >>> weights = connectors.init_beside(beside, key, network, student, network, teacher, inputs)
      >>> whole = connectors.through(network, beside, "simkd")
      >>> whole(*weights, inputs, train=False)[0].logits.shape
      (2, 3)

    Note:
      The student's own classifier gets no gradient from ``hint`` alone, as in the paper. How the student's map is averaged
      is kept as two small matrices, so that no teacher is needed later.

    Reference:
      Chen et al., Knowledge Distillation with the Reused Teacher Classifier, 2022, section 3.2.
      https://arxiv.org/abs/2203.14001
    """
    _checks.whole("reduction", reduction, 1)
    places = pair_of(student, teacher)

    def init(rng: PRNGKeyArray, of_student: Outputs, of_teacher: Outputs) -> Weights:
        own, wanted = read_places(places, of_student, of_teacher, axes=(2, 4))
        _fits(classifier, classifier_weights, of_teacher, wanted)
        channels = wanted.shape[-1]
        middle = max(1, channels // reduction)
        are_maps = own.ndim == wanted.ndim == 4
        shapes = [(own.shape[-1], middle), (*((3, 3) if are_maps else ()), middle, middle), (middle, channels)]
        layers = init_chain(rng, shapes, normalize=True, activated_last=True)
        model_state = {"layers": layers.model_state, "classifier": classifier_weights}
        if are_maps:
            sizes = zip(own.shape[1:3], wanted.shape[1:3], strict=True)
            model_state |= dict(zip(("rows", "columns"), (_averaging(a, min(a, b)) for a, b in sizes), strict=True))
        return Weights(layers.params, model_state)

    def apply(params: Tree, model_state: Tree, seen: Seen) -> Added:
        own = at_least_float32(*read_places(places[:1], seen.student, None))
        if "rows" in model_state:
            rows, columns = model_state["rows"], model_state["columns"]
            own = jnp.einsum("bhwc,ih,jw->bijc", own, rows, columns, precision=Precision.HIGHEST)
        else:
            own = average_to_vector(own)
        made, layers = apply_chain(params, model_state["layers"], own, train=seen.train, activated_last=True)
        mine = {"": made, "logits": classifier(model_state["classifier"], made)}
        return mine, _of_teacher(seen.teacher, places, made), {**model_state, "layers": layers}

    return Connector(init, apply, (*places, "teacher.logits"))


def shared_classifier(
    student: str,
    teacher: str | None = None,
    *,
    classifier_weights: Tree,
    classifier: Classifier = average_and_dense,
) -> Connector:
    """Asks the teacher's classifier what it makes of the student's last feature.

    Adds ``name`` to both, the averaged features [batch, dim], for ``on_feature(hint, name)``; and ``name_logits``, for
    ``on_feature(logit_mse, "srrl_logits")``: the classifier's answer to the student's, and the teacher's logits. One 1 × 1
    layer with batch normalisation and ReLU brings the student's feature to the teacher's channels.

    Args:
      student: the name of the student's feature, the last before its own classifier; a map or [batch, dim].
      teacher: the name of the teacher's, the one that its classifier reads; None: the same.
      classifier_weights: the teacher's classifier's. They are in the model_state, where no optimiser and no gradient
        meets them.
      classifier: ``classifier(weights, features) -> logits``, of features [batch, dim].

    Returns:
      A `Connector`.

    Raises:
      ValueError: later, as in `projector`.

    Example:
      >>> shapes = [Outputs(jax.ShapeDtypeStruct((2, 3), jnp.float32), {"embedding": jax.ShapeDtypeStruct((2, size),
      ...           jnp.float32)}) for size in (5, 8)]
      >>> head = {"kernel": jnp.ones((8, 3)), "bias": jnp.zeros(3)}
      >>> srrl = shared_classifier("embedding", classifier_weights=head)
      >>> srrl.init(jax.random.key(0), *shapes).params["layer1"]["kernel"].shape
      (5, 8)

    Note:
      The student keeps and uses its own classifier: this one is left behind with the connector, unlike `projector`'s.

    Reference:
      Yang et al., Knowledge Distillation via Softmax Regression Representation Learning, 2021, section 3.
      https://openreview.net/forum?id=ZzwDy_wiWv
    """
    places = pair_of(student, teacher)

    def init(rng: PRNGKeyArray, of_student: Outputs, of_teacher: Outputs) -> Weights:
        own, wanted = read_places(places, of_student, of_teacher, axes=(2, 4))
        vector = jax.eval_shape(average_to_vector, wanted)
        _fits(classifier, classifier_weights, of_teacher, vector)
        layers = init_chain(rng, [(own.shape[-1], wanted.shape[-1])], normalize=True, activated_last=True)
        return Weights(layers.params, {"layers": layers.model_state, "classifier": classifier_weights})

    def apply(params: Tree, model_state: Tree, seen: Seen) -> Added:
        (own,) = read_places(places[:1], seen.student, None)
        made, layers = apply_chain(params, model_state["layers"], own, train=seen.train, activated_last=True)
        made = average_to_vector(made)
        mine = {"": made, "logits": classifier(model_state["classifier"], made)}
        return mine, _of_teacher(seen.teacher, places, made), {**model_state, "layers": layers}

    return Connector(init, apply, (*places, "teacher.logits"))


def _of_teacher(of_teacher: Outputs | None, places: tuple[str, str], made: Array) -> Features:
    """The teacher's feature in the shape of what was made, and its logits; nothing where there is no teacher."""
    if of_teacher is None:
        return {}
    wanted = at_least_float32(*read_places(places[1:], of_teacher, of_teacher))
    wanted = average_to_vector(wanted) if made.ndim == 2 else average_to_size(wanted, *made.shape[1:3])
    return {"": wanted, "logits": of_teacher.logits}


def _fits(classifier: Classifier, weights: Tree, of_teacher: Outputs, feature: Any) -> None:
    """A ValueError where the classifier cannot be the teacher's own."""
    wanted = of_teacher.logits.shape
    try:
        got = jax.eval_shape(classifier, weights, feature).shape
    except Exception as error:
        raise ValueError(
            f"classifier must turn the teacher's feature of shape {tuple(feature.shape)} into its logits, and cannot: "
            f"{error}"
        ) from error
    if got != wanted:
        raise ValueError(
            f"classifier must turn the teacher's feature of shape {tuple(feature.shape)} into logits of shape "
            f"{tuple(wanted)}; got shape {tuple(got)}."
        )


def _averaging(old: int, new: int) -> Float[Array, "{new} {old}"]:
    """The matrix that averages `old` cells to `new`, as `adaptive_average_pool` does."""
    return average_to_size(jnp.eye(old)[None, :, :, None], new, old)[0, :, :, 0]
