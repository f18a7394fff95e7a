"""What the teacher says of a batch: run, or read from the batch where it was kept."""

from collections.abc import Mapping
from typing import Any

import jax
from jax import lax

from kdjax._apply import cached_outputs, run
from kdjax._types import Apply, Outputs, Shared, Weights
from kdjax.objectives._places import places_of
from kdjax.objectives._weighted_sum import Objective


def teach(
    teacher_apply: Apply | None, teacher: Weights | None, batch: Mapping[str, Any], objective: Objective | None = None
) -> Outputs | None:
    """The teacher's outputs, from the batch or by running it; the one place where its gradient is stopped.

    What the objective reads and the batch's teacher lacks comes from the weights, if it is `Shared`: the compiler drops the
    rest of that run.
    """
    if "teacher" in batch:
        kept = cached_outputs(batch)
        lacking = _read_of_teacher(objective) - {"logits", *kept.features}
        if lacking and teacher_apply is not None and teacher is not None:
            features = _run_teacher(teacher_apply, teacher, batch).features
            shared = {name: features[name] for name in lacking & {*features} if isinstance(features[name], Shared)}
            kept = kept._replace(features={**kept.features, **shared})
        return lax.stop_gradient(kept)
    if teacher_apply is None:
        return None
    return _run_teacher(teacher_apply, teacher, batch)


def _run_teacher(teacher_apply: Apply, teacher: Any, batch: Mapping[str, Any]) -> Outputs:
    if not isinstance(teacher, tuple) or len(teacher) != 2:
        raise ValueError(
            "teacher must be the teacher's Weights (params, model_state), since the step was made with a teacher_apply; got "
            f"{None if teacher is None else type(teacher).__name__}."
        )
    # Also on the way in: then nothing of the teacher's backward pass is ever built.
    params, model_state = lax.stop_gradient(teacher)
    with jax.named_scope("teacher"):
        outputs, _ = run(teacher_apply, params, model_state, batch["inputs"], train=False)
    return lax.stop_gradient(outputs)


def _read_of_teacher(objective: Objective | None) -> set[str]:
    terms = () if objective is None else objective.terms.values()
    places = {place for term in terms for place in places_of(term) or ()}
    return {place.removeprefix("teacher.") for place in places if place.startswith("teacher.")}
