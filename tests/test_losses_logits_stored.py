"""What is special about a teacher's stored logits: all of them, the rest that was not stored, and classes that are none."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from predictions import logits, value_and_gradients

from kdjax import losses


@pytest.mark.parametrize("tail", [True, False])
def test_all_classes_stored_is_the_whole_divergence_even_of_plain_logits(tail):
    student, teacher = logits(6, 5)
    values, indices = jax.lax.top_k(teacher, 5)
    stored = value_and_gradients(losses.top_k_kl, student, values, indices, temperature=2.0, tail=tail)
    whole = value_and_gradients(losses.soft_target_kl, student, teacher, temperature=2.0)
    chex.assert_trees_all_close((stored[0], stored[1][0]), (whole[0], whole[1][0]), rtol=1e-4, atol=1e-5)


def test_without_the_tail_plain_logits_do_and_the_other_classes_do_not_count():
    student, teacher = logits(6, 5)
    values, indices = jax.lax.top_k(teacher, 2)
    stored = losses.top_k_kl(student, values, indices, tail=False)
    np.testing.assert_allclose(losses.top_k_kl(student, values + 9.0, indices, tail=False), stored, 1e-4)
    chosen = jnp.take_along_axis(student, indices, axis=1)
    np.testing.assert_allclose(losses.soft_target_kl(chosen, values), stored, 1e-4)


def test_stored_probabilities_of_sum_one_leave_nothing_to_the_rest():
    """As if the teacher excluded the classes that were not stored."""
    student, teacher = logits(6, 5)
    values, indices = jax.lax.top_k(teacher, 2)
    excluding = jnp.full_like(teacher, -jnp.inf).at[jnp.arange(6)[:, None], indices].set(values)
    stored = losses.top_k_kl(student, jax.nn.log_softmax(values), indices, temperature=1.0)
    np.testing.assert_allclose(stored, losses.soft_target_kl(student, excluding, temperature=1.0), 1e-4)


@pytest.mark.parametrize("excess", [0.1, 3.0, 1e4])
def test_plain_logits_are_no_log_probabilities(excess):
    """Probabilities of sum 1 and more have no rest: NaN for that example alone, and for none by a stored type's rounding."""
    student, teacher = logits(3, 5)
    values, indices = jax.lax.top_k(jax.nn.log_softmax(teacher), 3)
    stored = losses.top_k_kl(student, values.at[1].set(jax.nn.log_softmax(values[1]) + excess), indices)
    np.testing.assert_array_equal(np.isnan(stored), [False, True, False])
    for dtype in (jnp.bfloat16, jnp.float16):
        many = jnp.full((1, 1000), -np.log(1000.0), dtype)
        assert np.isfinite(losses.top_k_kl(jnp.zeros((1, 1001)), many, jnp.arange(1000)[None])).all()


def test_a_stored_class_that_is_none_gives_nan_to_its_example_alone():
    student, teacher = logits(3, 5)
    values, _ = jax.lax.top_k(jax.nn.log_softmax(teacher), 2)
    stored = jax.jit(losses.top_k_kl)(student, values, jnp.array([[0, 4], [0, 5], [-1, 0]]))
    np.testing.assert_array_equal(np.isnan(stored), [False, True, True])


def test_a_sure_teacher_keeps_the_digits_of_the_rest():
    """Its rest of 1e-9 is known from the logarithms of what it stored, and lost in 1 − Σ p."""
    probabilities = np.array([[1 - 3e-8 - 1e-9, 2e-8, 1e-8, 5e-10, 5e-10]])
    student, teacher = np.zeros((1, 5)), np.log(probabilities)
    wanted = references.top_k_kl(student, teacher[:, :3], np.array([[0, 1, 2]]))
    stored = losses.top_k_kl(jnp.zeros((1, 5)), jnp.asarray(teacher[:, :3], jnp.float32), jnp.array([[0, 1, 2]]))
    np.testing.assert_allclose(stored, wanted, 1e-4)
