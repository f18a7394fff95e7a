"""Schedules, by hand: what they are at the start, between, at the end and long after it."""

import jax
import numpy as np
import pytest

from kdjax.objectives import schedules

STEPS = [0, 1, 2, 3, 4, 5, 400]
HALF = np.sqrt(0.5)
BY_HAND = {
    "linear": (schedules.linear(4.0, 2.0, steps=4), [4, 3.5, 3, 2.5, 2, 2, 2]),
    "cosine": (schedules.cosine(4.0, 2.0, steps=4), [4, 3 + HALF, 3, 3 - HALF, 2, 2, 2]),
    "staircase": (schedules.staircase(8.0, factor=0.5, every=2), [8, 8, 4, 4, 2, 2, 8 * 0.5**200]),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_values_by_hand(name):
    schedule, wanted = BY_HAND[name]
    found = [float(schedule(step)) for step in STEPS]
    np.testing.assert_allclose(found, np.float32(wanted), rtol=1e-6)
    compiled = jax.jit(schedule)
    np.testing.assert_allclose([float(compiled(step)) for step in STEPS], found, rtol=1e-6)


@pytest.mark.parametrize("name", BY_HAND)
def test_before_the_start_it_is_the_start(name):
    schedule, wanted = BY_HAND[name]
    if name != "staircase":
        assert float(schedule(-3)) == wanted[0]
