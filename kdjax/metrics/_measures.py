"""What an evaluation measures: functions of outputs and labels, summed over a data set and finished at its end.

A measure sees one batch at a time. Its values are summed over the entries that count, which are examples, tokens or pixels,
over all batches and devices; what is a ratio or a power is taken at the end, of the sums.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax import _checks
from kdjax._types import Batch, Outputs, Tree
from kdjax.objectives._counted import MASK, Counted, keep, read_counted, spread
from kdjax.objectives._places import places_of, read_batch
from kdjax.objectives._supervised import beside, cross_entropy
from kdjax.objectives._weighted_sum import counted_by
from kdjax.objectives.schedules import Schedule

_LABELS = ("student.logits", "batch.labels")


class Measure(NamedTuple):
    """One measure of an evaluation. A term, which is a function alone, is a measure too: its mean.

    Attributes:
      values: ``values(student, teacher, batch)`` to an array, or a pytree of arrays, [batch, *positions, …]: what is summed.
      finish: from their sums and the number of entries to a number or an array, on the host.
      places: all that it reads; one that reads ``"batch.labels"`` counts the entries that have a label.
      percent: whether people read it in %: it is a fraction.
      lower_is_better: whether the better of two networks has less of it.

    Example:
      The share of examples on which the student is surer than one half:

      >>> def values(student, teacher, batch):
      ...     return (jax.nn.softmax(student.logits).max(axis=-1) > 0.5).astype(jnp.float32)
      >>> sure = Measure(values, lambda sums, count: sums / count, ("student.logits",))
      >>> sums = sums_of({"sure": sure}, Outputs(jnp.array([[2.0, 0.0], [0.0, 0.0]]), {}), None, {})
      >>> finished({"sure": sure}, sums)
      {'sure': 0.5}
    """

    values: Callable[[Outputs, Outputs | None, Batch], Tree]
    finish: Callable[[Any, float], Any] = lambda sums, count: sums / count
    places: tuple[str, ...] = _LABELS
    percent: bool = False
    lower_is_better: bool = False


def correct(logits: Array, labels: Any) -> Float[Array, "*batch"]:
    """1 where the largest logit is the label's, NaN where the label is no class; logits with a NaN name none, and are 0."""
    labels = _checks.labels('batch["labels"]', labels, logits.shape[:-1])
    return _seen(_chooses(logits, labels), labels, logits.shape[-1])


def _chooses(logits: Array, labels: Array) -> Array:
    """Where the largest logit is the label's."""
    if logits.shape[-1] < 2:
        raise ValueError(
            f"logits must be of two classes or more, for a first choice among them; got shape {logits.shape}. Of yes-or-no "
            "predictions there is label_accuracy."
        )
    # The largest of NaNs would be class 0.
    return (jnp.argmax(logits, axis=-1) == labels) & ~jnp.isnan(logits).any(axis=-1)


accuracy = Measure(lambda student, teacher, batch: correct(student.logits, read_batch(batch, "labels")), percent=True)
"""How often the first choice is the label: a fraction of the entries that have one; NaN if one of these is no class."""


def _agreeing(student: Outputs, teacher: Outputs | None, batch: Batch) -> Array:
    taught = _taught(student, teacher)
    same = _chooses(student.logits, jnp.argmax(taught, axis=-1))  # the teacher's choice may be a class of its own
    return (same & ~jnp.isnan(taught).any(axis=-1)).astype(jnp.float32)


agreeing = Measure(_agreeing, places=("student.logits", "teacher.logits"), percent=True)
"""How often both networks' first choice is the same: a fraction of all entries; NaN of either is no choice."""

perplexity = Measure(cross_entropy, lambda sums, count: float(np.exp(sums / count)), lower_is_better=True)
"""exp of the mean cross-entropy of the tokens that have a label."""


def top_k_accuracy(k: int) -> Measure:
    """How often the label is among the k largest logits; NaN if a label that counts is no class.

    Args:
      k: how many, from 1 to the number of classes.

    Raises:
      ValueError: if `k` is not a whole number above 0; later, if there are fewer classes.

    Example:
      >>> outputs = Outputs(jnp.array([[3.0, 2.0, 1.0]]), {})
      >>> measures = {name: top_k_accuracy(k) for name, k in (("top-1", 1), ("top-2", 2))}
      >>> finished(measures, sums_of(measures, outputs, None, {"labels": jnp.array([1])}))
      {'top-1': 0.0, 'top-2': 1.0}
    """
    _checks.whole("k", k, 1)

    def values(student: Outputs, teacher: Outputs | None, batch: Batch) -> Array:
        logits = student.logits
        if not k <= logits.shape[-1] > 1:
            raise ValueError(f"k must be at most the number of classes, of two or more, {logits.shape[-1]}; got {k}.")
        labels = _checks.labels('batch["labels"]', read_batch(batch, "labels"), logits.shape[:-1])
        found = (jax.lax.top_k(logits, k)[1] == labels[..., None]).any(axis=-1)
        return _seen(found & ~jnp.isnan(logits).any(axis=-1), labels, logits.shape[-1])

    return Measure(values, percent=True)


def class_iou() -> Measure:
    """Each class's intersection over union of predicted and labelled pixels: [classes], NaN where a class never occurs.

    Where no pixel counts at all it is one NaN.

    Example:
      >>> outputs = Outputs(jnp.array([[[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]]), {})  # one picture of two pixels
      >>> measures = {"class_iou": class_iou(), "mean_iou": mean_iou()}
      >>> found = finished(measures, sums_of(measures, outputs, None, {"labels": jnp.array([[0, 1]])}))
      >>> found["class_iou"].tolist(), found["mean_iou"]
      ([0.5, 0.0, nan], 0.25)
    """
    return Measure(_overlap, lambda sums, count: _iou(sums), percent=True)


def mean_iou() -> Measure:
    """The mean of `class_iou` over the classes that are predicted or labelled anywhere in the data."""
    return Measure(_overlap, lambda sums, count: _mean_iou(sums), percent=True)


def label_accuracy() -> Measure:
    """How often a yes-or-no prediction is right, of several labels at once: a fraction of examples times labels.

    NaN if a label that counts is not from 0 to 1.

    Example:
      >>> outputs, batch = Outputs(jnp.array([[2.0, -1.0]]), {}), {"labels": jnp.array([[1, 1]])}
      >>> finished({"right": label_accuracy()}, sums_of({"right": label_accuracy()}, outputs, None, batch))
      {'right': 0.5}
    """

    def values(student: Outputs, teacher: Outputs | None, batch: Batch) -> Array:
        logits, labels = beside(student.logits, read_batch(batch, "labels"))
        right = (((logits > 0) == (labels > 0.5)) & ~jnp.isnan(logits)).astype(jnp.float32)
        return jnp.mean(jnp.where((labels >= 0) & (labels <= 1), right, jnp.nan), axis=-1)

    return Measure(values, percent=True)


def sums_of(measures: Mapping[str, Any], student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Any]:
    """The sums of one batch: ``examples``, and for each measure its values' and ``<name>_count``, how many they are of.

    Args:
      measures: by name, `Measure` or terms; what a term's own weights leave out is left out here, too.
      student: the network's outputs.
      teacher: the teacher's, or None.
      batch: with ``"labels"`` and what else the measures read.

    Raises:
      ValueError: if a measure cannot leave out what does not count, or as it says.
    """
    entries = student.logits.shape[:-1]
    mask = read_counted(batch, MASK, entries)
    found: dict[str, Any] = {"examples": _count(mask, entries)}
    for name, given in measures.items():
        if name == "examples" or name.endswith("_count"):
            raise ValueError(f"The measure's name {name!r} is taken by what is counted; choose another.")
        leaves = jax.tree.leaves(given, is_leaf=lambda leaf: isinstance(leaf, Schedule))
        if any(isinstance(leaf, Schedule) for leaf in leaves):
            raise ValueError(
                f"The measure {name!r} must have numbers in the place of schedules, since an evaluation has no step; "
                "kdjax.schedules.at gives a schedule's number at a step."
            )
        measure = as_measure(given)
        counted = counted_by(name, given, student, teacher, batch, mask)
        own_batch = batch if counted is None else {**batch, MASK: counted}
        own_student, own_teacher = keep((student, teacher), counted)
        values = measure.values(own_student, own_teacher, own_batch)
        shapes = {np.shape(array)[: len(entries)] for array in jax.tree.leaves(values)}
        own = entries if shapes == {entries} else entries[:1]
        if any(shape[: len(own)] != own for shape in shapes) or (counted is not None and counted.ndim > len(own)):
            raise ValueError(
                f"The measure {name!r} must return one number for each example, or for each position where positions are "
                f"left out, a shape that begins with {entries}; got {sorted(shapes)}."
            )
        found[name] = jax.tree.map(partial(_sum, counted=counted, axes=len(own)), values)
        found[f"{name}_count"] = _count(counted, own)
    return found


def finished(measures: Mapping[str, Any], sums: Mapping[str, Any]) -> dict[str, Any]:
    """Each measure's result, of its sums over all batches; NaN where no entry counted.

    Args:
      measures: by name, as for `sums_of`.
      sums: of `sums_of`, added up.
    """
    results = {}
    for name, measure in measures.items():
        own, count = jax.tree.map(lambda array: np.asarray(array, np.float64), sums[name]), float(sums[f"{name}_count"])
        result = as_measure(measure).finish(own, count) if count else np.nan
        results[name] = result if np.ndim(result) else float(result)
    return results


def as_measure(measure: Any) -> Measure:
    """A term as a measure: its mean, of which less is better."""
    if isinstance(measure, Measure):
        return measure
    try:
        inspect.signature(measure).bind(None, None, None)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"measures must be of kdjax.metrics, or terms (student, teacher, batch) -> one number an entry; {measure!r} is "
            f"none: {error}."
        ) from None
    return Measure(measure, places=places_of(measure) or _LABELS, lower_is_better=True)


def _sum(array: Array, counted: Counted, axes: int) -> Array:
    if counted is not None:
        # `where`, not a product: an entry that does not count may be NaN, and 0 · NaN is NaN.
        array = jnp.where(spread(counted, array.ndim), array, jnp.zeros((), array.dtype))
    return jnp.sum(array.astype(jnp.promote_types(array.dtype, jnp.float32)), axis=tuple(range(axes)))


def _count(counted: Counted, entries: tuple[int, ...]) -> Array:
    if counted is None:
        return jnp.asarray(math.prod(entries), jnp.float32)
    return jnp.sum(jnp.broadcast_to(spread(counted, len(entries)), entries).astype(jnp.float32))


def _seen(right: Array, labels: Array, classes: int) -> Array:
    """1 and 0, and NaN where a label is no class: a mistake of the data's, and none of the network's."""
    return jnp.where((labels < 0) | (labels >= classes), jnp.nan, right.astype(jnp.float32))


def _taught(student: Outputs, teacher: Outputs | None) -> Array:
    if teacher is None:
        raise ValueError('agreement compares the network with a teacher; give the data a "teacher".')
    logits = _checks.feature("teacher", teacher, "logits")
    _checks.same_leading_axes("logits", student.logits, 'batch["teacher"]', logits)
    return logits


def _overlap(student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Array]:
    logits = student.logits
    labels = _checks.labels('batch["labels"]', read_batch(batch, "labels"), logits.shape[:-1])
    classes = logits.shape[-1]
    said = jax.nn.one_hot(jnp.where(jnp.isnan(logits).any(axis=-1), -1, jnp.argmax(logits, axis=-1)), classes)
    # A label that is no class would count for none; NaN is seen.
    right = jnp.where(((labels < 0) | (labels >= classes))[..., None], jnp.nan, jax.nn.one_hot(labels, classes))
    return {"both": said * right, "either": jnp.maximum(said, right)}


def _mean_iou(sums: Mapping[str, np.ndarray]) -> float:
    occurring = _iou(sums)[sums["either"] != 0]
    return float(np.mean(occurring)) if len(occurring) else math.nan


def _iou(sums: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.divide(sums["both"], sums["either"], out=np.full(sums["both"].shape, np.nan), where=sums["either"] > 0)
