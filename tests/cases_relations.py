"""A row for each loss in kdjax/losses/_relations.py."""

from case import (
    RELATION_CALLS,
    BadCall,
    Case,
    embeddings,
    permuted_own_last_axis,
    rotated,
    scaled,
    scaled_each_example,
    scaled_far,
    translated,
)

from kdjax import losses

ROWS = (
    Case(
        losses.rkd_distance,
        embeddings,
        couples_batch=True,
        golden=("rkd_distance",),
        invariances=(scaled, scaled_far, rotated, translated, permuted_own_last_axis),
        bad_calls=RELATION_CALLS,
    ),
    Case(
        losses.rkd_angle,
        embeddings,
        couples_batch=True,
        keywords={"block": 4},
        other_keywords=({}, {"block": 1}, {"block": 6}, {"block": 100}),
        golden=("rkd_angle",),
        invariances=(scaled, scaled_far, rotated, translated, permuted_own_last_axis),
        bad_calls=(
            *RELATION_CALLS,
            BadCall("block must be a whole number of anchors greater than 0, or None for all; got 0", {"block": 0}),
            BadCall("block must be .*; got 2.5", {"block": 2.5}),
        ),
    ),
    Case(
        losses.pkt,
        embeddings,
        couples_batch=True,
        golden=("pkt",),
        invariances=(scaled, scaled_far, scaled_each_example, rotated, permuted_own_last_axis),
        bad_calls=RELATION_CALLS,
    ),
)
