"""Linear probes, against scikit-learn's logistic regression: the same minimum, whatever the features' place and size."""

from functools import cache

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from kdjax.data import load
from kdjax.networks import linear_probe

TRAIN = load("digits", "train")
PIXELS = TRAIN.inputs.reshape(len(TRAIN.labels), -1).astype(np.float32) / TRAIN.inputs.max()


@cache
def scikit_learns(l2):
    """Its C weighs the sum over examples, not their mean; and it computes in float64."""
    model = LogisticRegression(C=1 / (l2 * len(PIXELS)), solver="newton-cg", tol=1e-8, max_iter=1000)
    model.fit(PIXELS.astype(np.float64), TRAIN.labels)
    return model.coef_.T, model.intercept_


@pytest.mark.parametrize("l2", [1e-2, 1e-4])
@pytest.mark.parametrize(("size", "place"), [(1.0, 0.0), (50.0, 0.0), (1.0, 30.0)])
def test_the_probe_is_scikit_learns_logistic_regression(l2, size, place):
    features = PIXELS * np.float32(size) + np.float32(place)
    kernel, bias = scikit_learns(l2)
    got = linear_probe(features, TRAIN.labels, 10, l2=l2 * size**2)
    largest = np.abs(kernel).max()
    np.testing.assert_allclose(np.asarray(got["kernel"]) * size, kernel, atol=1e-3 * largest)
    own = np.asarray(got["bias"], np.float64) + place * np.asarray(got["kernel"], np.float64).sum(axis=0)
    np.testing.assert_allclose(own, bias, atol=1e-3 * largest)
    # The tolerance tells this minimum from that of another penalty.
    other, _ = scikit_learns(1.05 * l2)
    assert np.abs(other - kernel).max() > 3e-3 * largest


def test_the_probe_is_a_minimum_and_the_same_at_every_call():
    """The gradient by hand: Xᵀ(p − y)/n + λW, and the mean of p − y."""
    first, again = (linear_probe(PIXELS, TRAIN.labels, 10, l2=1e-3) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernel, bias = (np.asarray(first[name], np.float64) for name in ("kernel", "bias"))
    scores = np.exp(PIXELS @ kernel + bias)
    error = scores / scores.sum(axis=1, keepdims=True) - np.eye(10)[TRAIN.labels]
    np.testing.assert_allclose(PIXELS.T @ error / len(error) + 1e-3 * kernel, 0, atol=1e-5)
    np.testing.assert_allclose(error.mean(axis=0), 0, atol=1e-5)
    assert abs(bias.sum()) < 1e-4


def test_few_steps_stop_early_and_more_come_nearer():
    exact, _ = scikit_learns(1e-4)
    with pytest.warns(
        RuntimeWarning, match=r"not at its minimum after \d+ steps: an entry of the gradient is 0\."
    ) as said:
        far, near = (
            np.abs(np.asarray(linear_probe(PIXELS, TRAIN.labels, 10, l2=1e-4, steps=steps)["kernel"]) - exact).max()
            for steps in (5, 50)
        )
    assert far > 3 * near > 0
    assert len(said) == 2


def test_a_channel_of_another_size_hinders_no_other():
    """One that says nothing and is ten thousand times as large, and one that hardly moves, far from 0."""
    draw = np.random.default_rng(0).normal(size=(2, len(PIXELS), 1))
    features = np.concatenate([PIXELS, 1e4 * draw[0], 30.0 + 1e-4 * draw[1]], axis=1).astype(np.float32)
    model = LogisticRegression(C=1 / (1e-3 * len(PIXELS)), solver="newton-cg", tol=1e-8, max_iter=1000)
    model.fit(features.astype(np.float64), TRAIN.labels)
    got = np.asarray(linear_probe(features, TRAIN.labels, 10, l2=1e-3)["kernel"])
    largest = np.abs(model.coef_.T).max(axis=1, initial=1e-9)
    np.testing.assert_allclose(got[:64], model.coef_.T[:64], atol=1e-3 * largest[:64].max())
    np.testing.assert_allclose(got[64], model.coef_.T[64], atol=1e-2 * largest[64])


@pytest.mark.parametrize("size", [1e-15, 4e19, 3e38])
def test_features_whose_squares_float32_does_not_hold_are_probed(size):
    features = np.array([[-1.0], [-0.5], [0.5], [1.0]], np.float32) * np.float32(size)
    kernel = np.asarray(linear_probe(features, np.array([0, 0, 1, 1]), 2, l2=0.1)["kernel"], np.float64)
    assert (kernel[0, 1] - kernel[0, 0]) * size > (1e-30 if size < 1 else 3.0)


def test_features_that_say_nothing_leave_the_shares_of_the_classes():
    """Constant features, and a class without an example: its share is next to nothing."""
    labels = np.array([0, 0, 0, 1], np.int32)
    probe = linear_probe(np.full((4, 2), 3.0, np.float32), labels, 3)
    np.testing.assert_allclose(probe["kernel"], 0, atol=1e-6)
    shares = np.asarray(jax.nn.softmax(probe["bias"]))
    np.testing.assert_allclose(shares[:2], [0.75, 0.25], atol=1e-3)
    assert shares[2] < 1e-3


def test_what_cannot_be_probed_is_a_named_error():
    features, labels = np.ones((4, 2), np.float32), np.array([0, 1, 0, 1], np.int32)
    for arguments, words in (
        ({"features": features[:, :, None]}, r"features must have 2 axes, \[examples, dim\]"),
        ({"features": np.full((4, 2), np.nan, np.float32)}, r"features must be finite numbers, .*got shape \(4, 2\)"),
        ({"features": features[:0], "labels": labels[:0]}, r"features must be finite .*got shape \(0, 2\)"),
        ({"labels": labels[:3]}, r"labels must be whole class numbers of shape \(4,\)"),
        ({"labels": labels + 1}, "labels must lie between 0 and 1; got 1 to 2"),
        ({"labels": labels - 1}, "labels must lie between 0 and 1; got -1 to 0"),
        ({"l2": 0.0}, "l2 must be a finite number greater than 0; got 0.0"),
        ({"classes": 0}, "classes must be a whole number of 1 or more; got 0"),
        ({"steps": 0}, "steps must be a whole number of 1 or more; got 0"),
    ):
        given = {"features": features, "labels": labels, "classes": 2} | arguments
        with pytest.raises(ValueError, match=words):
            linear_probe.__wrapped__(**given)  # without the tests' own check of shapes, which would speak first
