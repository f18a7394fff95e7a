"""A row for each loss in kdjax/losses/_features.py."""

from case import (
    SAME_BATCH,
    SAME_SHAPE,
    WHOLE_NUMBERS,
    BadCall,
    Case,
    each,
    equal_maps,
    mirrored,
    negated,
    permuted_last_axis,
    permuted_own_last_axis,
    rotated_together,
    scaled,
    scaled_each_example,
    scaled_far,
    translated_together,
    unequal_maps,
    wrong_rank,
)

from kdjax import losses

ROWS = (
    Case(
        losses.hint,
        equal_maps,
        couples_batch=False,
        golden=("hint",),
        invariances=(translated_together, permuted_last_axis, rotated_together, mirrored),
        bad_calls=(
            BadCall(
                r"student must have at least 2 axes, \[batch, ...\]; got shape \(6,\)",
                {},
                each(lambda a: a[:, 0, 0, 0]),
            ),
            *SAME_SHAPE,
            *WHOLE_NUMBERS,
        ),
    ),
    Case(
        losses.attention_transfer,
        unequal_maps,
        couples_batch=False,
        keywords={"power": 3.0},
        other_keywords=({}, {"power": 1.0}, {"power": 1.5}),
        golden=("attention_transfer", "attention_transfer_p4", "attention_transfer_pool_student"),
        invariances=(scaled, scaled_far, scaled_each_example, permuted_own_last_axis, mirrored, negated),
        bad_calls=(
            *wrong_rank(r"4 axes, \[batch, height, width, channels\]", lambda a: a[:, 0]),
            *SAME_BATCH,
            *WHOLE_NUMBERS,
            BadCall("power must be a finite number greater than 0; got 0.0", {"power": 0.0}),
            BadCall("power must be a finite number greater than 0; got nan", {"power": float("nan")}),
        ),
    ),
)
