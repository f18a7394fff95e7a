"""An epoch's means: of what is counted over all that was, whatever each step has of it; and a pass goes on with them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import (
    Outputs,
    Weights,
    cross_entropy,
    init_state,
    make_train_step,
    on_logits,
    scaled,
    schedules,
    weighted_sum,
)
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


def start(rate=0.0):
    return init_state(Weights(jnp.zeros(3), {}), optax.sgd(rate), jax.random.key(0))


def test_a_step_in_which_nothing_counts_has_no_part_in_the_means():
    """Those with a label, one each time they are seen: 0, 3, 5 and 0; not one mean a step, of which two are of nothing."""
    still = make_epoch(make_train_step(as_they_are, None, optax.sgd(0.0)))
    state, means = still(start(), None, OF_LABELS, SOME_LABELS, NONE_IN_TWO)
    seen = np.array([0, 3, 5, 0])
    own = -np.asarray(jax.nn.log_softmax(LOGITS))[seen, SOME_LABELS["labels"][seen]]
    assert means["accuracy"] == pytest.approx(np.mean(LOGITS.argmax(1)[seen] == SOME_LABELS["labels"][seen]))
    assert means["labels"] == pytest.approx(own.mean(), rel=1e-6)
    assert means["labels count"] == means["accuracy count"] == len(seen) / len(NONE_IN_TWO)
    sure = np.array([0, 5, 0])  # of weight 2, 1 and 2
    own, its = jnp.asarray(LOGITS[sure]), jnp.asarray(LOGITS[::-1][sure])
    kl = np.asarray(soft_target_kl(own, its, temperature=1.0))
    assert means["sure"] == pytest.approx((kl * SOME_LABELS["sure"][sure]).sum() / 3, rel=1e-6)
    assert (means["sure count"], means["sure_scale"]) == (3 / 5, pytest.approx(5 / 3))
    assert "soft count" not in means
    weight, unlabelled = means["labels_weight"], {"labelled": np.zeros(6)}
    assert weight == 0.5
    _, means = still(state, None, OF_LABELS, SOME_LABELS | unlabelled, NONE_IN_TWO)
    assert (means["labels"], means["accuracy"], means["labels count"]) == (0, 0, 0)


def test_means_of_what_counts_go_on_to_the_same_bits():
    epoch = make_epoch(make_train_step(as_they_are, None, optax.sgd(0.3)))
    _, wanted = epoch(start(0.3), None, OF_LABELS, SOME_LABELS, NONE_IN_TWO)
    for first in range(1, len(NONE_IN_TWO)):
        state, means = epoch(start(0.3), None, OF_LABELS, SOME_LABELS, NONE_IN_TWO[:first])
        rest = NONE_IN_TWO[first:]
        assert epoch(state, None, OF_LABELS, SOME_LABELS, rest, begun=(first, means))[1] == wanted
    without = {name: mean for name, mean in means.items() if name != "sure"}
    with pytest.raises(ValueError, match="begun must have the mean of each metric of the step; it has no 'sure'"):
        epoch(start(0.3), None, OF_LABELS, SOME_LABELS, NONE_IN_TWO, begun=(1, without))


def test_batches_of_a_stream_may_have_a_mask_or_none():
    goal = weighted_sum(labels=(1.0, cross_entropy))
    batch = {"inputs": LOGITS, "labels": SOME_LABELS["labels"]}
    halves = [batch | {"mask": np.array(mask)} for mask in ([1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0])]
    epoch = make_epoch(make_train_step(as_they_are, None, optax.sgd(0.0)))
    _, means = epoch(start(), None, goal, [batch, halves[0], batch, halves[1]])
    own = -np.asarray(jax.nn.log_softmax(LOGITS))[np.arange(6), batch["labels"]]
    of_halves = np.mean(own[[0, 1, 2, 3, 0]])
    assert means["labels"] == pytest.approx((own.mean() + of_halves) / 2, rel=1e-6)
    assert means["labels count"] == 2.5
    nothing = batch | {"mask": np.zeros(6, int)}
    _, of_one = epoch(start(), None, goal, [batch])
    _, means = epoch(start(), None, goal, [batch, nothing])
    assert {name: means[name] for name in ("labels", "accuracy")} == {
        name: of_one[name] for name in ("labels", "accuracy")
    }
    _, means = epoch(
        start(), None, goal, [halves[0], nothing | {"more": np.zeros(6)}, halves[1] | {"more": np.zeros(6)}]
    )
    assert means["labels"] == pytest.approx(of_halves, rel=1e-6)
    assert means["labels count"] == pytest.approx(5 / 3)


def test_a_stream_goes_on_with_batches_of_another_kind():
    goal = weighted_sum(labels=(1.0, cross_entropy))
    batch = {"inputs": LOGITS, "labels": SOME_LABELS["labels"]}
    epoch = make_epoch(make_train_step(as_they_are, None, optax.sgd(0.0)))
    stream = [batch, batch | {"mask": np.array([1, 0, 0, 0, 1, 0])}, batch]
    _, wanted = epoch(start(), None, goal, stream)
    for first in (1, 2):
        _, means = epoch(start(), None, goal, stream[:first])
        _, found = epoch(start(), None, goal, stream[first:], begun=(first, means))
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-6)
    _, means = epoch(start(), None, goal, stream[:1])
    _, found = epoch(start(), None, goal, stream[1:2], begun=(1, means))
    _, wanted = epoch(start(), None, goal, stream[:2])
    assert found == pytest.approx(wanted, rel=1e-6)


def test_what_only_looks_like_a_count_is_none():
    """A hyper-parameter of that name, and a step of one's own."""

    def scaled_up(student, teacher, *, count=1.0):
        return count * soft_target_kl(student, teacher)

    goal = weighted_sum(soft=(1.0, on_logits(scaled_up, count=schedules.linear(1.0, 7.0, steps=3))))
    epoch = make_epoch(make_train_step(as_they_are, None, optax.sgd(0.0)))
    arrays = {name: SOME_LABELS[name] for name in ("inputs", "teacher")}
    _, means = epoch(start(), None, goal, arrays, np.array([[0, 1], [0, 1], [0, 1]]))
    kl = np.asarray(soft_target_kl(jnp.asarray(LOGITS[:2]), jnp.asarray(LOGITS[::-1][:2]))).mean()
    assert means["soft"] == pytest.approx(kl * (1 + 3 + 5) / 3, rel=1e-5)
    assert means["soft_count"] == 3

    def own(state, teacher, objective, batch):
        return state, {"loss": jnp.zeros(()), "hits": jnp.sum(batch["x"]), "hits_count": jnp.ones(())}

    _, means = make_epoch(own, steps_per_call=2)(0, None, None, {"x": jnp.arange(4)}, np.array([[0, 1], [2, 3]]))
    assert means == {"loss": 0, "hits": 3, "hits_count": 1}
