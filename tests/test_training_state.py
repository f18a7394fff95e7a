"""How a training's state begins, and which weights in it are evaluated."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from dense import batch, fresh_state, objective, optimizer, student, teacher, teacher_weights

from kdjax import init_state, make_train_step
from kdjax.training import jit_step, weights_of


def test_a_student_may_start_from_the_teachers_own_arrays():
    """The state is donated; the arrays that it was made from are not."""
    step, its = jit_step(make_train_step(teacher, teacher, optimizer())), teacher_weights()
    first = step(init_state(its, optimizer(), jax.random.key(0)), its, objective(), batch())
    again = step(init_state(its, optimizer(), jax.random.key(0)), its, objective(), batch())
    chex.assert_trees_all_equal(first[0].params, again[0].params)


def test_what_is_schedule_free_is_evaluated_at_its_own_params():
    transform = optax.contrib.schedule_free_sgd(0.5)
    step = jit_step(make_train_step(student(), teacher, transform))
    state = fresh_state(transform=transform)
    for _ in range(5):
        state, _ = step(state, teacher_weights(), objective(), batch())
    wanted = optax.contrib.schedule_free_eval_params(state.opt_state, state.params)
    chex.assert_trees_all_close(weights_of(state).params, wanted)
    apart = jax.tree.map(lambda one, other: float(jnp.abs(one - other).max()), wanted, state.params)
    assert max(jax.tree.leaves(apart)) > 1e-4


def test_a_sharpness_aware_training_is_evaluated_where_it_comes_back_to():
    """After every other step the params are the adversary's."""
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.5))
    transform = optax.contrib.sam(optax.sgd(0.5), adversary, sync_period=2)
    step = jit_step(make_train_step(student(), teacher, transform))
    state, seen = fresh_state(transform=transform), []
    for _ in range(4):
        state, _ = step(state, teacher_weights(), objective(), batch())
        seen.append(jax.device_get((weights_of(state).params, state.params)))
    apart = [float(optax.tree.norm(optax.tree.sub(own, trained))) for own, trained in seen]
    assert apart[1] == apart[3] == 0
    assert min(apart[0], apart[2]) > 0.1
    chex.assert_trees_all_equal(seen[2][0], seen[1][0])
    chex.assert_trees_all_equal(seen[0][0], fresh_state(transform=transform).params)


def test_what_is_schedule_free_inside_sam_is_evaluated_at_its_own_params():
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.5))
    transform = optax.contrib.sam(optax.contrib.schedule_free_sgd(0.5, b1=0.6), adversary, sync_period=2)
    step = jit_step(make_train_step(student(), teacher, transform))
    state = fresh_state(transform=transform)
    for _ in range(4):
        state, _ = step(state, teacher_weights(), objective(), batch())
    wanted = optax.contrib.schedule_free_eval_params(state.opt_state.opt_state, state.params)
    chex.assert_trees_all_close(weights_of(state).params, wanted, rtol=1e-6)
    apart = jax.tree.map(lambda one, other: float(jnp.abs(one - other).max()), wanted, state.params)
    assert max(jax.tree.leaves(apart)) > 1e-4


def test_what_is_no_state_is_refused():
    with pytest.raises(ValueError, match="state must be a TrainState, a pair"):
        weights_of({"params": fresh_state().params})
