"""A row for each loss in kdjax/losses/_logits.py."""

from case import (
    LOGITS_CALLS,
    TEMPERATURES,
    Case,
    logits,
    permuted_last_axis,
    rotated_together,
    shifted_logits,
    translated_together,
)

from kdjax import losses

ROWS = (
    Case(
        losses.soft_target_kl,
        logits,
        couples_batch=False,
        keywords={"temperature": 2.5},
        other_keywords=({}, {"temperature": 1.0}, {"temperature": 0.5}),
        golden=("soft_target_kl_T1", "soft_target_kl_T4", "soft_target_kl_T7"),
        invariances=(shifted_logits, permuted_last_axis),
        bad_calls=(*LOGITS_CALLS, *TEMPERATURES),
    ),
    Case(
        losses.logit_mse,
        logits,
        couples_batch=False,
        invariances=(translated_together, permuted_last_axis, rotated_together),
        bad_calls=LOGITS_CALLS,
    ),
)
