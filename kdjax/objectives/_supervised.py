"""The terms that compare a student with labels: class numbers, probabilities, several labels at once, and numbers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from kdjax import _checks
from kdjax._types import Batch, Number, Outputs
from kdjax.objectives._places import read_batch
from kdjax.objectives._terms import Match, on_outputs

_LABELS = ("student.logits", "batch.labels")


def _reads(*places: str) -> Callable[[Callable], Any]:
    """Notes on a term that is a plain function what it reads."""

    def note(term: Any) -> Any:
        term.places = places
        return term

    return note


@_reads(*_LABELS)
def cross_entropy(student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Array, " batch *positions"]:
    """The ordinary supervised term: −log softmax(student.logits)[label], or −Σ y log softmax(student.logits).

    Args:
      student: its logits, [batch, classes] or [batch, *positions, classes].
      teacher: not read.
      batch: its ``"labels"``: whole numbers from 0 to classes − 1, one for each example or position; or probabilities y,
        of the logits' shape.

    Returns:
      One number for each example or position, in nats. Traced labels have no values to check: one outside gives NaN,
      which is seen, and not the number of some other class.

    Raises:
      ValueError: if there are no labels, or they are of neither shape.

    Example:
      >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
      >>> of_class, of_shares = ({"labels": labels} for labels in (jnp.array([0]), jnp.array([[1.0, 0.0, 0.0]])))
      >>> [round(float(cross_entropy(Outputs(logits, {}), None, batch)[0]), 4) for batch in (of_class, of_shares)]
      [0.6931, 0.6931]
    """
    del teacher
    return _cross_entropy(student.logits, read_batch(batch, "labels"), name='batch["labels"]')


def smoothed_cross_entropy(smoothing: Number | Callable) -> Match:
    """A term: the cross-entropy with labels of which a share is spread evenly over all classes.

    (1 − ε) · CE(labels) + ε · mean_c(−log p_c), p = softmax(student.logits).

    Args:
      smoothing: ε between 0 and 1, or a function of the step.

    Returns:
      A term that reads ``batch["labels"]`` as `cross_entropy` does.

    Raises:
      ValueError: if ε is not between 0 and 1.

    Example:
      >>> batch = {"labels": jnp.array([0])}
      >>> term = smoothed_cross_entropy(0.1)
      >>> round(float(term(Outputs(jnp.zeros((1, 4)), {}), None, batch)[0] / jnp.log(4)), 4)
      1.0

    Reference:
      Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2016, section 7.
      https://arxiv.org/abs/1512.00567
    """
    return on_outputs(_smoothed, "student.logits", smoothing=smoothing)


@_reads(*_LABELS, "batch.partner_labels", "batch.share")
def mixed_cross_entropy(student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Array, " batch *positions"]:
    """The supervised term for mixed examples: λ · CE(labels) + (1 − λ) · CE(partner_labels).

    It equals the cross-entropy with the soft label λ y + (1 − λ) y′. Reads ``batch["labels"]``,
    ``batch["partner_labels"]`` and ``batch["share"]``, as `kdjax.data.make_views` makes them.

    Args:
      student: its logits.
      teacher: not read.
      batch: the mixed batch.

    Raises:
      ValueError: if one of the three is missing, or as `cross_entropy` does.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
      >>> batch = {"labels": jnp.array([0]), "partner_labels": jnp.array([1]), "share": jnp.array([0.5])}
      >>> round(float(mixed_cross_entropy(Outputs(logits, {}), None, batch)[0] / jnp.log(2)), 5)
      1.5
    """
    for name in ("partner_labels", "share"):
        if name not in batch:
            raise ValueError(f'batch must have "{name}", as make_views(..., mix=...) adds it; it has {sorted(batch)}.')
    own: Any = cross_entropy(student, teacher, batch)
    others = cross_entropy(student, teacher, {"labels": batch["partner_labels"]})
    share = jnp.asarray(batch["share"])
    if share.shape != own.shape[:1]:
        raise ValueError(f'batch["share"] must be one number an example, shape {own.shape[:1]}; got {share.shape}.')
    share = share.reshape(share.shape + (1,) * (own.ndim - 1))
    return share * own + (1 - share) * others


@_reads(*_LABELS)
def binary_cross_entropy(student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Array, " batch *positions"]:
    """The supervised term for several labels at once: Σ_c −y_c log σ(z_c) − (1 − y_c) log(1 − σ(z_c)).

    Args:
      student: its logits z, [batch, *positions, labels]; a single one is a choice between two classes.
      teacher: not read.
      batch: its ``"labels"`` y, of the logits' shape, or without their last axis where that is 1: 0 and 1, whole numbers
        or bools, or probabilities between.

    Returns:
      One number for each example or position, in nats: the sum over labels, as in `kdjax.losses.soft_target_bce`. A
      label below 0 or above 1 gives NaN.

    Raises:
      ValueError: if there are no labels, or they are of another shape.

    Example:
      >>> outputs = Outputs(jnp.zeros((1, 3)), {})
      >>> round(float(binary_cross_entropy(outputs, None, {"labels": jnp.array([[1, 0, 1]])})[0] / jnp.log(2)), 4)
      3.0
    """
    del teacher
    logits, labels = beside(student.logits, read_batch(batch, "labels"))
    values = -(_times(labels, jax.nn.log_sigmoid(logits)) + _times(1 - labels, jax.nn.log_sigmoid(-logits)))
    return jnp.sum(jnp.where((labels < 0) | (labels > 1), jnp.nan, values), axis=-1)


@_reads(*_LABELS)
def squared_error(student: Outputs, teacher: Outputs | None, batch: Batch) -> Float[Array, " batch *positions"]:
    """The supervised term of a regression: mean over outputs of (prediction − target)².

    Args:
      student: its predictions, which stand where a classifier has logits, [batch, *positions, outputs].
      teacher: not read.
      batch: its ``"labels"``, the targets, of the same shape, or without the last axis where that is 1.

    Returns:
      One number for each example or position, in squared units of the target.

    Raises:
      ValueError: if there are no labels, or they are of another shape.

    Example:
      >>> squared_error(Outputs(jnp.array([[1.0], [4.0]]), {}), None, {"labels": jnp.array([1.0, 2.0])}).tolist()
      [0.0, 4.0]
    """
    del teacher
    predictions, targets = beside(student.logits, read_batch(batch, "labels"))
    return jnp.mean((predictions - targets) ** 2, axis=-1)


def are_classes(labels: Any, logits: Any) -> bool:
    """Whether they are whole class numbers, one for each entry of logits of two classes or more."""
    kind = getattr(labels, "dtype", None)
    whole = kind is not None and jnp.issubdtype(kind, jnp.integer)
    return bool(whole and np.shape(labels) == np.shape(logits)[:-1] and np.shape(logits)[-1] > 1)


def _cross_entropy(logits: Array, labels: Any, *, name: str = "labels") -> Float[Array, " batch *positions"]:
    if logits.shape[-1] < 2:
        raise ValueError(
            f"student.logits must be of two classes or more for a cross-entropy; got shape {logits.shape}. One logit is a "
            "choice that binary_cross_entropy reads; a number to predict is squared_error's."
        )
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    kind = getattr(labels, "dtype", None)
    if kind is not None and jnp.issubdtype(kind, jnp.floating) and np.shape(labels) == logits.shape:
        shares = jnp.asarray(labels).astype(jnp.promote_types(kind, jnp.float32))
        shares = jnp.where((shares < 0) | (shares > 1), jnp.nan, shares)
        return -jnp.sum(_times(shares, jax.nn.log_softmax(logits, axis=-1)), axis=-1)
    classes = _checks.labels(name, labels, logits.shape[:-1])
    values = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
    return jnp.where((classes < 0) | (classes >= logits.shape[-1]), jnp.nan, values)


def _smoothed(logits: Array, labels: Any, *, smoothing: Number = 0.1) -> Float[Array, " batch *positions"]:
    _checks.between("smoothing", smoothing, 0.0, 1.0)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    spread = -jnp.mean(jax.nn.log_softmax(logits, axis=-1), axis=-1)
    return (1 - smoothing) * _cross_entropy(logits, labels) + _times(smoothing, spread)


def _times(share: Array | Number, value: Array) -> Array:
    """What has no share adds nothing, be it infinite: a class may be excluded by a logit of −∞."""
    return jnp.where(share == 0, 0.0, share * value)


def beside(logits: Array, labels: Any) -> tuple[Array, Array]:
    """Predictions and their labels in float32 at least, and of one shape."""
    labels = jnp.asarray(labels)
    if labels.shape == logits.shape[:-1] and logits.shape[-1] == 1:
        labels = labels[..., None]
    _checks.same_shape("student.logits", logits, 'batch["labels"]', labels)
    wide = partial(jnp.promote_types, jnp.float32)
    own = labels.dtype if jnp.issubdtype(labels.dtype, jnp.floating) else jnp.float32
    return logits.astype(wide(logits.dtype)), labels.astype(wide(own))
