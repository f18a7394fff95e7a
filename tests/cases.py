"""One row a loss: what it is called with and what must hold. test_losses*.py asks every law of every row.

To add a loss: a row in cases_*.py, a function of the same name in references_*.py, and nothing in the tests.
"""

import cases_catalogue
import cases_channels
import cases_contrastive
import cases_features
import cases_linear
import cases_logits
import cases_relations
import references

# What kdjax.losses gives beside losses, what it is for, and the file of its own tests.
NOT_LOSSES = {
    "Bank": ("the memory of `crd`: what it keeps of every example of a data set", "test_losses_contrastive.py"),
    "draw_negatives": (
        "draws the others for `crd`, never of the anchor's class where labels are given",
        "test_losses_bank.py",
    ),
    "init_bank": ("makes the memory of `crd`", "test_losses_bank.py"),
    "linear_weighted_sum": (
        "sums any loss on logits over tokens, weighted, from hidden states and heads, and makes its gradient going forward",
        "test_losses_linear_sums.py",
    ),
    "negative_margin": (
        "computes the margin of `overhaul` from a normalisation's scale and bias",
        "test_losses_features.py",
    ),
    "standardize_logits": ("prepares the logits of `standardized_kd`", "test_losses_logits.py"),
}

ROWS = (
    *cases_logits.ROWS,
    *cases_catalogue.ROWS,
    *cases_channels.ROWS,
    *cases_linear.ROWS,
    *cases_features.ROWS,
    *cases_relations.ROWS,
    *cases_contrastive.ROWS,
)
# Without a reference of its own a row has the function of its name in references.py.
CASES = tuple(row if row.reference else row._replace(reference=getattr(references, row.name)) for row in ROWS)
BY_NAME = {case.name: case for case in CASES}
