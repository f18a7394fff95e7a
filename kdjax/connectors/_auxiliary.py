"""A connector that classifies a middle layer of the student."""

import jax
from jaxtyping import PRNGKeyArray

from kdjax import _checks
from kdjax._types import Outputs, Tree, Weights
from kdjax.connectors._connector import Added, Connector, Seen, read_places
from kdjax.connectors.bricks import apply_layer, average_to_vector, init_layer, join


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
    place = f"student.{student}"

    def init(rng: PRNGKeyArray, of_student: Outputs, of_teacher: Outputs) -> Weights:
        (feature,) = read_places([place], of_student, of_teacher, axes=(2, 4))
        channels, classes = feature.shape[-1], of_student.logits.shape[-1]
        layers = {}
        if width is not None:
            sides = (3, 3) if feature.ndim == 4 else ()
            layers["hidden"] = init_layer(
                jax.random.fold_in(rng, 1), (*sides, channels, width), normalize=True, gain=2.0
            )
        layers["logits"] = init_layer(jax.random.fold_in(rng, 2), (width or channels, classes))
        return join(layers)

    def apply(params: Tree, model_state: Tree, seen: Seen) -> Added:
        (x,) = read_places([place], seen.student, None, axes=(2, 4))
        states = dict(model_state)
        if width is not None:
            x, states["hidden"] = apply_layer(params["hidden"], states["hidden"], x, train=seen.train)
            x = jax.nn.relu(x)
        x = average_to_vector(x)
        logits, states["logits"] = apply_layer(params["logits"], states["logits"], x, train=seen.train)
        return {"": logits}, {} if seen.teacher is None else {"": seen.teacher.logits}, states

    return Connector(init, apply, (place, "teacher.logits"))
