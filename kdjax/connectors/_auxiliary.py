"""A connector that classifies a middle layer of the student."""

from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from kdjax import _checks
from kdjax._types import Batch, Outputs, Tree, Weights
from kdjax.connectors._connector import Connector, Features, Rng, read
from kdjax.connectors._layers import apply_layer, averaged, init_layer


def auxiliary(student: str, *, width: int | None = None) -> Connector:
    """An auxiliary classifier: what a middle layer of the student knows of the classes, taught like the whole student.

    Adds ``name``: to the student's features the classifier's logits, to the teacher's its own logits. Terms are then
    ``on_feature(soft_target_kl, "aux1", temperature=4.0)`` and, from the labels,
    ``on_outputs(optax.softmax_cross_entropy_with_integer_labels, "student.aux1")``.

    Maps are averaged over their positions, and a dense layer gives the logits, as many as the student's own.

    Args:
      student: the name of the student's feature, [batch, height, width, channels] or [batch, dim].
      width: the channels of a layer with batch normalisation and ReLU before the average: a convolution 3 × 3 of a map,
        a dense layer of a vector. None: no such layer.

    Returns:
      A `Connector`. It reads no teacher, and works without one.

    Raises:
      ValueError: `width` is not a whole number above 0; later, if the feature is missing or neither a map nor [batch, dim].

    Example:
      >>> stage1 = jax.ShapeDtypeStruct((2, 8, 8, 4), "float32")
      >>> seen = Outputs(jax.ShapeDtypeStruct((2, 10), "float32"), {"stage1": stage1})
      >>> weights = auxiliary("stage1", width=16).init(jax.random.key(0), seen, seen)
      >>> weights.params["hidden"]["kernel"].shape, weights.params["logits"]["kernel"].shape
      ((3, 3, 4, 16), (16, 10))

    Note:
      The papers' classifiers on early layers are deeper, so that the layer itself need not be ready to be classified;
      `width` is one step in that direction. For a classifier on every stage, give several connectors.

    Reference:
      Lee, Xie, Gallagher, Zhang and Tu, Deeply-Supervised Nets, 2015, section 2. https://arxiv.org/abs/1409.5185
      Zhang et al., Be Your Own Teacher, 2019, section 3 (classifiers that learn from soft targets too).
      https://arxiv.org/abs/1905.08094
    """
    if width is not None:
        _checks.whole("width", width, 1)

    def init(rng: PRNGKeyArray, of_student: Outputs, of_teacher: Outputs) -> Weights:
        del of_teacher
        feature = _classifiable(of_student, student)
        channels, classes = feature.shape[-1], of_student.logits.shape[-1]
        layers = {}
        if width is not None:
            sides = (3, 3) if feature.ndim == 4 else ()
            layers["hidden"] = init_layer(
                jax.random.fold_in(rng, 1), (*sides, channels, width), normalize=True, gain=2.0
            )
        layers["logits"] = init_layer(jax.random.fold_in(rng, 2), (width or channels, classes))
        return Weights(
            {name: layer.params for name, layer in layers.items()},
            {name: layer.model_state for name, layer in layers.items()},
        )

    def apply(
        params: Tree,
        model_state: Tree,
        of_student: Outputs,
        of_teacher: Outputs | None,
        batch: Batch,
        *,
        train: bool,
        rng: Rng,
    ) -> tuple[Features, Features, Tree]:
        x, states = _classifiable(of_student, student), dict(model_state)
        if width is not None:
            x, states["hidden"] = apply_layer(params["hidden"], model_state["hidden"], x, train=train)
            x = jax.nn.relu(x)
        logits, states["logits"] = apply_layer(params["logits"], model_state["logits"], averaged(x), train=train)
        return {"": logits}, {} if of_teacher is None else {"": of_teacher.logits}, states

    return Connector(init, apply)


def _classifiable(of_student: Outputs, name: str) -> Any:
    feature = read("student", of_student, name)
    if feature.ndim not in (2, 4):
        raise ValueError(
            f"student.{name} must be [batch, height, width, channels] or [batch, dim]; got shape {tuple(feature.shape)}."
        )
    return feature
