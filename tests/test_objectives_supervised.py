"""The terms that compare with labels: by hand, at all leading axes, of every kind of label, and what fits none."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import Outputs, cross_entropy, weighted_sum
from kdjax.objectives import binary_cross_entropy, mixed_cross_entropy, smoothed_cross_entropy, squared_error
from kdjax.objectives._counted import without_ignored

RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.normal(size=(4, 3, 5))).astype(np.float32)
CLASSES = RNG.integers(0, 5, (4, 3)).astype(np.int32)
SHARES = np.asarray(jax.nn.softmax(RNG.normal(size=(4, 3, 5)).astype(np.float32)))


def value(term, logits, labels):
    return np.asarray(jax.jit(lambda logits: term(Outputs(logits, {}), None, {"labels": labels}))(jnp.asarray(logits)))


def log_shares(logits):
    shifted = np.float64(logits) - np.float64(logits).max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_cross_entropy_of_classes_and_of_probabilities_at_every_position(dtype):
    logits = jnp.asarray(LOGITS, dtype)
    expected = log_shares(np.asarray(logits, np.float32))
    found = value(cross_entropy, logits, CLASSES)
    assert (found.dtype, found.shape) == (np.float32, (4, 3))
    np.testing.assert_allclose(found, -np.take_along_axis(expected, CLASSES[..., None], -1)[..., 0], rtol=1e-5)
    np.testing.assert_allclose(value(cross_entropy, logits, SHARES), -(SHARES * expected).sum(-1), rtol=1e-5)


def test_a_class_that_is_excluded_and_unwanted_costs_nothing():
    logits = jnp.asarray(LOGITS).at[..., 0].set(-jnp.inf)
    shares = SHARES.copy()
    shares[..., 0] = 0
    assert np.isfinite(value(cross_entropy, logits, shares)).all()
    slope = jax.grad(lambda z: cross_entropy(Outputs(z, {}), None, {"labels": jnp.asarray(shares)}).sum())(logits)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize(
    ("term", "labels", "logits"),
    [
        (smoothed_cross_entropy(0.0), [1], [-np.inf, 0.0, 0.0]),
        (binary_cross_entropy, [[0, 1, 1]], [-np.inf, 0.0, np.inf]),
    ],
)
def test_what_an_infinite_logit_rules_out_costs_nothing_where_it_is_ruled_out(term, labels, logits):
    def cost(logits):
        return term(Outputs(logits[None], {}), None, {"labels": jnp.asarray(labels)})[0]

    found, slope = jax.value_and_grad(cost)(jnp.asarray(logits))
    np.testing.assert_allclose(found, np.log(2), rtol=1e-6)
    assert np.isfinite(slope).all()


def test_a_label_that_is_no_class_is_seen():
    labels = CLASSES.copy()
    labels[0, 0], labels[1, 1] = -1, 5
    found = value(cross_entropy, LOGITS, labels)
    assert np.isnan(found).sum() == 2


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_smoothing_is_that_of_the_labels(smoothing):
    own = optax.smooth_labels(jax.nn.one_hot(CLASSES, 5), smoothing)
    found = value(smoothed_cross_entropy(smoothing), LOGITS, CLASSES)
    np.testing.assert_allclose(found, value(cross_entropy, LOGITS, np.asarray(own)), rtol=1e-5)
    soft = (1 - smoothing) * SHARES + smoothing / 5
    found = value(smoothed_cross_entropy(smoothing), LOGITS, SHARES)
    np.testing.assert_allclose(found, value(cross_entropy, LOGITS, soft), rtol=1e-5)


def test_smoothing_may_change_with_the_step_and_is_checked():
    term = smoothed_cross_entropy(lambda step: 0.1 * step)
    outputs = Outputs(jnp.asarray(LOGITS), {})
    scores = weighted_sum(labels=(1.0, term))(outputs, None, {"labels": jnp.asarray(CLASSES)}, 2)
    np.testing.assert_allclose(scores.terms["labels"], value(smoothed_cross_entropy(0.2), LOGITS, CLASSES), rtol=1e-5)
    with pytest.raises(ValueError, match="smoothing must lie between 0"):
        smoothed_cross_entropy(1.5)


@pytest.mark.parametrize("kind", [np.int32, np.bool_, np.uint8, np.float32])
def test_several_labels_at_once(kind):
    labels = (RNG.random((4, 3, 5)) < 0.5).astype(kind)
    shares = 1 / (1 + np.exp(-np.float64(LOGITS)))
    by_hand = -np.where(labels, np.log(shares), np.log1p(-shares)).sum(-1)
    np.testing.assert_allclose(value(binary_cross_entropy, LOGITS, labels), by_hand, rtol=1e-5)


def test_one_logit_takes_one_label_without_an_axis():
    labels = RNG.integers(0, 2, (4, 3))
    one = value(binary_cross_entropy, LOGITS[..., :1], labels)
    np.testing.assert_array_equal(one, value(binary_cross_entropy, LOGITS[..., :1], labels[..., None]))
    as_two = np.stack([np.zeros((4, 3), np.float32), LOGITS[..., 0]], -1)
    np.testing.assert_allclose(one, value(cross_entropy, as_two, labels), rtol=1e-5, atol=1e-6)
    assert np.isnan(value(binary_cross_entropy, LOGITS[..., :1], np.full((4, 3), 2))).all()


def test_squared_error_is_a_mean_over_outputs():
    targets = RNG.normal(size=(4, 3, 5)).astype(np.float32)
    np.testing.assert_allclose(value(squared_error, LOGITS, targets), ((LOGITS - targets) ** 2).mean(-1), rtol=1e-5)
    one = value(squared_error, LOGITS[..., :1], targets[..., 0])
    np.testing.assert_allclose(one, (LOGITS[..., 0] - targets[..., 0]) ** 2, rtol=1e-5)
    assert value(squared_error, LOGITS[..., :1], CLASSES).dtype == np.float32


@pytest.mark.parametrize(
    ("term", "labels", "message"),
    [
        (
            cross_entropy,
            CLASSES[:, :2],
            r'batch\["labels"\] must be whole class numbers of shape \(4, 3\); got shape \(4, 2\)',
        ),
        (cross_entropy, SHARES[..., :2], r"must be whole class numbers of shape \(4, 3\)"),
        (smoothed_cross_entropy(0.1), CLASSES[0], r"labels must be whole class numbers of shape \(4, 3\)"),
        (binary_cross_entropy, CLASSES, r'student.logits and batch\["labels"\] must have the same shape'),
        (squared_error, CLASSES, r'student.logits and batch\["labels"\] must have the same shape'),
    ],
)
def test_labels_that_fit_neither_examples_nor_positions_are_refused(term, labels, message):
    with pytest.raises(ValueError, match=message):
        term(Outputs(jnp.asarray(LOGITS), {}), None, {"labels": labels})


def test_labels_that_are_missing_are_named():
    for term in (cross_entropy, binary_cross_entropy, squared_error, smoothed_cross_entropy(0.1)):
        with pytest.raises(ValueError, match='batch must have "labels"'):
            term(Outputs(jnp.asarray(LOGITS), {}), None, {})


def test_one_logit_is_no_cross_entropy_and_minus_one_no_probability():
    for term in (cross_entropy, smoothed_cross_entropy(0.1)):
        with pytest.raises(ValueError, match=r"student.logits must be of two classes or more.*binary_cross_entropy"):
            term(Outputs(jnp.zeros((4, 1)), {}), None, {"labels": jnp.zeros((4, 1))})
    assert np.isnan(value(cross_entropy, LOGITS, -np.ones_like(LOGITS))).all()


def test_mixed_examples_have_one_share_for_all_their_positions():
    share = np.linspace(0.1, 0.9, 4).astype(np.float32)
    given = {
        "labels": jnp.asarray(CLASSES),
        "partner_labels": jnp.asarray(CLASSES[::-1].copy()),
        "share": jnp.asarray(share),
    }
    outputs = Outputs(jnp.asarray(LOGITS), {})
    own, others = (value(cross_entropy, LOGITS, given[name]) for name in ("labels", "partner_labels"))
    by_hand = share[:, None] * own + (1 - share[:, None]) * others
    np.testing.assert_allclose(mixed_cross_entropy(outputs, None, given), by_hand, rtol=1e-5)
    with pytest.raises(ValueError, match=r'batch\["share"\] must be one number an example'):
        mixed_cross_entropy(outputs, None, given | {"share": jnp.ones(3)})
    with pytest.raises(ValueError, match="ignore_label must be None where examples are mixed"):
        without_ignored(given, -100)
