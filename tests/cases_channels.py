"""A row for each loss in kdjax/losses/_channels.py."""

from bad_calls import SAME_BATCH, TEMPERATURES, WHOLE_NUMBERS, wrong_rank
from more_inputs import maps_of_classes

from kdjax import losses
from kdjax.testing import BadCall, Case
from kdjax.testing._changes import of_student, of_teacher
from kdjax.testing.inputs import equal_maps
from kdjax.testing.invariances import mirrored, permuted_last_axis, scaled, scaled_far, scaled_teacher, translated

MAPS = (
    *wrong_rank(r"4 axes, \[batch, height, width, channels\]", lambda a: a[:, 0]),
    *SAME_BATCH,
    *WHOLE_NUMBERS,
    BadCall("student and teacher must have the same channels, their last axis", {}, of_student(lambda a: a[..., :2])),
)


def mirrored_student(arrays):
    """Mirror: the student's maps alone, left to right and top to bottom."""
    return of_student(lambda a: a[:, ::-1, ::-1])(arrays)


ROWS = (
    Case(
        losses.channel_wise,
        equal_maps,
        couples_batch=False,
        keywords={"temperature": 2.5},
        other_keywords=({}, {"temperature": 0.5}),
        invariances=(translated, permuted_last_axis, mirrored),
        bad_calls=(
            *MAPS,
            *TEMPERATURES,
            BadCall("student and teacher must have the same shape", {}, of_teacher(lambda a: a[:, :2])),
            BadCall("student must have positions and channels", {}, of_student(lambda a: a[:, :0])),
            BadCall("must have two positions or more", {}, lambda arrays: tuple(a[:, :1, :1] for a in arrays)),
        ),
    ),
    Case(
        losses.inter_channel_correlation,
        maps_of_classes,
        couples_batch=False,
        invariances=(scaled, scaled_far, permuted_last_axis, mirrored_student),
        bad_calls=MAPS,
    ),
    Case(
        losses.class_attention,
        maps_of_classes,
        couples_batch=False,
        keywords={"resolution": 2},
        other_keywords=({"resolution": 1},),
        invariances=(scaled, scaled_far, scaled_teacher, permuted_last_axis, mirrored),
        bad_calls=(
            *MAPS,
            BadCall("resolution must be a whole number of 1 or more; got 0", {"resolution": 0}),
            BadCall("resolution must be at most 2, the smallest side of the maps; got 3", {"resolution": 3}),
        ),
    ),
)
