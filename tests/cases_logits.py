"""A row for each loss on predictions: kdjax/losses/_logits.py, _decoupled.py, _patterns.py, _stored.py."""

import numpy as np
from bad_calls import LABELLED_CALLS, LOGITS_CALLS, TEMPERATURES
from more_inputs import log_softmax, stored_logits

from kdjax import losses
from kdjax.testing import BadCall, Case
from kdjax.testing._changes import of_student
from kdjax.testing.inputs import labelled_logits, logits
from kdjax.testing.invariances import permuted_last_axis, rotated_together, scaled, shifted_logits, translated_together


def not_finite(*names):
    return tuple(
        BadCall(f"{name} must be a finite number; got {value}", {name: value})
        for name in names
        for value in (float("nan"), float("inf"))
    )


def renamed_classes(arrays):
    """Permutation: classes in another order, and the labels with them."""
    student, teacher, labels = arrays
    return student[:, ::-1], teacher[:, ::-1], student.shape[1] - 1 - labels


# top_k_kl: three of five classes were stored


def student_as_stored(arrays):
    student, _, indices = arrays
    return student, np.take_along_axis(log_softmax(student.astype(np.float64)), indices, axis=1), indices


def as_log_probabilities(arrays):
    """The stored numbers lowered to probabilities whose sum is 0.9, where it is more than 1."""
    student, values, indices = arrays
    largest = values.max(axis=1, keepdims=True)
    sums = largest + np.log(np.sum(np.exp(values - largest), axis=1, keepdims=True))
    lowered = values - (sums - np.log(0.9)).astype(values.dtype)
    return student, np.where(sums > 0, lowered, values), indices


def renamed_stored_classes(arrays):
    """Permutation: classes in another order, and the stored numbers of classes with them."""
    student, values, indices = arrays
    return student[:, ::-1], values, student.shape[1] - 1 - indices


def reordered_stored_classes(arrays):
    """Permutation: the stored classes in another order, and their values with them."""
    student, values, indices = arrays
    return student, values[:, [2, 0, 1]], indices[:, [2, 0, 1]]


def shifted_student(arrays):
    """Shift: a constant on all the student's logits, another for each example."""
    return of_student(lambda a: a + np.arange(1.0, len(a) + 1)[:, None])(arrays)


ROWS = (
    Case(
        losses.soft_target_kl,
        logits,
        couples_batch=False,
        leading_axes=True,
        keywords={"temperature": 2.5},
        other_keywords=({}, {"temperature": 1.0}, {"temperature": 0.5}),
        invariances=(shifted_logits, permuted_last_axis),
        bad_calls=(*LOGITS_CALLS, *TEMPERATURES),
    ),
    Case(
        losses.soft_target_bce,
        logits,
        couples_batch=False,
        leading_axes=True,
        keywords={"temperature": 2.5},
        other_keywords=({}, {"temperature": 0.5}),
        invariances=(permuted_last_axis,),
        bad_calls=(*LOGITS_CALLS, *TEMPERATURES),
    ),
    Case(
        losses.logit_mse,
        logits,
        couples_batch=False,
        leading_axes=True,
        invariances=(translated_together, permuted_last_axis, rotated_together),
        bad_calls=LOGITS_CALLS,
    ),
    Case(
        losses.reverse_kl,
        logits,
        couples_batch=False,
        leading_axes=True,
        keywords={"temperature": 2.5},
        other_keywords=({}, {"temperature": 0.5}),
        invariances=(shifted_logits, permuted_last_axis),
        bad_calls=(*LOGITS_CALLS, *TEMPERATURES),
    ),
    Case(
        losses.jensen_shannon,
        logits,
        couples_batch=False,
        leading_axes=True,
        keywords={"beta": 0.3, "temperature": 2.5},
        other_keywords=({}, {"beta": 0.0}, {"beta": 1.0, "temperature": 2.0}, {"beta": 1e-6}, {"beta": 0.9}),
        invariances=(shifted_logits, permuted_last_axis),
        bad_calls=(
            *LOGITS_CALLS,
            *TEMPERATURES,
            *(
                BadCall(f"beta must lie between 0.0 and 1.0; got {beta}", {"beta": beta})
                for beta in (-0.1, 1.1, float("nan"))
            ),
        ),
    ),
    Case(
        losses.target_class_kd,
        labelled_logits,
        couples_batch=False,
        leading_axes=True,
        keywords={"temperature": 2.5},
        other_keywords=({}, {"temperature": 0.5}),
        invariances=(shifted_logits, renamed_classes),
        bad_calls=(*LABELLED_CALLS, *TEMPERATURES),
    ),
    Case(
        losses.non_target_class_kd,
        labelled_logits,
        couples_batch=False,
        leading_axes=True,
        keywords={"temperature": 2.5},
        other_keywords=({}, {"temperature": 0.5}),
        invariances=(shifted_logits, renamed_classes),
        bad_calls=(*LABELLED_CALLS, *TEMPERATURES),
    ),
    Case(
        losses.decoupled_kd,
        labelled_logits,
        couples_batch=False,
        leading_axes=True,
        keywords={"alpha": 0.7, "beta": 3.0, "temperature": 2.5},
        other_keywords=({}, {"temperature": 1.0}),
        invariances=(shifted_logits, renamed_classes),
        bad_calls=(*LABELLED_CALLS, *TEMPERATURES, *not_finite("alpha", "beta")),
    ),
    Case(
        losses.normalized_kd,
        labelled_logits,
        couples_batch=False,
        leading_axes=True,
        keywords={"gamma": 0.7, "temperature": 2.5},
        other_keywords=({}, {"temperature": 2.0}),
        invariances=(shifted_logits, renamed_classes),
        zero_at_equality=False,
        bad_calls=(*LABELLED_CALLS, *TEMPERATURES, *not_finite("gamma")),
    ),
    Case(
        losses.dist,
        logits,
        couples_batch=True,
        leading_axes=True,
        keywords={"beta": 0.7, "gamma": 3.0, "temperature": 2.5},
        other_keywords=({}, {"temperature": 4.0}),
        invariances=(shifted_logits, permuted_last_axis),
        bad_calls=(*LOGITS_CALLS, *TEMPERATURES, *not_finite("beta", "gamma")),
    ),
    Case(
        losses.standardized_kd,
        logits,
        couples_batch=False,
        leading_axes=True,
        keywords={"temperature": 1.5},
        other_keywords=({}, {"temperature": 0.5}),
        invariances=(shifted_logits, scaled, permuted_last_axis),
        bad_calls=(*LOGITS_CALLS, *TEMPERATURES),
    ),
    Case(
        losses.top_k_kl,
        stored_logits,
        couples_batch=False,
        leading_axes=True,
        keywords={"temperature": 2.5},
        other_keywords=({}, {"temperature": 1.0}, {"temperature": 0.5}, {"tail": False}),
        invariances=(shifted_student, renamed_stored_classes, reordered_stored_classes),
        agree=student_as_stored,
        admitted=as_log_probabilities,
        largest_in_float16=5e3,
        bad_calls=(
            BadCall(r"student must have at least 1 axis, \[..., classes\]; got", {}, of_student(lambda a: a[0, 0])),
            BadCall(r"top_values must have 2 axes, \[..., k\]; got", {}, lambda a: (a[0], a[1][:, 0], a[2])),
            BadCall(
                r"top_values and top_indices must have the same shape; got \(6, 3\) for top_values and \(6, 2\)",
                {},
                lambda a: (a[0], a[1], a[2][:, :2]),
            ),
            BadCall(r"student and top_values must have the same axes before the last", {}, of_student(lambda a: a[:5])),
            BadCall(r"top_indices must hold whole class numbers; got .*float", {}, lambda a: (a[0], a[1], 1.0 * a[2])),
            BadCall(r"student must hold floating-point", {}, of_student(lambda a: a.astype(np.int32))),
            BadCall(r"top_values must hold floating-point", {}, lambda a: (a[0], a[1].astype(np.int32), a[2])),
            BadCall(r"between 1 and 2 classes.*; got k = 3", {}, of_student(lambda a: a[:, :2])),
            BadCall(r"between 1 and 5 classes.*; got k = 0", {}, lambda a: (a[0], a[1][:, :0], a[2][:, :0])),
            *TEMPERATURES,
        ),
    ),
)
