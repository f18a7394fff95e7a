"""Clipping that depends on a schedule: by hand, beside the plain clipping and none, in a chain, frozen parts and a step."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import Outputs, Weights, init_state, make_train_step, on_logits, schedules, weighted_sum
from kdjax.losses import logit_mse, soft_target_kl
from kdjax.training import clip_while, freeze

GRADIENTS = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}  # of norm 5
FALLING = schedules.linear(4.0, 2.0, steps=4)  # 4, 3.5, 3, 2.5, 2, 2, …


def run(transform, gradients=GRADIENTS, steps=6):
    update, state, seen = jax.jit(transform.update), transform.init(gradients), []
    for _ in range(steps):
        clipped, state = update(gradients, state, gradients)
        seen.append(jax.device_get(clipped))
    assert update._cache_size() == 1
    return seen, state


def test_gradients_are_clipped_while_the_temperature_is_high_and_not_after():
    seen, state = run(clip_while(1.0, FALLING, above=3.0))
    for step, clipped in enumerate(seen):
        scale = 0.2 if step < 2 else 1.0  # at step 2 it is 3, which is not above 3
        np.testing.assert_allclose(clipped["a"], [3.0 * scale, 0.0], rtol=1e-6)
        np.testing.assert_allclose(clipped["b"], [[4.0 * scale]], rtol=1e-6)
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [()]
    assert int(state.step) == 6


def test_small_gradients_are_let_through():
    seen, _ = run(clip_while(5.5, FALLING, above=0.0))
    chex.assert_trees_all_equal(seen, [GRADIENTS] * 6)
    zeros = jax.tree.map(jnp.zeros_like, GRADIENTS)
    chex.assert_trees_all_equal(run(clip_while(1.0, FALLING, above=3.0), zeros)[0], [zeros] * 6)


def test_a_number_decides_for_the_whole_run():
    always, never = run(clip_while(1.0, 4.0, above=3.0))[0], run(clip_while(1.0, 3.0, above=3.0))[0]
    chex.assert_trees_all_equal(always, run(optax.clip_by_global_norm(1.0))[0])
    chex.assert_trees_all_equal(never, [GRADIENTS] * 6)


def test_any_function_of_the_step_will_do():
    seen, _ = run(clip_while(1.0, optax.linear_schedule(4.0, 2.0, 4), above=3.0))
    chex.assert_trees_all_close(seen, run(clip_while(1.0, FALLING, above=3.0))[0])


def test_frozen_parts_have_no_share_in_the_norm():
    clipped = run(freeze(clip_while(1.0, 4.0, above=3.0), "b"))[0][0]
    np.testing.assert_allclose(clipped["a"], [1.0, 0.0], rtol=1e-6)
    control = run(clip_while(1.0, 4.0, above=3.0))[0][0]
    np.testing.assert_allclose(control["a"], [0.6, 0.0], rtol=1e-6)


def linear(params, model_state, inputs, *, train, rng=None):
    return Outputs(inputs @ params["a"] + params["b"][None], {}), model_state


def test_in_a_step_it_counts_as_the_objective_does():
    """SGD moves by the rate at most while T > 3, as the objective's own schedule has it, and by far more after."""
    weights = Weights({"a": jnp.zeros((3, 2)), "b": jnp.zeros(2)}, {})
    teacher = Weights({"a": jnp.full((3, 2), 50.0).at[:, 1].set(-50.0), "b": jnp.zeros(2)}, {})
    objective = weighted_sum(
        far=(1.0, on_logits(logit_mse)), soft=(1.0, on_logits(soft_target_kl, temperature=FALLING))
    )
    optimizer = optax.chain(clip_while(1.0, FALLING, above=3.0), optax.sgd(1e-3))
    step, moved = jax.jit(make_train_step(linear, linear, optimizer)), []
    state = init_state(weights, optimizer, jax.random.key(0))
    for _ in range(5):
        before = state
        state, _ = step(state, teacher, objective, {"inputs": jnp.ones((4, 3))})
        moved.append(float(optax.tree.norm(jax.tree.map(jnp.subtract, state.params, before.params))))
    np.testing.assert_allclose(moved[:2], 1e-3, rtol=1e-4)
    assert min(moved[2:]) > 0.05
    assert step._cache_size() == 1


def test_many_students_clip_each_by_its_own_norm():
    transform = clip_while(1.0, FALLING, above=3.0)
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.1 * leaf]), GRADIENTS)
    clipped, _ = jax.vmap(transform.update)(both, jax.vmap(transform.init)(both))
    np.testing.assert_allclose(clipped["a"], [[0.6, 0.0], [0.3, 0.0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_norm": 0.0}, "max_norm must be a finite number greater than 0; got 0.0"),
        ({"above": float("nan")}, "above must be a finite number; got nan"),
        ({"value": float("inf")}, "value must be a finite number; got inf"),
    ],
)
def test_numbers_that_clip_nothing_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        clip_while(**({"max_norm": 1.0, "value": 4.0, "above": 3.0} | arguments))
