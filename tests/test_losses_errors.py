"""Does every loss say what is wrong? Asked of every row of cases.py."""

import numpy as np
import pytest
from cases import CASES

from kdjax.testing import _values
from kdjax.testing._calling import made


@pytest.mark.parametrize(
    ("case", "bad"),
    [
        pytest.param(case, bad, id=f"{case.name}-{number}")
        for case in CASES
        for number, bad in enumerate(case.bad_calls)
    ],
)
def test_bad_call_is_a_named_error(case, bad):
    assert _values.wrong_error(case, bad, bad.change(case.make(np.random.default_rng(11), 6))) == ""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_shapes_in_the_signature_are_checked_here(case):
    arrays = made(case)
    with pytest.raises(TypeError, match=r"student|teacher|hidden"):
        case.function(arrays[0], arrays[1][:-1], *arrays[2:], **case.keywords)
