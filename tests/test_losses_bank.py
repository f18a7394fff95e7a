"""The bank of the contrastive loss: random directions to begin with, and draws of others that are uniform and never akin."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses


def chi_square(drawn, allowed):
    """How many standard deviations the counts of the allowed places lie above what a uniform draw gives."""
    counts = np.bincount(drawn, minlength=max(allowed) + 1)[sorted(allowed)]
    expected = len(drawn) / len(allowed)
    freedom = len(allowed) - 1
    return (np.sum((counts - expected) ** 2 / expected) - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("with_labels", [False, True])
@pytest.mark.parametrize("sorted_before", [False, True])
def test_draws_are_uniform_over_all_others(with_labels, sorted_before):
    labels = np.array([2, 0, 1, 0, 5, 2, 0, 1, 2, 0, 0, 2])
    order = jnp.argsort(jnp.asarray(labels)) if sorted_before and with_labels else None
    indices = jnp.arange(12)
    draw = jax.jit(losses.draw_negatives, static_argnums=(2, 3))
    drawn = draw(
        jax.random.key(0), indices, 20_000, 12, labels=jnp.asarray(labels) if with_labels else None, order=order
    )
    assert drawn.shape == (12, 20_000)
    for i in range(12):
        allowed = [j for j in range(12) if (labels[j] != labels[i] if with_labels else j != i)]
        assert set(np.asarray(drawn[i]).tolist()) == set(allowed)
        assert abs(chi_square(np.asarray(drawn[i]), allowed)) < 4.5
    # Anchors draw each for itself.
    assert len({tuple(np.asarray(row[:20]).tolist()) for row in drawn}) == 12


def test_draws_differ_by_key_and_repeat_with_it():
    indices = jnp.array([3, 3])
    first, again, other = (losses.draw_negatives(jax.random.key(k), indices, 50, 1000) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any()


def test_a_new_bank_has_random_directions():
    bank = losses.init_bank(jax.random.key(0), 1000, 16)
    for memory in (bank.student, bank.teacher):
        np.testing.assert_allclose(np.linalg.norm(memory, axis=1), np.ones(1000), 1e-5)
        assert np.abs(np.mean(memory, axis=0)).max() < 0.05
    assert np.abs(np.sum(bank.student * bank.teacher, axis=1)).mean() < 0.3


@pytest.mark.parametrize(
    ("arguments", "keywords", "words"),
    [
        ((jnp.arange(3.0), 4, 10), {}, r"indices must be whole numbers of shape \[batch\]; got .* float32"),
        ((jnp.arange(3), 0, 10), {}, "count must be a whole number of 1 or more; got 0"),
        ((jnp.arange(3), 4, 10), {"order": jnp.arange(10)}, "order must come with the labels that it sorts"),
        ((jnp.arange(3), 4, 1), {}, "bank_size must be a whole number of 2 or more; got 1"),
        ((jnp.arange(3), 4, 10), {"labels": jnp.arange(9)}, r"labels must be whole class numbers of shape \(10,\)"),
        (
            (jnp.arange(3), 4, 10),
            {"labels": jnp.full(10, 7)},
            "labels must be of two classes at least.*got class 7 alone",
        ),
    ],
)
def test_bad_draw_is_a_named_error(arguments, keywords, words):
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(losses.draw_negatives)(jax.random.key(0), *arguments, **keywords)


@pytest.mark.parametrize(("size", "dim", "words"), [(1, 4, "size must be .* 2 or more; got 1"), (10, 0, "dim must be")])
def test_bad_bank_is_a_named_error(size, dim, words):
    with pytest.raises(ValueError, match=words):
        losses.init_bank(jax.random.key(0), size, dim)


@pytest.mark.parametrize("wrong", [-1, 10])
def test_an_example_outside_the_bank_is_seen(wrong):
    """And no other example's number changes with it."""
    bank = losses.init_bank(jax.random.key(0), 10, 4)
    student, teacher = jax.random.normal(jax.random.key(1), (2, 3, 4))
    negatives = losses.draw_negatives(jax.random.key(2), jnp.array([7, 1, 2]), 5, 10)
    good, _ = losses.crd(student, teacher, jnp.array([7, 1, 2]), bank, negatives)
    values, after = losses.crd(student, teacher, jnp.array([7, wrong, 2]), bank, negatives)
    np.testing.assert_array_equal(np.isnan(values), [False, True, False])
    np.testing.assert_array_equal(values[::2], good[::2])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    values, _ = losses.crd(student, teacher, jnp.array([7, 1, 2]), bank, negatives.at[2, 3].set(wrong))
    np.testing.assert_array_equal(np.isnan(values), [False, False, True])
