"""The numeric law on numbers that hypothesis chooses: ties, zeros and extremes that no table thinks of.

Shapes are fixed, hence each loss is compiled once. `HYPOTHESIS_PROFILE=slow` asks for over 10,000 examples of each
loss, and KDJAX_PROPERTY_RECORD names a file to which what was run is added, for the verification report. Of a loss and
property that were run more than once the last run counts: after a change of one loss, `-k` runs that one again.
"""

import collections
import functools
import json
import math
import os
import time
from pathlib import Path

import calling
import jax.numpy as jnp
import machine
import numpy as np
import pytest
from cases import CASES
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

BATCH = 4
SEEDS = st.integers(0, 15)

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


# All numbers of float16 up to 1e4, its subnormals included, many of them alike.
def wild(shape):
    return hnp.arrays(np.float32, shape, elements=st.floats(-10_000, 10_000, width=16))


# Steps of 1/4: full of ties and zeros, and coarse enough that float32 still knows the exact answer.
def coarse(shape):
    few_different = hnp.arrays(np.int8, shape, elements=st.integers(-12, 12))
    # Bytes are drawn all at once: number by number, drawing would take most of the time.
    size = math.prod(shape)
    all_different = st.binary(min_size=size, max_size=size).map(
        lambda drawn: np.frombuffer(drawn, np.uint8).reshape(shape) % 25 - 12.0
    )
    return st.one_of(few_different, all_different).map(lambda numbers: numbers.astype(np.float32) / 4)


def inputs(case, numbers):
    """The row's arrays with every floating-point number drawn; labels and indices are drawn with the row's seed."""

    def of_seed(seed):
        arrays = case.make(np.random.default_rng(seed), BATCH)
        return st.tuples(
            *(numbers(a.shape) if np.issubdtype(a.dtype, np.floating) else st.just(a) for a in arrays)
        ).map(case.admitted)

    return SEEDS.flatmap(of_seed)


def value_and_gradients(case, arrays):
    arrays = tuple(map(jnp.asarray, arrays))
    (_, values), gradients = calling.value_and_gradients(case, calling.floating(arrays))(*arrays)
    return np.asarray(values), [np.asarray(gradient) for gradient in gradients]


@each_case
@given(data=st.data())
@counted
def test_finite_and_bounded_below(case, data):
    values, gradients = value_and_gradients(case, data.draw(inputs(case, wild)))
    assert np.isfinite(values).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert (values >= case.lowest - 1e-5 * (1 + np.abs(values).max())).all()


@each_case
@given(data=st.data())
@counted
def test_agrees_with_the_slow_reference(case, data):
    arrays = data.draw(inputs(case, coarse))
    values, _ = value_and_gradients(case, arrays)
    exact = tuple(a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays)
    wanted = calling.reference_of(case)(*exact, **case.keywords)
    np.testing.assert_allclose(values, wanted, rtol=2e-4, atol=1e-5)


@each_case
@given(data=st.data(), order=st.permutations(range(BATCH)))
@counted
def test_order_of_the_batch_is_only_an_order(case, data, order):
    arrays = data.draw(inputs(case, coarse))
    order = [*reversed(range(BATCH))] if case.ordered else order
    values, gradients = value_and_gradients(case, arrays)
    reordered_values, reordered_gradients = value_and_gradients(case, case.taken(arrays, np.array(order)))
    np.testing.assert_allclose(reordered_values, values[order], rtol=1e-3, atol=1e-5)
    for reordered, gradient in zip(reordered_gradients, case.taken(gradients, np.array(order)), strict=True):
        np.testing.assert_allclose(reordered, gradient, rtol=1e-3, atol=1e-4 * (1 + np.abs(gradient).max()))


@pytest.mark.parametrize("case", [case for case in CASES if case.zero_at_equality], ids=lambda case: case.name)
@given(data=st.data())
@counted
def test_equal_inputs_are_a_minimum(case, data):
    # What is stored in float32 knows no rest below 1e-7: no extremes where the teacher agrees by what it stored.
    numbers = wild if case.agree is None else coarse
    values, _ = value_and_gradients(case, case.equal(data.draw(inputs(case, numbers))))
    np.testing.assert_allclose(values, 0, atol=1e-6 if case.agree is None else 2e-6)
    if not case.smooth_at_equality:
        return
    # The gradient of what does not depend on size grows as 1 / size, and its rounding too: no tiny numbers here, and
    # what may be left is measured by the slope towards another teacher.
    arrays = data.draw(inputs(case, coarse))
    _, gradients = value_and_gradients(case, case.equal(arrays))
    elsewhere, others = list(arrays), case.make(np.random.default_rng(0), BATCH)
    for _, teacher in case.pairs:
        elsewhere[teacher] = others[teacher].astype(np.float32)
    _, slopes = value_and_gradients(case, elsewhere)
    np.testing.assert_allclose(gradients[0], 0, atol=1e-5 + 1e-6 * np.abs(slopes[0]).max())
