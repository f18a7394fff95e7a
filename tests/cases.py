"""One row a loss: what it is called with and what must hold. test_losses*.py asks every law of every row.

To add a loss: a row in cases_*.py, a function of the same name in references_*.py, and nothing in the tests.
"""

import cases_catalogue
import cases_contrastive
import cases_features
import cases_linear
import cases_logits
import cases_relations

CASES = (
    *cases_logits.ROWS,
    *cases_catalogue.ROWS,
    *cases_linear.ROWS,
    *cases_features.ROWS,
    *cases_relations.ROWS,
    *cases_contrastive.ROWS,
)
BY_NAME = {case.name: case for case in CASES}
