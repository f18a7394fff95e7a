"""A row for each loss in kdjax/losses/_contrastive.py that needs no bank; test_crd.py is for the one that does."""

from case import (
    LOGITS_CALLS,
    TEMPERATURES,
    BadCall,
    Case,
    embeddings_and_queue,
    equal_embeddings,
    permuted_last_axis,
    rotated_together,
    scaled,
    scaled_each_example,
    scaled_far,
    wrong_rank,
)

from kdjax import losses

EMBEDDINGS_CALLS = (*wrong_rank(r"2 axes, \[batch, dim\]", lambda a: a[..., None]), *LOGITS_CALLS[2:])

ROWS = (
    Case(
        losses.info_nce,
        equal_embeddings,
        couples_batch=True,
        keywords={"temperature": 0.3},
        other_keywords=({}, {"temperature": 1.0}),
        invariances=(scaled, scaled_far, scaled_each_example, rotated_together, permuted_last_axis),
        zero_at_equality=False,  # two students are still alike
        bad_calls=(*EMBEDDINGS_CALLS, *TEMPERATURES),
    ),
    Case(
        losses.similarity_distribution,
        embeddings_and_queue,
        couples_batch=False,
        shared=(2,),
        keywords={"temperatures": (0.3, 0.2)},
        other_keywords=({"temperatures": (0.2, 0.01)}, {"temperatures": (1.0, 1.0)}),
        invariances=(scaled, scaled_far, scaled_each_example, permuted_last_axis),
        zero_at_equality=False,  # a cross-entropy: the teacher's entropy is left
        bad_calls=(
            *EMBEDDINGS_CALLS,
            BadCall("temperatures must be a pair, the student's and the teacher's; got 0.1", {"temperatures": 0.1}),
            BadCall(r"temperatures\[1\] must be a finite number greater than 0; got 0", {"temperatures": (0.1, 0)}),
            BadCall(
                r"queue must have shape \[queue, 5\], as student; got \(7, 4\)",
                {},
                lambda arrays: (*arrays[:2], arrays[2][:, :4]),
            ),
            BadCall(r"queue must have .*; got \(0, 5\)", {}, lambda arrays: (*arrays[:2], arrays[2][:0])),
            BadCall("queue must hold floating-point", {}, lambda arrays: (*arrays[:2], arrays[2].astype(int))),
        ),
    ),
)
