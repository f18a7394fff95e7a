"""A row for each loss in _divergences.py, _guided.py, _own_labels.py and _levels.py, and for sampled_kl."""

import numpy as np
from bad_calls import LABELLED_CALLS, LOGITS_CALLS, TEMPERATURES, WHOLE_NUMBERS, wrong_rank
from cases_logits import renamed_classes, shifted_student
from more_inputs import (
    doubly_labelled_logits,
    drawn_logits,
    log_softmax,
    own_labelled_logits,
    unlike_logits,
)

from kdjax import losses
from kdjax.testing import BadCall, Case
from kdjax.testing._changes import BAD_POINTS, floats, of_student, of_teacher
from kdjax.testing.inputs import labelled_logits, logits
from kdjax.testing.invariances import (
    permuted_last_axis,
    permuted_own_last_axis,
    shifted_logits,
)


def out_of(name, low, high, *values):
    return tuple(BadCall(f"{name} must lie between {low} and {high}; got {value}", {name: value}) for value in values)


ALPHA = out_of("alpha", "0.0", "1.0", -0.1, 1.1, float("nan"))
OF_A_BATCH = (
    *LOGITS_CALLS,
    *TEMPERATURES,
    BadCall(r"where must be bools of shape \(6,\)", {"where": np.ones(5, bool)}),
)


def renamed_everywhere(arrays):
    """Permutation: classes in another order, and the labels with them."""
    *networks, labels = arrays
    return *(z[:, ::-1] for z in networks), networks[0].shape[1] - 1 - labels


def shifted_networks(arrays):
    """Shift: a constant added to all logits of a network."""
    *networks, labels = arrays
    return *(z + 3.0 * number - 4.0 for number, z in enumerate(networks)), labels


def clearly_ordered(arrays):
    """Where two classes' scores are nearly equal, rounding says which is the larger: such examples get another order."""
    student, *others, labels = arrays
    with np.errstate(all="ignore"):
        shares = [np.exp(z - z.max(axis=-1, keepdims=True)) for z in (np.asarray(z, np.float64) for z in others)]
    rest = np.arange(student.shape[-1]) != np.asarray(labels)[..., None]
    score = sum(p * rest / np.maximum((p * rest).sum(axis=-1, keepdims=True), 1e-300) for p in shares)
    in_order = np.sort(score, axis=-1)
    near = (np.diff(in_order, axis=-1) <= 1e-5 * in_order[..., 1:]) & (in_order[..., 1:] > 0)
    ranks = np.argsort(np.argsort(score, axis=-1, kind="stable"), axis=-1)
    unclear = near.any(axis=-1, keepdims=True)
    return student, *(np.where(unclear, ranks, z).astype(z.dtype) for z in others), labels


def renamed_own_classes(arrays):
    """Permutation: classes in another order, and the labels with them."""
    student, labels = arrays
    return student[:, ::-1], student.shape[1] - 1 - labels


# sampled_kl: four draws of five classes


def student_as_drawn(arrays):
    student, _, indices = arrays
    return student, np.take_along_axis(log_softmax(student.astype(np.float64)), indices, axis=1), indices


def as_log_probabilities(arrays):
    student, values, indices = arrays
    return student, -np.abs(values), indices


def renamed_drawn_classes(arrays):
    """Permutation: classes in another order, and the draws with them."""
    student, values, indices = arrays
    return student[:, ::-1], values, student.shape[1] - 1 - indices


def reordered_draws(arrays):
    """Permutation: the draws in another order."""
    student, values, indices = arrays
    return student, values[:, [3, 0, 2, 1]], indices[:, [3, 0, 2, 1]]


ROWS = (
    Case(
        losses.total_variation,
        logits,
        couples_batch=False,
        leading_axes=True,
        invariances=(shifted_logits, permuted_last_axis),
        smooth_at_equality=False,
        bad_calls=LOGITS_CALLS,
    ),
    Case(
        losses.skewed_kl,
        logits,
        couples_batch=False,
        leading_axes=True,
        keywords={"alpha": 0.3, "temperature": 2.5},
        other_keywords=({}, {"alpha": 0.0}, {"alpha": 1e-6, "temperature": 2.0}, {"alpha": 0.9}),
        invariances=(shifted_logits, permuted_last_axis),
        bad_calls=(*LOGITS_CALLS, *TEMPERATURES, *ALPHA),
    ),
    Case(
        losses.reverse_skewed_kl,
        logits,
        couples_batch=False,
        leading_axes=True,
        keywords={"alpha": 0.3, "temperature": 2.5},
        other_keywords=({}, {"alpha": 0.0}, {"alpha": 1e-6, "temperature": 2.0}, {"alpha": 0.9}),
        invariances=(shifted_logits, permuted_last_axis),
        bad_calls=(*LOGITS_CALLS, *TEMPERATURES, *ALPHA),
    ),
    Case(
        losses.sorted_probabilities,
        unlike_logits,
        couples_batch=False,
        leading_axes=True,
        invariances=(shifted_logits, permuted_last_axis, permuted_own_last_axis),
        smooth_at_equality=False,
        bad_calls=(
            *wrong_rank(r"at least 1 axis, \[..., classes\]", lambda a: a[0, 0]),
            *WHOLE_NUMBERS,
            BadCall("student and teacher must have the same axes before the last", {}, of_teacher(lambda a: a[:5])),
            BadCall("must have the logits of two classes or more", {}, of_teacher(lambda a: a[:, :1])),
        ),
    ),
    Case(
        losses.sampled_kl,
        drawn_logits,
        couples_batch=False,
        leading_axes=True,
        agree=student_as_drawn,
        admitted=as_log_probabilities,
        smooth_at_equality=False,  # a student that agrees still follows the draws
        lowest=-np.inf,
        invariances=(shifted_student, renamed_drawn_classes, reordered_draws),
        bad_calls=(
            BadCall(r"student must have at least 1 axis", {}, of_student(lambda a: a[0, 0])),
            BadCall(r"sampled_values must have 2 axes, \[..., draws\]", {}, of_teacher(lambda a: a[0])),
            BadCall("sampled_values and sampled_indices must have the same shape", {}, of_teacher(lambda a: a[:, :2])),
            BadCall(
                "student and sampled_values must have the same axes before the last", {}, of_student(lambda a: a[:5])
            ),
            BadCall(
                "sampled_indices must hold whole class numbers; got dtype float",
                {},
                lambda arrays: (*arrays[:2], 1.0 * arrays[2]),
            ),
            BadCall(
                "sampled_values must hold one draw at least",
                {},
                lambda arrays: (arrays[0], *(a[:, :0] for a in arrays[1:])),
            ),
            BadCall(
                "log_weights and sampled_values must have the same shape", {"log_weights": np.zeros((6, 3), np.float32)}
            ),
            BadCall("student must hold floating-point numbers", {}, of_student(lambda a: a.astype(np.int32))),
            BadCall("sampled_values must hold floating-point numbers", {}, of_teacher(lambda a: a.astype(np.int32))),
        ),
    ),
    Case(
        losses.weighted_soft_labels,
        labelled_logits,
        couples_batch=False,
        leading_axes=True,
        keywords={"temperature": 2.5},
        other_keywords=({}, {"temperature": 0.5}),
        invariances=(shifted_logits, renamed_classes),
        bad_calls=(*LABELLED_CALLS, *TEMPERATURES),
    ),
    Case(
        losses.virtual_teacher,
        own_labelled_logits,
        couples_batch=False,
        leading_axes=True,
        pairs=(),
        keywords={"correct": 0.8, "temperature": 2.5},
        other_keywords=({}, {"correct": 0.1, "temperature": 1.0}),
        invariances=(shifted_student, renamed_own_classes),
        zero_at_equality=False,  # there is one network
        bad_points={name: change for name, change in BAD_POINTS.items() if name != "opposite"}
        | {"opposite": floats(np.negative)},
        bad_calls=(
            *TEMPERATURES,
            *out_of("correct", "1e-06", "0.999999", 0.0, 1.0, float("nan")),
            BadCall(r"student must have at least 1 axis, \[..., classes\]", {}, of_student(lambda a: a[0, 0])),
            BadCall("student must hold floating-point numbers", {}, of_student(lambda a: a.astype(np.int32))),
            BadCall(r"labels must be whole class numbers of shape \(6,\)", {}, of_teacher(lambda a: a[:5])),
            BadCall("labels must be .* dtype float", {}, of_teacher(lambda a: 1.0 * a)),
        ),
    ),
    Case(
        losses.uskd_target,
        labelled_logits,
        couples_batch=True,
        leading_axes=True,
        invariances=(shifted_logits, renamed_classes),
        zero_at_equality=False,  # a cross-entropy
        bad_calls=LABELLED_CALLS,
    ),
    Case(
        losses.uskd_non_target,
        doubly_labelled_logits,
        couples_batch=False,
        leading_axes=True,
        invariances=(shifted_networks, renamed_everywhere),
        zero_at_equality=False,  # a cross-entropy
        admitted=clearly_ordered,
        bad_calls=(
            *LABELLED_CALLS,
            BadCall("student and weak must have the same shape", {}, lambda a: (*a[:2], a[2][:, :4], a[3])),
            BadCall("weak must hold floating-point numbers", {}, lambda a: (*a[:2], a[2].astype(np.int32), a[3])),
        ),
    ),
    Case(
        losses.multi_level_instance,
        logits,
        couples_batch=False,
        leading_axes=True,
        keywords={"temperatures": (1.5, 3.0)},
        invariances=(shifted_logits, permuted_last_axis),
        bad_calls=(
            *LOGITS_CALLS,
            BadCall(r"temperatures must be a tuple of one number or more; got \(\)", {"temperatures": ()}),
            BadCall("temperatures must be a tuple of one number or more; got 4.0", {"temperatures": 4.0}),
            BadCall(r"temperatures\[1\] must be a finite number greater than 0; got 0.0", {"temperatures": (1.0, 0.0)}),
        ),
    ),
    Case(
        losses.multi_level_batch,
        logits,
        couples_batch=True,
        leading_axes=True,
        keywords={"temperature": 2.5},
        other_keywords=({}, {"temperature": 0.5}),
        invariances=(shifted_logits, permuted_last_axis),
        bad_calls=OF_A_BATCH,
    ),
    Case(
        losses.multi_level_class,
        logits,
        couples_batch=True,
        leading_axes=True,
        keywords={"temperature": 2.5},
        other_keywords=({}, {"temperature": 0.5}),
        invariances=(shifted_logits, permuted_last_axis),
        lowest=-40.0,  # a share may be negative, the mean is not
        bad_calls=OF_A_BATCH,
    ),
)
