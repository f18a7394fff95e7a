"""The graph loss's two sparsifications, at ties and at classes of one: what a table of laws does not think of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references

from kdjax import losses

LABELS = np.array([0, 1, 0, 2, 1, 0])


def with_ties(seed):
    """Directions of few kinds, so that neighbours tie, at different lengths, so that rounding tells the tied apart."""
    generator = np.random.default_rng(seed)
    student, teacher = (generator.integers(-1, 2, (6, dim)) * generator.uniform(0.1, 3, (6, 1)) for dim in (2, 3))
    return student.astype(np.float32), teacher.astype(np.float32)


def value_and_gradient(*arrays, **keywords):
    def mean(student, teacher, labels):
        values = losses.similarity_graph(student, teacher, labels, **keywords)
        return values.mean(), values

    (_, values), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(*map(jnp.asarray, arrays))
    return np.asarray(values), np.asarray(gradient)


@pytest.mark.parametrize("keywords", [{"neighbours": 1}, {"neighbours": 3, "hardest": 1}, {"hardest": 2}])
def test_tied_neighbours_share_a_place_in_any_order(keywords):
    for seed in range(3):
        student, teacher = with_ties(seed)
        values, gradient = value_and_gradient(student, teacher, LABELS, **keywords)
        wanted = references.similarity_graph(student.astype(np.float64), teacher.astype(np.float64), LABELS, **keywords)
        np.testing.assert_allclose(values, wanted, 2e-4, 1e-5)
        order = np.random.default_rng(seed).permutation(6)
        reordered, of_reordered = value_and_gradient(student[order], teacher[order], LABELS[order], **keywords)
        np.testing.assert_allclose(reordered, values[order], 1e-4, 1e-5)
        np.testing.assert_allclose(of_reordered, gradient[order], 1e-3, 1e-4)


def test_a_class_of_one_feels_the_graph_alone():
    student, teacher = with_ties(0)
    values, gradient = value_and_gradient(student, student, np.arange(6), hardest=2)
    np.testing.assert_allclose(values, np.zeros(6), 0, 1e-6)
    np.testing.assert_allclose(gradient, np.zeros((6, 2)), 0, 1e-6)
    values, gradient = value_and_gradient(student, teacher, np.arange(6))
    cosines = []
    for features in (student, teacher):
        directions = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
        cosines.append(directions @ directions.T)
    squares = (cosines[0] - cosines[1]) ** 2
    np.testing.assert_allclose(values, (squares.sum(axis=1) - np.diagonal(squares)) / 5, 1e-4, 1e-6)


def test_only_the_hardest_negative_counts():
    student = np.array([[1.0, 0.0], [1.0, 0.1], [0.9, 0.5], [-1.0, 0.2]], np.float32)
    labels = np.array([0, 0, 1, 1])
    nearer = student.copy()
    nearer[3] = [-1.0, 1.5]
    first, changed = (value_and_gradient(s, s, labels, hardest=1)[0] for s in (student, nearer))
    np.testing.assert_array_equal(first[:2], changed[:2])
    first, changed = (value_and_gradient(s, s, labels, temperature=1.0)[0] for s in (student, nearer))
    assert (first[:2] != changed[:2]).all()


@pytest.mark.parametrize("labels", [np.zeros(6, int), np.arange(6), LABELS])
@pytest.mark.parametrize("temperature", [0.1, 1e-3])
def test_finite_whatever_the_classes(labels, temperature):
    """At τ = 1e-3 the exponentials of excluded pairs overflow; no mask after the fact would save the gradient."""
    student, teacher = with_ties(1)
    for keywords in ({}, {"neighbours": 1, "hardest": 1}):
        values, gradient = value_and_gradient(student, teacher, labels, temperature=temperature, **keywords)
        assert np.isfinite(values).all()
        assert np.isfinite(gradient).all()
