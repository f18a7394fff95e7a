"""Does every loss say what is wrong? Asked of every row of cases.py."""

import functools
import inspect

import jax
import numpy as np
import pytest
from calling import converted, made
from cases import CASES


@pytest.mark.parametrize(
    ("case", "bad"),
    [
        pytest.param(case, bad, id=f"{case.name}-{number}")
        for case in CASES
        for number, bad in enumerate(case.bad_calls)
    ],
)
def test_bad_call_is_a_named_error(case, bad):
    arrays = bad.change(case.make(np.random.default_rng(11), 6))
    inputs = converted(arrays, np.float32)
    # Without the tests' own shape checks, which would speak first: this is what a user meets.
    function = functools.partial(inspect.unwrap(case.function), **{**case.keywords, **bad.keywords})
    for call in (function, jax.jit(function)):
        with pytest.raises(ValueError, match=bad.words):
            call(*inputs)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_shapes_in_the_signature_are_checked_here(case):
    arrays = made(case)
    with pytest.raises(TypeError, match=r"student|teacher|hidden"):
        case.function(arrays[0], arrays[1][:-1], *arrays[2:], **case.keywords)
