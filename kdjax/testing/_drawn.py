"""The laws on numbers that hypothesis chooses: each is given one drawing, and asserts."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from kdjax.testing._calling import floating, value_and_gradients
from kdjax.testing._case import Case


def finite_and_bounded_below(case: Case, arrays: Any) -> None:
    """Value and gradient are finite at `arrays`, and the value is not below its lowest."""
    values, gradients = _values_and_gradients(case, arrays)
    assert np.isfinite(values).all(), f"values {values}"
    assert all(np.isfinite(gradient).all() for gradient in gradients), "a gradient is not finite"
    slack = 1e-5 * (1 + np.abs(values).max())
    assert (values >= case.lowest - slack).all(), f"values {values}, below {case.lowest}"


def agrees_with_the_reference(case: Case, arrays: Any) -> None:
    """The value at `arrays` is that of the slow reference."""
    assert case.reference is not None
    values, _ = _values_and_gradients(case, arrays)
    exact = tuple(a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays)
    np.testing.assert_allclose(values, case.reference(*exact, **case.keywords), rtol=2e-4, atol=1e-5)


def order_is_only_an_order(case: Case, arrays: Any, order: Any) -> None:
    """Values and gradients of the batch in another order are the same in that order."""
    order = np.arange(len(order))[::-1] if case.ordered else np.asarray(order)
    values, gradients = _values_and_gradients(case, arrays)
    reordered_values, reordered_gradients = _values_and_gradients(case, case.taken(arrays, order))
    np.testing.assert_allclose(reordered_values, values[order], rtol=1e-3, atol=1e-5)
    for reordered, gradient in zip(reordered_gradients, case.taken(gradients, order), strict=True):
        np.testing.assert_allclose(reordered, gradient, rtol=1e-3, atol=1e-4 * (1 + np.abs(gradient).max()))


def equality_is_a_minimum(case: Case, wild: Any, coarse: Any) -> None:
    """Value and gradient are 0 where student and teacher are equal."""
    # What is stored in float32 knows no rest below 1e-7: no extremes where the teacher agrees by what it stored.
    values, _ = _values_and_gradients(case, case.equal(wild if case.agree is None else coarse))
    np.testing.assert_allclose(values, 0, atol=1e-6 if case.agree is None else 2e-6)
    if not case.smooth_at_equality:
        return
    # The gradient of what does not depend on size grows as 1 / size, and its rounding too: no tiny numbers here, and
    # what may be left is measured by the slope towards another teacher.
    _, gradients = _values_and_gradients(case, case.equal(coarse))
    elsewhere, others = list(coarse), case.make(np.random.default_rng(0), len(coarse[0]))
    for _, teacher in case.pairs:
        elsewhere[teacher] = others[teacher].astype(np.float32)
    _, slopes = _values_and_gradients(case, elsewhere)
    np.testing.assert_allclose(gradients[0], 0, atol=1e-5 + 1e-6 * np.abs(slopes[0]).max())


def _values_and_gradients(case: Case, arrays: Any) -> Any:
    arrays = tuple(map(jnp.asarray, arrays))
    (_, values), gradients = value_and_gradients(case, floating(arrays))(*arrays)
    return np.asarray(values), [np.asarray(gradient) for gradient in gradients]
