"""A row for each loss in kdjax/losses/_relations.py, _similarity.py and _graph.py."""

import numpy as np
from bad_calls import RELATION_CALLS, SAME_SHAPE, TEMPERATURES, WHOLE_NUMBERS

from kdjax import losses
from kdjax.testing import BadCall, Case
from kdjax.testing._changes import each
from kdjax.testing.inputs import embeddings, equal_maps, labelled_embeddings
from kdjax.testing.invariances import (
    permuted_last_axis,
    permuted_own_last_axis,
    rotated,
    scaled,
    scaled_each_example,
    scaled_far,
    translated,
    translated_together,
)


def renamed_labels(arrays):
    """Permutation: the classes' names exchanged."""
    student, teacher, labels = arrays
    return student, teacher, labels.max() - labels


ROWS = (
    Case(
        losses.rkd_distance,
        embeddings,
        couples_batch=True,
        invariances=(scaled, scaled_far, rotated, translated, permuted_own_last_axis),
        bad_calls=RELATION_CALLS,
    ),
    Case(
        losses.rkd_angle,
        embeddings,
        couples_batch=True,
        keywords={"block": 4},
        other_keywords=({}, {"block": 1}, {"block": 6}, {"block": 100}),
        invariances=(scaled, scaled_far, rotated, translated, permuted_own_last_axis),
        bad_calls=(
            *RELATION_CALLS,
            BadCall("block must be a whole number of 1 or more; got 0", {"block": 0}),
            BadCall("block must be .*; got 2.5", {"block": 2.5}),
        ),
    ),
    Case(
        losses.pkt,
        embeddings,
        couples_batch=True,
        invariances=(scaled, scaled_far, scaled_each_example, rotated, permuted_own_last_axis),
        bad_calls=RELATION_CALLS,
    ),
    Case(
        losses.similarity_preserving,
        embeddings,
        couples_batch=True,
        invariances=(scaled, scaled_far, rotated, permuted_own_last_axis),
        bad_calls=RELATION_CALLS,
    ),
    Case(
        losses.correlation_congruence,
        equal_maps,
        couples_batch=True,
        ordered=True,
        invariances=(translated_together, permuted_last_axis),
        bad_calls=(
            *SAME_SHAPE,
            BadCall(r"student must have at least 2 axes, \[batch, dim\]; got", {}, each(lambda a: a[:, 0, 0, 0])),
            *WHOLE_NUMBERS,
        ),
    ),
    Case(
        losses.kernel_congruence,
        embeddings,
        couples_batch=True,
        keywords={"gamma": 0.7},
        other_keywords=({}, {"order": 2}, {"gamma": 2.0, "order": 1}),
        invariances=(scaled, scaled_far, scaled_each_example, rotated, permuted_own_last_axis),
        bad_calls=(
            *RELATION_CALLS,
            BadCall("gamma must be a finite number greater than 0; got 0.0", {"gamma": 0.0}),
            BadCall("order must be a whole number of 1 or more; got 0", {"order": 0}),
        ),
    ),
    Case(
        losses.kernel_alignment,
        embeddings,
        couples_batch=True,
        other_keywords=({"centred": False},),
        invariances=(scaled, scaled_far, rotated, translated, permuted_own_last_axis),
        bad_calls=RELATION_CALLS,
    ),
    Case(
        losses.similarity_graph,
        labelled_embeddings,
        couples_batch=True,
        keywords={"temperature": 0.3, "hardest": 2},
        other_keywords=({}, {"neighbours": 2}, {"neighbours": 1, "hardest": 1}, {"neighbours": 5, "hardest": 100}),
        invariances=(scaled, scaled_far, scaled_each_example, rotated, permuted_own_last_axis, renamed_labels),
        zero_at_equality=False,  # the contrastive part knows the labels and not the teacher
        bad_calls=(
            *RELATION_CALLS,
            *TEMPERATURES,
            BadCall(
                r"labels must be whole class numbers of shape \(6,\); got shape \(6,\) and dtype float32",
                {},
                lambda arrays: (*arrays[:2], arrays[2].astype(np.float32)),
            ),
            BadCall("labels must be whole class numbers", {}, lambda arrays: (*arrays[:2], arrays[2][:5])),
            BadCall("neighbours must be a whole number of 1 or more; got 0", {"neighbours": 0}),
            BadCall("hardest must be a whole number of 1 or more; got 1.5", {"hardest": 1.5}),
        ),
    ),
)
