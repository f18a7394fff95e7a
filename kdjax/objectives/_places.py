"""Where a term's arrays come from: places such as ``"student.stage2"``, ``"teacher.logits"`` and ``"batch.labels"``."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from jax import lax

from kdjax import _checks
from kdjax._types import Batch, Outputs

PLACES = '"student.NAME", "detached.NAME", "teacher.NAME" or "batch.NAME"'


def is_place(value: Any) -> bool:
    """Whether it names whose array it is and which, as ``"student.stage2"`` does."""
    who, dot, name = value.partition(".") if isinstance(value, str) else ("", "", "")
    return who in ("student", "detached", "teacher", "batch") and bool(dot and name)


def read_place(reader: Callable, student: Outputs, teacher: Outputs | None, batch: Batch, place: str) -> Any:
    """The array at a place, or the ValueError that names why `reader` cannot have it."""
    who, name = place.split(".", 1)
    if who == "batch":
        return read_batch(batch, name)
    if who == "teacher" and teacher is None:
        raise ValueError(
            f"{name_of(reader)} compares the student with a teacher, and this step has none: "
            'give make_train_step a teacher_apply, or the batch a "teacher".'
        )
    found = _checks.feature(
        "teacher" if who == "teacher" else "student", teacher if who == "teacher" else student, name
    )
    return lax.stop_gradient(found) if who == "detached" else found


def read_batch(batch: Batch, name: str) -> Any:
    if name not in batch:
        raise ValueError(f'batch must have "{name}"; it has {sorted(batch)}.')
    return batch[name]


def wants_labels(loss: Callable, arrays: int, keywords: Iterable[str]) -> bool:
    """Whether `loss` has an argument ``labels`` that neither one of its first `arrays` arguments nor a keyword fills."""
    parameters = list(inspect.signature(loss).parameters)
    return "labels" in parameters and "labels" not in keywords and parameters.index("labels") >= arrays


def wants(loss: Callable, argument: str, keywords: Iterable[str]) -> bool:
    """Whether `loss` has that argument by name, and nothing fills it."""
    return argument in inspect.signature(loss).parameters and argument not in keywords


def places_of(term: Any) -> tuple[str, ...] | None:
    """All that a term reads; None where that cannot be seen."""
    its = getattr(term, "places", None)
    return getattr(getattr(term, "func", None), "places", None) if its is None else its


def name_of(function: Callable) -> str:
    return getattr(function, "__name__", repr(function))
