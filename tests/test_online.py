"""Mutual learning and the mean teacher: what is learnt from whom, and what it costs."""

from functools import partial

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest

from kdjax import (
    Outputs,
    Weights,
    cross_entropy,
    init_state,
    make_train_step,
    on_feature,
    on_logits,
    schedules,
    weighted_sum,
)
from kdjax.losses import hint, rkd_distance, soft_target_kl
from kdjax.training import follow, make_following_step, make_mutual_step, split_batch

BATCH = networks.batch()
_, SMALL = networks.student()
_, LARGE = networks.teacher()
GOAL = weighted_sum(labels=(1.0, cross_entropy), peer=(1.0, on_logits(soft_target_kl, temperature=2.0)))


def states():
    return networks.fresh_state(), init_state(networks.teacher_weights(), networks.optimizer(), jax.random.key(5))


def as_it_trains(apply, state):
    rng = jax.random.fold_in(state.rng, state.step)
    return jax.jit(partial(apply, train=True))(state.params, state.model_state, BATCH["inputs"], rng=rng)[0]


def test_each_learns_from_the_others_outputs_of_that_moment_in_training_mode():
    before = states()
    after, metrics = jax.jit(make_mutual_step([SMALL, LARGE], [networks.optimizer()] * 2))(before, [GOAL, GOAL], BATCH)
    for own, other, apply, its_apply in ((0, 1, SMALL, LARGE), (1, 0, LARGE, SMALL)):
        alone = jax.jit(make_train_step(apply, None, networks.optimizer()))
        peer = as_it_trains(its_apply, before[other])
        expected, expected_metrics = alone(before[own], None, GOAL, {**BATCH, "teacher": peer})
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after[own].params, expected.params
        )
        np.testing.assert_allclose(metrics[own]["peer"], expected_metrics["peer"], rtol=1e-5)
    assert metrics[0]["peer"] > 0


def test_the_gradient_into_a_peer_is_stopped():
    """With the peer's term alone, each network's step moves it towards the other; joint descent would move both by half."""
    only_first = weighted_sum(peer=(1.0, on_logits(soft_target_kl)))
    nothing = weighted_sum(peer=(0.0, on_logits(soft_target_kl)))
    before = states()
    step = make_mutual_step([SMALL, LARGE], [optax.sgd(0.1)] * 2)
    plain = [init_state(Weights(s.params, s.model_state), optax.sgd(0.1), s.rng) for s in before]
    after, _ = jax.jit(step)(plain, [only_first, nothing], BATCH)
    assert any(
        bool(jnp.any(a != b)) for a, b in zip(*map(jax.tree.leaves, (after[0].params, plain[0].params)), strict=True)
    )
    jax.tree.map(np.testing.assert_array_equal, after[1].params, plain[1].params)


def test_each_network_runs_once_a_step():
    """The peers' outputs are the ones that the gradient is taken through: nothing is computed twice."""

    def flops(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]

    mutual = make_mutual_step([SMALL, LARGE], [networks.optimizer()] * 2)
    together = flops(mutual, states(), (GOAL, GOAL), BATCH)
    labels = weighted_sum(labels=(1.0, cross_entropy))
    each = [
        flops(make_train_step(apply, None, networks.optimizer()), state, None, labels, BATCH)
        for apply, state in zip((SMALL, LARGE), states(), strict=True)
    ]
    forward = flops(lambda weights: LARGE(*weights, BATCH["inputs"], train=False)[0].logits, networks.teacher_weights())
    assert together < sum(each) + 0.5 * forward


def test_three_learn_from_the_mean_of_the_others():
    def constant(params, model_state, inputs, *, train, rng=None):
        return Outputs(jnp.tile(params, (len(inputs), 1)), {"own": jnp.tile(params, (len(inputs), 1))}), model_state

    said = [jnp.array([1.0, 0.0, -1.0]), jnp.array([0.0, 2.0, 0.0]), jnp.array([0.5, 0.5, 3.0])]
    optimizer = optax.sgd(0.1)
    own = [init_state(Weights(logits, {}), optimizer, jax.random.key(0)) for logits in said]
    goal = weighted_sum(
        peers=(1.0, on_logits(soft_target_kl, temperature=1.0)), second=(0.0, on_feature(hint, "own", teacher="1/own"))
    )
    after, metrics = make_mutual_step([constant] * 3, [optimizer] * 3)(own, [goal] * 3, {"inputs": jnp.zeros((4, 2))})
    p = np.exp(np.stack(said)) / np.exp(np.stack(said)).sum(1, keepdims=True)
    others = (p[1] + p[2]) / 2
    np.testing.assert_allclose(metrics[0]["peers"], (others * np.log(others / p[0])).sum(), rtol=1e-5)
    # The gradient of the mean of the two divergences is the same.
    np.testing.assert_allclose(after[0].params, said[0] - 0.1 * ((p[0] - p[1]) + (p[0] - p[2])) / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics[0]["second"], ((said[0] - said[2]) ** 2).mean(), rtol=1e-5)


def test_networks_that_learn_together_come_to_agree():
    step = jax.jit(make_mutual_step([SMALL, LARGE], [networks.optimizer()] * 2), donate_argnums=0)
    now, seen = states(), []
    for _ in range(25):
        now, metrics = step(now, [GOAL, GOAL], BATCH)
        seen.append([float(one["loss"]) for one in metrics])
    assert (np.mean(seen[-3:], axis=0) < np.mean(seen[:3], axis=0)).all()
    assert step._cache_size() == 1


def test_a_mean_teacher_is_the_average_of_what_the_student_was():
    step = make_train_step(SMALL, SMALL, networks.optimizer())
    state = networks.fresh_state()
    teacher = Weights(state.params, state.model_state)
    following = jax.jit(make_following_step(step, schedules.linear(0.5, 1.0, steps=2)))
    expected = jax.tree.map(np.asarray, teacher)
    for number in range(3):
        state, teacher, metrics = following(state, teacher, GOAL, BATCH)
        decay = 0.5 + 0.25 * min(number, 2)
        student = Weights(state.params, state.model_state)
        expected = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * np.asarray(new), expected, student)
        assert metrics["peer"] >= 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), teacher, expected)
    assert jax.tree.leaves(teacher.model_state), "running statistics are averaged too"


def test_counters_are_the_students_and_half_precision_is_averaged_in_float32():
    old = Weights({"w": jnp.array([1.0], jnp.bfloat16)}, {"count": jnp.array(3)})
    new = Weights({"w": jnp.array([2.0], jnp.bfloat16)}, {"count": jnp.array(7)})
    mean = follow(old, new, 0.5)
    assert mean.params["w"].dtype == jnp.bfloat16
    assert float(mean.params["w"][0]) == 1.5
    assert int(mean.model_state["count"]) == 7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_mutual_step([SMALL], [optax.sgd(0.1)]), "applies must be two networks or more; got 1"),
        (
            lambda: make_mutual_step([SMALL, LARGE], [optax.sgd(0.1)]),
            "optimizers must be one for each of the 2 networks",
        ),
        (
            lambda: make_mutual_step([SMALL, LARGE], [networks.optimizer()] * 2)(states()[:1], [GOAL, GOAL], BATCH),
            "states must be one for each of the 2 networks; got 1",
        ),
        (lambda: make_following_step(lambda *_: None, 1.5), "decay must lie between 0.0 and 1.0; got 1.5"),
        (lambda: follow(Weights({}, {}), Weights({"w": jnp.ones(1)}, {}), 0.5), "teacher must have the student's tree"),
    ],
)
def test_what_is_wrong_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_batch_split_over_an_axis_gives_the_same_states():
    """Each learns from the whole batch's peers, also in a relation between examples."""
    goal = weighted_sum(labels=(1.0, cross_entropy), peer=(1.0, on_feature(rkd_distance, "embedding")))

    def both(axis_name):
        return make_mutual_step([networks.student(axis_name)[1]] * 2, [networks.optimizer()] * 2, axis_name=axis_name)

    before = networks.fresh_state(0), networks.fresh_state(1)
    whole, expected = jax.jit(both(None))(before, [goal] * 2, BATCH)
    over_axis = jax.vmap(both("data"), in_axes=(None, None, 0), out_axes=None, axis_name="data")
    split, metrics = jax.jit(over_axis)(before, [goal] * 2, split_batch(BATCH, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), split[1].params, whole[1].params)
    np.testing.assert_allclose(metrics[0]["peer"], expected[0]["peer"], rtol=1e-5)
