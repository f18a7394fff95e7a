"""The numeric law on numbers that hypothesis chooses: ties, zeros and extremes that no table thinks of.

Shapes are fixed, hence each loss is compiled once. `HYPOTHESIS_PROFILE=slow` asks for 10,000 examples a test.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from cases import CASES
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

BATCH = 4

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def inputs(case, elements):
    """The row's arrays with every floating-point number drawn; labels and indices stay as the row makes them."""
    arrays = case.make(np.random.default_rng(0), BATCH)
    return st.tuples(
        *(
            hnp.arrays(np.float32, a.shape, elements=elements) if np.issubdtype(a.dtype, np.floating) else st.just(a)
            for a in arrays
        )
    )


@functools.cache
def value_and_gradients(case_name):
    (case,) = (case for case in CASES if case.name == case_name)
    arrays = case.make(np.random.default_rng(0), BATCH)
    argnums = tuple(i for i, a in enumerate(arrays) if np.issubdtype(a.dtype, np.floating))

    def mean(*args):
        values = case.function(*args, **case.keywords)
        return values.mean(), values

    compiled = jax.jit(jax.value_and_grad(mean, argnums=argnums, has_aux=True))

    def call(arrays):
        (_, values), gradients = compiled(*map(jnp.asarray, arrays))
        return np.asarray(values), [np.asarray(gradient) for gradient in gradients]

    return call


# All numbers of float16 up to 1e4, its subnormals included.
wild = st.floats(-10_000, 10_000, width=16)
# Steps of 1/4: full of ties and zeros, and coarse enough that float32 still knows the exact answer.
coarse = st.integers(-12, 12).map(lambda number: number / 4)


@each_case
@given(data=st.data())
def test_finite_and_bounded_below(case, data):
    values, gradients = value_and_gradients(case.name)(data.draw(inputs(case, wild)))
    assert np.isfinite(values).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert (values >= case.lowest - 1e-5 * (1 + np.abs(values).max())).all()


@each_case
@given(data=st.data())
def test_agrees_with_the_slow_reference(case, data):
    arrays = data.draw(inputs(case, coarse))
    values, _ = value_and_gradients(case.name)(arrays)
    exact = tuple(a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays)
    wanted = getattr(references, case.name)(*exact, **case.keywords)
    np.testing.assert_allclose(values, wanted, rtol=2e-4, atol=1e-5)


@each_case
@given(data=st.data(), order=st.permutations(range(BATCH)))
def test_order_of_the_batch_is_only_an_order(case, data, order):
    arrays = data.draw(inputs(case, coarse))
    order = [*reversed(range(BATCH))] if case.ordered else order
    call = value_and_gradients(case.name)
    values, gradients = call(arrays)
    reordered_values, reordered_gradients = call(case.taken(arrays, np.array(order)))
    np.testing.assert_allclose(reordered_values, values[order], rtol=1e-3, atol=1e-5)
    for reordered, gradient in zip(reordered_gradients, case.taken(gradients, np.array(order)), strict=True):
        np.testing.assert_allclose(reordered, gradient, rtol=1e-3, atol=1e-4 * (1 + np.abs(gradient).max()))


@each_case
@given(data=st.data())
def test_equal_inputs_are_a_minimum(case, data):
    if not case.zero_at_equality:
        pytest.skip("the row says that its value at equality is not 0")
    values, _ = value_and_gradients(case.name)(case.equal(data.draw(inputs(case, wild))))
    np.testing.assert_allclose(values, 0, atol=1e-6 if case.agree is None else 2e-6)
    if not case.smooth_at_equality:
        return
    # The gradient of what does not depend on size grows as 1 / size, and its rounding too: no tiny numbers here.
    _, gradients = value_and_gradients(case.name)(case.equal(data.draw(inputs(case, coarse))))
    np.testing.assert_allclose(gradients[0], 0, atol=1e-5)
