"""`sampled_kl`: on average over draws it is the divergence, in value and gradient; what keeps the largest alone is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import reverse_skewed_kl, sampled_kl, skewed_kl, soft_target_kl, top_k_kl

WORDS, DRAWS, TIMES = 50, 5, 20_000
STUDENT = jnp.asarray(np.random.default_rng(0).normal(size=WORDS), jnp.float32)
# As words are: a few frequent ones, and a long tail that together counts for much.
LOG_TEACHER = jax.nn.log_softmax(-1.1 * jnp.log(jnp.arange(1.0, WORDS + 1)))


@functools.cache
def exact():
    return jax.value_and_grad(lambda student: soft_target_kl(student, LOG_TEACHER, temperature=1.0))(STUDENT)


def estimates(temperature):
    """TIMES estimates and their gradients, of draws from the teacher at that temperature."""
    log_proposal = jax.nn.log_softmax(LOG_TEACHER / temperature)
    drawn = jax.random.categorical(jax.random.key(1), log_proposal, shape=(TIMES, DRAWS))
    weights = LOG_TEACHER[drawn] - log_proposal[drawn] - jnp.log(float(DRAWS))

    def one(student, indices, weights):
        keywords = {} if temperature == 1.0 else {"log_weights": weights}
        return sampled_kl(student, LOG_TEACHER[indices], indices, **keywords)

    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(one), in_axes=(None, 0, 0)))(STUDENT, drawn, weights)
    return np.asarray(values, np.float64), np.asarray(gradients, np.float64)


@pytest.mark.parametrize("temperature", [1.0, 2.0], ids=["the teacher's own", "a proposal, by weights"])
def test_the_mean_over_draws_is_the_divergence_and_so_is_its_gradient(temperature):
    for found, wanted in zip(estimates(temperature), exact(), strict=True):
        error = found.std(axis=0, ddof=1) / np.sqrt(TIMES)
        assert (np.abs(found.mean(axis=0) - np.asarray(wanted)) < 4.5 * error + 1e-7).all()
        assert (error > 0).all()  # there is something to average


def test_weights_that_are_left_out_are_found_out():
    """The control: draws of a proposal, taken for draws of the teacher, are off by many standard errors."""
    log_proposal = jax.nn.log_softmax(LOG_TEACHER / 2)
    drawn = jax.random.categorical(jax.random.key(1), log_proposal, shape=(TIMES, DRAWS))
    found = np.asarray(sampled_kl(jnp.broadcast_to(STUDENT, (TIMES, WORDS)), LOG_TEACHER[drawn], drawn), np.float64)
    assert abs(found.mean() - float(exact()[0])) > 20 * found.std(ddof=1) / np.sqrt(TIMES)


def test_the_largest_alone_teach_another_distribution():
    """Where the gradient is 0, what is learnt: of the k largest alone the rest is learnt to be impossible."""
    values, indices = jax.lax.top_k(LOG_TEACHER, DRAWS)

    def gradient(**settings):
        return jax.grad(lambda student: top_k_kl(student, values, indices, temperature=1.0, **settings))(LOG_TEACHER)

    # With the tail a student that agrees is left alone; the cross-entropy of the k largest, scaled up, moves it.
    np.testing.assert_allclose(gradient(), 0, atol=1e-6)
    share = jax.nn.softmax(values)
    moved = jax.grad(lambda student: -jnp.sum(share * jax.nn.log_softmax(student)[indices]))(LOG_TEACHER)
    assert float(jnp.abs(moved).sum()) > 0.5


def test_nan_for_what_is_no_draw():
    drawn = jnp.array([[0, 1], [0, WORDS], [-1, 1], [0, 1]])
    values = LOG_TEACHER[jnp.clip(drawn, 0, WORDS - 1)].at[3, 0].set(2.0)  # a logit
    found = sampled_kl(jnp.broadcast_to(STUDENT, (4, WORDS)), values, drawn)
    np.testing.assert_array_equal(np.isnan(found), [False, True, True, True])


def test_small_numbers_for_classes_and_draws_of_weight_0():
    assert np.isnan(sampled_kl(jnp.arange(200.0), jnp.array([-1.0]), jnp.array([-1], jnp.int8)))
    values, weights = jnp.array([-jnp.inf, -1.0]), jnp.array([-jnp.inf, -1.0])
    found = sampled_kl(STUDENT, values, jnp.array([0, 1]), log_weights=weights)
    np.testing.assert_allclose(found, np.exp(-1.0) * (-1.0 - jax.nn.log_softmax(STUDENT)[1]), rtol=1e-6)


def test_weights_are_as_the_formula_has_them():
    drawn, weights = jnp.array([3, 3, 7]), jnp.log(jnp.array([0.2, 0.3, 0.1]))
    found = sampled_kl(STUDENT, LOG_TEACHER[drawn], drawn, log_weights=weights)
    gaps = LOG_TEACHER[drawn] - jax.nn.log_softmax(STUDENT)[drawn]
    np.testing.assert_allclose(found, 0.2 * gaps[0] + 0.3 * gaps[1] + 0.1 * gaps[2], rtol=1e-5)


@pytest.mark.parametrize("loss", [skewed_kl, reverse_skewed_kl])
@pytest.mark.parametrize("alpha", [1e-30, 1e-8, 1e-6, 0.1])
def test_a_mixture_of_very_little_keeps_its_bound(loss, alpha):
    """Two that exclude each other: −log α, whatever float32 makes of 1 − α."""
    student = jnp.array([100.0, -100.0])
    np.testing.assert_allclose(loss(student, -student, alpha=alpha), -np.log(alpha), rtol=1e-5)
    gradient = jax.grad(lambda student: loss(student, jnp.array([-jnp.inf, 0.0]), alpha=alpha))(student)
    assert np.isfinite(gradient).all()
