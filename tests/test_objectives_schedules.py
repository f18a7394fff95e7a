"""Schedules, by hand: what they are at the start, between, at the end and long after it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import batch, fresh_state, optimizer, student, teacher, teacher_weights

from kdjax import cross_entropy, make_train_step, on_logits, scaled, weighted_sum
from kdjax.losses import soft_target_kl
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


@pytest.mark.parametrize("every", [41, 47, 49, 55, 82, 235, 2.5])
def test_a_stair_begins_at_its_step_also_where_it_is_a_constant_of_a_program(every):
    schedule = schedules.staircase(1.0, factor=0.5, every=every)
    steps = jnp.arange(4 * 235)
    found = jax.jit(jax.vmap(lambda step: jnp.log2(schedule(step))))(steps)
    np.testing.assert_array_equal(np.round(found), -np.floor(np.arange(4 * 235) / every))


@pytest.mark.parametrize("name", BY_HAND)
def test_before_the_start_it_is_the_start(name):
    schedule, wanted = BY_HAND[name]
    if name != "staircase":
        assert float(schedule(-3)) == wanted[0]


def test_what_a_schedule_moves_is_among_the_metrics_of_a_step():
    temperature, alpha = schedules.linear(8.0, 2.0, steps=4), schedules.linear(0.0, 1.0, steps=4)
    soft = on_logits(soft_target_kl, temperature=temperature)
    goal = weighted_sum(soft=(alpha, soft), half=(1.0, scaled(soft, by="batch.how_much")), still=(1.0, cross_entropy))
    state = fresh_state()._replace(step=jnp.asarray(1))
    step = jax.jit(make_train_step(student(), teacher, optimizer()))
    _, metrics = step(state, teacher_weights(), goal, batch() | {"how_much": jnp.asarray(0.5)})
    assert metrics["soft_temperature"] == metrics["half_temperature"] == 6.5
    assert metrics["soft_weight"] == 0.25
    assert not {name for name in metrics if name.startswith("still_")} - {"still_weight"}
    # A hyper-parameter may have the name of the step's own number, which is the one that is told.
    weighed = on_logits(lambda z, t, *, weight=1.0: weight * (z - t).mean(-1), weight=alpha)
    _, metrics = step(state, teacher_weights(), weighted_sum(soft=(0.5, weighed)), batch())
    assert metrics["soft_weight"] == 0.5
    taken = weighted_sum(soft=(1.0, soft), soft_temperature=(1.0, cross_entropy))
    with pytest.raises(ValueError, match="The name 'soft_temperature' is a term's and that of a number that moves"):
        step(fresh_state(), teacher_weights(), taken, batch())
