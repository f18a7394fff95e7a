"""The numeric law on numbers that hypothesis chooses: ties, zeros and extremes that no table thinks of.

Shapes are fixed, hence each loss is compiled once. `HYPOTHESIS_PROFILE=slow` asks for over 10,000 examples of each
loss, and KDJAX_PROPERTY_RECORD names a file to which what was run is added, for the verification report. Of a loss and
property that were run more than once the last run counts: after a change of one loss, `-k` runs that one again.
"""

import collections
import functools
import json
import os
import time
from pathlib import Path

import machine
import pytest
from cases import CASES
from hypothesis import given
from hypothesis import strategies as st

from kdjax.testing import _drawn
from kdjax.testing.strategies import coarse, inputs, wild

BATCH = 4

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

HELD = collections.Counter()  # by property and loss: the examples of which it was asked and held
FAILED = collections.Counter()


def counted(law):
    @functools.wraps(law)
    def asked(case, **drawn):
        try:
            law(case, **drawn)
        except AssertionError:
            FAILED[law.__name__, case.name] += 1
            raise
        HELD[law.__name__, case.name] += 1

    return asked


@pytest.fixture(scope="module")
def record():
    """Appends a line to the record, or nothing where none is asked for."""
    if "KDJAX_PROPERTY_RECORD" not in os.environ:
        return lambda **line: None
    path = Path(os.environ["KDJAX_PROPERTY_RECORD"])

    def append(**line):
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    described = {name: said for name, said in machine.described().items() if name != "code"}
    append(date=time.strftime("%Y-%m-%d"), machine=described)
    return append


@pytest.fixture(autouse=True)
def recorded(request, record):
    start = time.perf_counter()
    yield
    law, loss = request.function.__name__, request.node.callspec.params["case"].name
    record(
        law=law,
        loss=loss,
        code=machine.fingerprint_of(loss),
        examples=HELD[law, loss],
        failed=FAILED[law, loss],
        seconds=round(time.perf_counter() - start, 1),
    )


@each_case
@given(data=st.data())
@counted
def test_finite_and_bounded_below(case, data):
    _drawn.finite_and_bounded_below(case, data.draw(inputs(case, wild)))


@each_case
@given(data=st.data())
@counted
def test_agrees_with_the_slow_reference(case, data):
    _drawn.agrees_with_the_reference(case, data.draw(inputs(case, coarse)))


@each_case
@given(data=st.data(), order=st.permutations(range(BATCH)))
@counted
def test_order_of_the_batch_is_only_an_order(case, data, order):
    _drawn.order_is_only_an_order(case, data.draw(inputs(case, coarse)), order)


@pytest.mark.parametrize("case", [case for case in CASES if case.zero_at_equality], ids=lambda case: case.name)
@given(data=st.data())
@counted
def test_equal_inputs_are_a_minimum(case, data):
    _drawn.equality_is_a_minimum(case, data.draw(inputs(case, wild)), data.draw(inputs(case, coarse)))
