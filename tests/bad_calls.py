"""Wrong arguments that many losses share, and the words that the error must have."""

from collections.abc import Callable

import numpy as np

from kdjax.testing import BadCall
from kdjax.testing._changes import of_student, of_teacher

TEMPERATURES = tuple(
    BadCall(f"temperature must be a finite number greater than 0; got {shown}", {"temperature": value})
    for value, shown in ((0.0, "0.0"), (-1.0, "-1.0"), (float("nan"), "nan"), (float("inf"), "inf"))
)
WHOLE_NUMBERS = (
    BadCall(
        r"student must hold floating-point numbers; got shape .* and dtype int",
        {},
        of_student(lambda a: a.astype(np.int32)),
    ),
    BadCall(
        r"teacher must hold floating-point numbers; got shape .* and dtype int",
        {},
        of_teacher(lambda a: a.astype(np.int32)),
    ),
)
SAME_SHAPE = (
    BadCall(
        r"student and teacher must have the same shape; got \(6, .* for student and \(5, .* for teacher",
        {},
        of_teacher(lambda a: a[:5]),
    ),
    BadCall(r"student and teacher must have the same shape", {}, of_student(lambda a: a[..., :2])),
)
SAME_BATCH = (
    BadCall(
        r"student and teacher must have the same batch size.* \(6, .* for student and \(5, .* for teacher",
        {},
        of_teacher(lambda a: a[:5]),
    ),
)


def wrong_rank(wanted: str, change: Callable[[np.ndarray], np.ndarray]) -> tuple[BadCall, BadCall]:
    return (
        BadCall(rf"student must have {wanted}; got shape \(", {}, of_student(change)),
        BadCall(rf"teacher must have {wanted}; got shape \(", {}, of_teacher(change)),
    )


LOGITS_CALLS = (
    *wrong_rank(r"at least 1 axis, \[..., classes\]", lambda a: a[0, 0]),
    *SAME_SHAPE,
    *WHOLE_NUMBERS,
)
LABELLED_CALLS = (
    *LOGITS_CALLS,
    BadCall(
        r"labels must be whole class numbers of shape \(6,\); got shape \(5,\)", {}, lambda a: (*a[:-1], a[-1][:5])
    ),
    BadCall(r"labels must be .*; got shape \(6,\) and dtype float", {}, lambda a: (*a[:-1], 1.0 * a[-1])),
)
RELATION_CALLS = (
    *wrong_rank(r"at least 2 axes, \[batch, dim\]", lambda a: a.reshape(len(a), -1)[:, 0]),
    *SAME_BATCH,
    *WHOLE_NUMBERS,
)
