"""A row for each loss in kdjax/losses/_features.py, _attention.py, _activation_signs.py and _flow.py."""

import numpy as np
from bad_calls import SAME_BATCH, SAME_SHAPE, WHOLE_NUMBERS, wrong_rank
from more_inputs import large_maps, layers

from kdjax import losses
from kdjax.testing import BadCall, Case
from kdjax.testing._changes import each, of_student, of_teacher
from kdjax.testing.inputs import equal_maps, sequences, unequal_maps
from kdjax.testing.invariances import (
    mirrored,
    negated,
    negated_all,
    permuted_last_axis,
    permuted_own_last_axis,
    permuted_with_their_numbers,
    rotated,
    rotated_together,
    scaled,
    scaled_each_example,
    scaled_far,
    scaled_teacher,
    translated,
    translated_together,
)

POWERS = (
    BadCall("power must be a finite number greater than 0; got 0.0", {"power": 0.0}),
    BadCall("power must be a finite number greater than 0; got nan", {"power": float("nan")}),
)
ANY_FEATURES = (
    BadCall(r"student must have at least 2 axes, \[batch, .*\]; got shape \(6,\)", {}, each(lambda a: a[:, 0, 0, 0])),
    *SAME_SHAPE,
    *WHOLE_NUMBERS,
)
MAPS = (
    *wrong_rank(r"4 axes, \[batch, height, width, channels\]", lambda a: a[:, 0]),
    *SAME_BATCH,
    *WHOLE_NUMBERS,
)

RAW_VARIANCE = np.array([-1.0, 0.5, 2.0, 0.0])
MARGIN = np.array([-0.1, -1.0, -0.5, -0.25])


def _per_channel(name: str) -> tuple[BadCall, ...]:
    """The features are [6, 3, 2, 4]."""
    return tuple(
        BadCall(
            rf"{name} must have shape \(4,\), one number per channel of .* \(6, 3, 2, 4\); got shape \({shown}\)",
            {name: np.zeros(shape)},
        )
        for shape, shown in (((3,), "3,"), ((), ""), ((1, 4), "1, 4"))
    )


ROWS = (
    Case(
        losses.hint,
        equal_maps,
        couples_batch=False,
        invariances=(translated_together, permuted_last_axis, rotated_together, mirrored),
        bad_calls=ANY_FEATURES,
    ),
    Case(
        losses.attention_transfer,
        unequal_maps,
        couples_batch=False,
        keywords={"power": 3.0},
        other_keywords=({}, {"power": 1.0}, {"power": 1.5}),
        invariances=(scaled, scaled_far, scaled_each_example, permuted_own_last_axis, mirrored, negated),
        bad_calls=(*MAPS, *POWERS),
    ),
    Case(
        losses.factor_transfer,
        unequal_maps,
        couples_batch=False,
        keywords={"power": 3.0},
        other_keywords=({}, {"power": 1.0}, {"power": 1.5}),
        smooth_at_equality=False,
        invariances=(scaled, scaled_far, scaled_each_example, permuted_own_last_axis, mirrored, negated),
        bad_calls=(*MAPS, *POWERS),
    ),
    Case(
        losses.neuron_selectivity,
        unequal_maps,
        couples_batch=False,
        invariances=(scaled, scaled_far, scaled_each_example, permuted_own_last_axis, mirrored, negated),
        bad_calls=MAPS,
    ),
    Case(
        losses.cosine,
        equal_maps,
        couples_batch=False,
        zero_at_equality=False,  # two zero vectors are equal and at 1; test_losses_features.py asks for 0 at all others
        invariances=(scaled, scaled_far, scaled_each_example, permuted_last_axis, rotated_together, mirrored),
        bad_calls=ANY_FEATURES,
    ),
    Case(
        losses.variational_information,
        equal_maps,
        couples_batch=False,
        keywords={"raw_variance": RAW_VARIANCE, "eps": 0.1},
        other_keywords=({"raw_variance": -RAW_VARIANCE}, {"raw_variance": RAW_VARIANCE - 40.0, "eps": 1e-3}),
        zero_at_equality=False,
        lowest=float(np.mean(np.log(np.log1p(np.exp(RAW_VARIANCE)) + 0.1)) / 2),
        invariances=(translated_together, permuted_with_their_numbers, mirrored),
        largest_in_float16=1000.0,  # the gradient grows as 1 / σ², and a setting has σ² = 0.001
        bad_calls=(
            BadCall(r"student_mean must have at least 2 axes, \[batch, .*\]", {}, each(lambda a: a[:, 0, 0, 0])),
            BadCall(r"student_mean and teacher .* same shape; got \(6, .* \(5, ", {}, of_teacher(lambda a: a[:5])),
            BadCall(
                "student_mean must hold floating-point numbers; got .* int",
                {},
                of_student(lambda a: a.astype(np.int32)),
            ),
            BadCall(
                "teacher must hold floating-point numbers; got .* int", {}, of_teacher(lambda a: a.astype(np.int32))
            ),
            BadCall("eps must be a finite number greater than 0; got 0.0", {"eps": 0.0}),
            *_per_channel("raw_variance"),
        ),
    ),
    Case(
        losses.hierarchical_context,
        large_maps,
        couples_batch=False,
        keywords={"levels": (3, 2)},
        other_keywords=({}, {"levels": (9, 5, 1)}, {"levels": ()}),
        invariances=(translated_together, permuted_last_axis, rotated_together, mirrored),
        bad_calls=(
            *wrong_rank(r"4 axes, \[batch, height, width, channels\]", lambda a: a[:, 0])[:1],
            *SAME_SHAPE,
            *WHOLE_NUMBERS,
            BadCall(r"levels\[1\] must be a whole number of 1 or more; got 0", {"levels": (2, 0)}),
            BadCall(r"levels\[0\] must be a whole number of 1 or more; got 2.0", {"levels": (2.0,)}),
        ),
    ),
    Case(
        losses.activation_boundary,
        equal_maps,
        couples_batch=False,
        keywords={"margin": 0.75},
        other_keywords=({}, {"margin": 3.0}),
        zero_at_equality=False,
        invariances=(scaled_teacher, permuted_last_axis, mirrored),
        bad_calls=(
            *ANY_FEATURES,
            BadCall("margin must be a finite number greater than 0; got 0.0", {"margin": 0.0}),
            BadCall("margin must be a finite number greater than 0; got inf", {"margin": float("inf")}),
        ),
    ),
    Case(
        losses.overhaul,
        equal_maps,
        couples_batch=False,
        keywords={"margin": MARGIN},
        other_keywords=({"margin": 3.0 * MARGIN}, {"margin": 0.0 * MARGIN}),
        invariances=(permuted_with_their_numbers, mirrored),
        bad_calls=(
            *ANY_FEATURES,
            *_per_channel("margin"),
            BadCall(r"margin must hold finite numbers of 0 or less; got \[1.0, ", {"margin": np.ones(4)}),
            BadCall(r"margin must hold finite numbers of 0 or less; got \[nan, ", {"margin": np.full(4, np.nan)}),
        ),
    ),
    Case(
        losses.fsp,
        layers,
        couples_batch=False,
        pairs=((0, 2), (1, 3)),
        invariances=(permuted_last_axis, mirrored, negated_all),
        largest_in_float16=100.0,  # the gradient grows with the third power of the features
        bad_calls=(
            BadCall(r"student_bottom must have 4 axes, \[batch, .*\]; got shape", {}, of_student(lambda a: a[:, 0])),
            BadCall(r"student_top must have 4 axes, \[batch, .*\]; got shape", {}, of_teacher(lambda a: a[:, 0])),
            BadCall(r"student_bottom and student_top .* batch size.* \(6, .* \(5, ", {}, of_teacher(lambda a: a[:5])),
            BadCall(
                r"student_top and teacher_top must have as many channels.* \(6, 2, 4, 1\) and \(6, 3, 2, 2\)",
                {},
                of_teacher(lambda a: a[..., :1]),
            ),
            BadCall("student_bottom must hold floating-point numbers", {}, of_student(lambda a: a.astype(np.int32))),
            BadCall("student_top must hold floating-point numbers", {}, of_teacher(lambda a: a.astype(np.int32))),
        ),
    ),
    Case(
        losses.sequence_angles,
        sequences,
        couples_batch=False,
        invariances=(scaled, scaled_far, scaled_each_example, rotated, translated, permuted_own_last_axis),
        bad_calls=(
            *wrong_rank(r"3 axes, \[batch, time, dim\]", lambda a: a[:, 0]),
            BadCall(r"same batch size and .* \(6, 5, 3\) for .* \(5, 5, 4\) for", {}, of_teacher(lambda a: a[:5])),
            BadCall(r"the same number of steps.* \(6, 4, 3\) for .* \(6, 5, 4\)", {}, of_student(lambda a: a[:, :4])),
            BadCall(r"at least 3; got shapes \(6, 2, 3\)", {}, each(lambda a: a[:, :2])),
            *WHOLE_NUMBERS,
        ),
    ),
)
