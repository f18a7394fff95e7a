"""What plans of phases refuse: phases that are none, steps and phases outside the plan, states and objectives not of it."""

import inspect

import jax
import optax
import pytest
from phased import LABELS, ONE, batch, network, start, weights

from kdjax import init_state, make_train_step
from kdjax.training import accumulate, init_mean_teacher
from kdjax.training.phases import enter, make_planned_step, objectives_of, phase_at, plan


def planned(state, objectives):
    step = make_planned_step(plan(ONE), lambda phase: make_train_step(network, None, phase.optimizer))
    inspect.unwrap(step)(state, None, objectives, batch(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plan(), "phases must be one or more; got none"),
        (lambda: plan(ONE, ONE), "phases must have a name each of their own; got 'a' twice"),
        (lambda: plan(ONE._replace(steps=0)), "steps of phase 'a' must be a whole number of 1 or more; got 0"),
        (lambda: phase_at(plan(ONE), 3), "step must lie between 0 and 2, the plan's updates; got 3"),
        (lambda: phase_at(plan(ONE), -1), "step must lie between 0 and 2, the plan's updates; got -1"),
        (
            lambda: enter(plan(ONE), -1, start(plan(ONE))),
            "index must be that of one of the plan's 1 phases, from 0; got -1",
        ),
        (
            lambda: enter(plan(ONE), 1, start(plan(ONE))),
            "index must be that of one of the plan's 1 phases, from 0; got 1",
        ),
        (
            lambda: inspect.unwrap(enter)(plan(ONE), 0, init_mean_teacher(start(plan(ONE)).state)),
            "state must be a TrainState, or the InPhase of one, to get the phase's opt_state; got a tuple",
        ),
        (
            lambda: planned(start(plan(ONE)).state, objectives_of(plan(ONE))),
            "state must be in a phase, as enter gives it; got a TrainState",
        ),
        (lambda: planned(start(plan(ONE)), LABELS), "objectives must be one for each of the 1 phases"),
        (lambda: planned(start(plan(ONE)), (LABELS, LABELS)), "objectives must be one for each of the 1 phases"),
        (
            lambda: planned(enter(plan(ONE, ONE._replace(name="b")), 1, start(plan(ONE))), (LABELS,)),
            "index must be that of one of the plan's 1 phases, from 0; got 1",
        ),
    ],
)
def test_what_is_wrong_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_batches_that_are_lost_between_two_phases_are_told():
    optimizer = accumulate(optax.sgd(0.1), 2)
    state = init_state(weights(0), optimizer, jax.random.key(0))
    step = make_train_step(network, None, optimizer)
    state, _ = step(state, None, LABELS, batch(0))
    with pytest.warns(RuntimeWarning, match="1 of the batches that accumulate adds up have made no update"):
        enter(plan(ONE), 0, state)
    state, _ = step(state, None, LABELS, batch(1))
    assert int(enter(plan(ONE), 0, state).state.step) == 2
