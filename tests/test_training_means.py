"""An epoch's means: of what is counted over all that was, whatever each step has of it; and a pass goes on with them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import Outputs, Weights, cross_entropy, init_state, make_train_step, on_logits, scaled, weighted_sum
from kdjax.losses import soft_target_kl
from kdjax.training import make_epoch


def as_they_are(params, model_state, inputs, *, train, rng=None):
    """The inputs are the logits, but for a bias that is learnt."""
    return Outputs(inputs + params[None], {}), model_state


LOGITS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
SOME_LABELS = {
    "inputs": LOGITS,
    "labels": np.array([0, 1, 2, 0, 1, 2]),
    "labelled": np.array([1, 0, 0, 1, 0, 1]),
    "teacher": Outputs(LOGITS[::-1].copy(), {}),
    "sure": np.array([2.0, 0.0, 0.0, 0.0, 0.0, 1.0], np.float32),
}
OF_LABELS = weighted_sum(
    labels=(0.5, cross_entropy),
    soft=(0.5, on_logits(soft_target_kl, temperature=2.0)),
    sure=(1.0, scaled(on_logits(soft_target_kl, temperature=1.0), by="batch.sure")),
)
NONE_IN_TWO = np.array([[1, 2], [0, 3], [4, 1], [5, 4], [0, 1]])


def test_a_step_in_which_nothing_counts_has_no_part_in_the_means():
    """Those with a label, one each time they are seen: 0, 3, 5 and 0; not one mean a step, of which two are of nothing."""
    still = make_epoch(make_train_step(as_they_are, None, optax.sgd(0.0)))
    state = init_state(Weights(jnp.zeros(3), {}), optax.sgd(0.0), jax.random.key(0))
    state, means = still(state, None, OF_LABELS, SOME_LABELS, NONE_IN_TWO)
    seen = np.array([0, 3, 5, 0])
    own = -np.asarray(jax.nn.log_softmax(LOGITS))[seen, SOME_LABELS["labels"][seen]]
    assert means["accuracy"] == pytest.approx(np.mean(LOGITS.argmax(1)[seen] == SOME_LABELS["labels"][seen]))
    assert means["labels"] == pytest.approx(own.mean(), rel=1e-6)
    assert means["labels_count"] == means["accuracy_count"] == len(seen) / len(NONE_IN_TWO)
    sure = np.array([0, 5, 0])  # of weight 2, 1 and 2
    own, its = jnp.asarray(LOGITS[sure]), jnp.asarray(LOGITS[::-1][sure])
    kl = np.asarray(soft_target_kl(own, its, temperature=1.0))
    assert means["sure"] == pytest.approx((kl * SOME_LABELS["sure"][sure]).sum() / 3, rel=1e-6)
    assert (means["sure_count"], means["sure_scale"]) == (3 / 5, pytest.approx(5 / 3))
    assert "soft_count" not in means
    weight, unlabelled = means["labels_weight"], {"labelled": np.zeros(6)}
    assert weight == 0.5
    _, means = still(state, None, OF_LABELS, SOME_LABELS | unlabelled, NONE_IN_TWO)
    assert (means["labels"], means["accuracy"], means["labels_count"]) == (0, 0, 0)


def test_means_of_what_counts_go_on_to_the_same_bits():
    epoch = make_epoch(make_train_step(as_they_are, None, optax.sgd(0.3)))

    def start():
        return init_state(Weights(jnp.zeros(3), {}), optax.sgd(0.3), jax.random.key(0))

    _, wanted = epoch(start(), None, OF_LABELS, SOME_LABELS, NONE_IN_TWO)
    for first in range(1, len(NONE_IN_TWO)):
        state, means = epoch(start(), None, OF_LABELS, SOME_LABELS, NONE_IN_TWO[:first])
        rest = NONE_IN_TWO[first:]
        assert epoch(state, None, OF_LABELS, SOME_LABELS, rest, begun=(first, means))[1] == wanted
    without = {name: mean for name, mean in means.items() if name != "sure_count"}
    with pytest.raises(ValueError, match="begun must have the mean of each metric of the step; it has no 'sure_count'"):
        epoch(start(), None, OF_LABELS, SOME_LABELS, NONE_IN_TWO, begun=(1, without))


def test_batches_of_a_stream_are_counted_alike_or_refused():
    epoch = make_epoch(make_train_step(as_they_are, None, optax.sgd(0.3)))
    state = init_state(Weights(jnp.zeros(3), {}), optax.sgd(0.3), jax.random.key(0))
    goal = weighted_sum(labels=(1.0, cross_entropy))
    batch = {"inputs": LOGITS, "labels": SOME_LABELS["labels"]}
    with pytest.raises(
        ValueError, match=r"arrays must give batches of which the step counts the same.*'accuracy_count'"
    ):
        epoch(state, None, goal, [batch, batch | {"mask": np.array([1, 1, 1, 1, 0, 0])}])
