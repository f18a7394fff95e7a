"""A row for each loss in kdjax/losses/_contrastive.py; test_losses_contrastive.py asks of the bank what no row can."""

import jax.numpy as jnp
import numpy as np
import reference
import references
from bad_calls import LOGITS_CALLS, TEMPERATURES, wrong_rank
from more_inputs import embeddings_and_queue, places_in_a_bank

from kdjax import losses
from kdjax.testing import BadCall, Case
from kdjax.testing.inputs import equal_embeddings
from kdjax.testing.invariances import (
    permuted_last_axis,
    rotated_all,
    rotated_together,
    scaled,
    scaled_each_example,
    scaled_far,
)

EMBEDDINGS_CALLS = (*wrong_rank(r"2 axes, \[batch, dim\]", lambda a: a[..., None]), *LOGITS_CALLS[2:])


# crd: the row's bank is a constant that has seen 3 batches; what becomes of the bank is for test_losses_contrastive.py


def _directions(seed):
    return np.stack([reference.direction(row) for row in np.random.default_rng(seed).standard_normal((12, 5))])


BANK = losses.Bank(_directions(0), _directions(1), np.array([4.0, 5.0]), np.int32(3))


def crd(student, teacher, indices, negatives, *, temperature=0.07, momentum=0.5, warmup=100, chunk=512):
    bank = losses.Bank(*map(jnp.asarray, BANK))
    keywords = {"temperature": temperature, "momentum": momentum, "warmup": warmup, "chunk": chunk}
    values, _ = losses.crd(student, teacher, indices, bank, negatives, **keywords)
    return values


crd.__doc__ = losses.crd.__doc__


def crd_reference(student, teacher, indices, negatives, chunk=512, **keywords):
    del chunk
    values, _ = references.crd(student, teacher, indices, BANK, negatives, **keywords)
    return values


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
        invariances=(scaled, scaled_far, scaled_each_example, rotated_all, permuted_last_axis),
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
    Case(
        crd,
        places_in_a_bank,
        couples_batch=False,
        reference=crd_reference,
        keywords={"temperature": 0.3, "chunk": 3},
        other_keywords=({}, {"temperature": 1.0, "chunk": 8}),
        invariances=(scaled, scaled_far, scaled_each_example),
        zero_at_equality=False,  # the partner is the bank's entry, not the batch's embedding
        bad_calls=TEMPERATURES,
    ),
)
