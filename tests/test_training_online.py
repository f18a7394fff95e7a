"""Mutual learning and the mean teacher: what is learnt from whom, and what it costs."""

import inspect
from functools import partial

import chex
import dense
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dense import fresh_state, optimizer

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
from kdjax.losses import hint, soft_target_kl
from kdjax.training import (
    follow,
    init_mean_teacher,
    make_mean_teacher_step,
    make_mutual_step,
    split_batch,
    weights_of,
)

BATCH = dense.batch()
SMALL, LARGE = dense.student(), dense.network(noise=0.3)
PEER = weighted_sum(peer=(1.0, on_logits(soft_target_kl)))
LABELS = weighted_sum(labels=(1.0, cross_entropy))
GOAL = weighted_sum(labels=(1.0, cross_entropy), peer=(1.0, on_logits(soft_target_kl, temperature=2.0)))


def both(optimizers=None):
    return make_mutual_step([SMALL, LARGE], optimizers or [optimizer()] * 2)


def states(transform=None):
    large = init_state(dense.weights(7, 8), transform or optimizer(), jax.random.key(5))
    return fresh_state(0, transform), large


def as_it_trains(apply, state):
    rng = jax.random.fold_in(state.rng, state.step)
    return jax.jit(partial(apply, train=True))(state.params, state.model_state, BATCH["inputs"], rng=rng)[0]


def test_each_learns_from_the_others_outputs_of_that_moment_in_training_mode():
    before = states()
    after, metrics = jax.jit(both())(before, None, (GOAL, GOAL), BATCH)
    losses = []
    for own, other, apply, its_apply in ((0, 1, SMALL, LARGE), (1, 0, LARGE, SMALL)):
        alone = jax.jit(make_train_step(apply, None, optimizer()))
        peer = as_it_trains(its_apply, before[other])
        expected, of_it = alone(before[own], None, GOAL, {**BATCH, "teacher": peer})
        chex.assert_trees_all_close(after[own].params, expected.params, rtol=1e-5, atol=1e-6)
        for name, value in of_it.items():
            np.testing.assert_allclose(metrics[f"{own}/{name}"], value, rtol=1e-5, err_msg=name)
        losses.append(of_it["loss"])
    assert metrics["0/peer"] > 0
    np.testing.assert_allclose(metrics["loss"], sum(losses), rtol=1e-6)
    assert {name.split("/")[0] for name in metrics} == {"0", "1", "loss"}


def test_the_gradient_into_a_peer_is_stopped():
    """With the peer's term alone, each network's step moves it towards the other; joint descent would move both by half."""
    nothing = weighted_sum(peer=(0.0, on_logits(soft_target_kl)))
    before = states(optax.sgd(0.1))
    after, _ = jax.jit(both([optax.sgd(0.1)] * 2))(before, None, (PEER, nothing), BATCH)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), after[0].params, before[0].params)
    assert any(jax.tree.leaves(moved))
    chex.assert_trees_all_equal(after[1].params, before[1].params)


def test_each_network_runs_once_a_step():
    """The peers' outputs are the ones that the gradient is taken through: nothing is computed twice."""

    def flops(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]

    wide = dense.weights(7, 512)  # so that the network is most of the work
    start = tuple(init_state(its, optimizer(), jax.random.key(5)) for its in (dense.weights(0, 256), wide))
    together = flops(both(), start, None, (GOAL, GOAL), BATCH)
    each = [
        flops(make_train_step(apply, None, optimizer()), state, None, LABELS, BATCH)
        for apply, state in zip((SMALL, LARGE), start, strict=True)
    ]
    forward = flops(lambda weights: LARGE(*weights, BATCH["inputs"], train=False)[0].logits, wide)
    assert together < sum(each) + 0.5 * forward


def test_three_learn_from_the_mean_of_the_others():
    def constant(params, model_state, inputs, *, train, rng=None):
        return Outputs(jnp.tile(params, (len(inputs), 1)), {"own": jnp.tile(params, (len(inputs), 1))}), model_state

    said = [jnp.array([1.0, 0.0, -1.0]), jnp.array([0.0, 2.0, 0.0]), jnp.array([0.5, 0.5, 3.0])]
    sgd = optax.sgd(0.1)
    own = tuple(init_state(Weights(logits, {}), sgd, jax.random.key(0)) for logits in said)
    goal = weighted_sum(
        peers=(1.0, on_logits(soft_target_kl, temperature=1.0)), second=(0.0, on_feature(hint, "own", teacher="1/own"))
    )
    after, metrics = make_mutual_step([constant] * 3, [sgd] * 3)(own, None, [goal] * 3, {"inputs": jnp.zeros((4, 2))})
    p = np.exp(np.stack(said)) / np.exp(np.stack(said)).sum(1, keepdims=True)
    others = (p[1] + p[2]) / 2
    np.testing.assert_allclose(metrics["0/peers"], (others * np.log(others / p[0])).sum(), rtol=1e-5)
    # The gradient of the mean of the two divergences is the same.
    np.testing.assert_allclose(after[0].params, said[0] - 0.1 * ((p[0] - p[1]) + (p[0] - p[2])) / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["0/second"], ((said[0] - said[2]) ** 2).mean(), rtol=1e-5)


def test_networks_that_learn_together_come_to_agree():
    step = jax.jit(both(), donate_argnums=0)
    now, seen = states(), []
    for _ in range(25):
        now, metrics = step(now, None, (GOAL, GOAL), BATCH)
        seen.append([float(metrics[f"{own}/loss"]) for own in range(2)])
    assert (np.mean(seen[-3:], axis=0) < np.mean(seen[:3], axis=0)).all()
    assert step._cache_size() == 1


def test_a_connector_of_one_network_learns_beside_it_and_the_other_learns_as_without():
    """What the connector computes is of its own network's outputs and its peer's; the peer's gradient does not see it."""
    mapping, with_hint = dense.beside(0, its=(LARGE, dense.weights(7, 8)))
    hinted = weighted_sum(labels=(1.0, cross_entropy), hint=(1.0, on_feature(hint, "hint")))
    step = make_mutual_step([SMALL, LARGE], [optimizer()] * 2, connectors=[mapping, None])
    plain, peer = states()
    after, metrics = jax.jit(step)((with_hint, peer), None, (hinted, GOAL), BATCH)
    said = as_it_trains(LARGE, peer)
    alone = jax.jit(make_train_step(SMALL, None, optimizer(), connectors=mapping))
    expected, of_it = alone(with_hint, None, hinted, {**BATCH, "teacher": said})
    chex.assert_trees_all_close(after[0].params, expected.params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["0/hint"], of_it["hint"], rtol=1e-5)
    other, _ = jax.jit(both())((plain, peer), None, (LABELS, GOAL), BATCH)
    chex.assert_trees_all_close(after[1].params, other[1].params, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(weights_of(after)[0]) == jax.tree.structure(weights_of(plain))


def test_a_mean_teacher_is_the_average_of_what_the_student_was():
    step = make_train_step(SMALL, SMALL, optimizer())
    averaging = jax.jit(make_mean_teacher_step(step, schedules.linear(0.5, 1.0, steps=2)))
    alone = jax.jit(step)
    pair = init_mean_teacher(fresh_state())
    expected = jax.tree.map(np.asarray, pair[1])
    for number in range(3):
        before = pair
        pair, metrics = averaging(pair, None, GOAL, BATCH)
        # The student learns as by the plain step from the average of before.
        student, of_it = alone(*before, GOAL, BATCH)
        chex.assert_trees_all_close(pair[0].params, student.params, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(metrics["peer"], of_it["peer"], rtol=1e-4, atol=1e-6)
        decay = 0.5 + 0.25 * min(number, 2)
        expected = jax.tree.map(
            lambda old, new, d=decay: d * old + (1 - d) * np.asarray(new), expected, weights_of(pair[0])
        )
    chex.assert_trees_all_close(weights_of(pair), expected, rtol=1e-5, atol=1e-6)
    assert metrics["peer"] > 0
    assert jax.tree.leaves(pair[1].model_state), "running statistics are averaged too"


def test_the_average_of_a_student_with_connectors_is_the_students_alone():
    mapping, state = dense.beside(0, its=(SMALL, dense.weights(0, 4)))
    goal = weighted_sum(labels=(1.0, cross_entropy), hint=(1.0, on_feature(hint, "hint")))
    step = make_train_step(SMALL, SMALL, optimizer(), connectors=mapping)
    before = init_mean_teacher(state)
    (state, average), _ = jax.jit(make_mean_teacher_step(step, 0.75))(before, None, goal, BATCH)
    own, old = weights_of(state).params, before[1].params
    assert {*own} == {"body", "scale", "head"}
    chex.assert_trees_all_close(average.params, jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, old, own), rtol=1e-6)


def test_the_pair_of_a_mean_teacher_may_be_donated():
    """The average begins as a copy: a compiled step takes the state's memory, and must not take the average's."""
    step = jax.jit(make_mean_teacher_step(make_train_step(SMALL, SMALL, optimizer()), 0.9), donate_argnums=0)
    pair = init_mean_teacher(fresh_state())
    for _ in range(2):
        pair, _ = step(pair, None, GOAL, BATCH)
    assert step._cache_size() == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_slow_average_moves_whatever_the_students_precision(dtype):
    """In 16 bits a thousandth of the difference is rounded away: the teacher would be the first student for ever."""
    own = weights_of(fresh_state())
    first, seen = fresh_state()._replace(params=jax.tree.map(lambda leaf: leaf.astype(dtype), own.params)), []

    def doubled(state, teacher, objective, batch):
        seen.append(teacher)
        return state._replace(params=jax.tree.map(lambda leaf: 2 * leaf, first.params)), {}

    step, pair = make_mean_teacher_step(doubled, 0.999), init_mean_teacher(first)
    for _ in range(100):
        pair, _ = step(pair, None, GOAL, BATCH)
    expected = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32) * (2 - 0.999**100), first.params)
    chex.assert_trees_all_close(pair[1].params, expected, rtol=1e-4)
    # It teaches in the precision of its student.
    chex.assert_trees_all_equal_dtypes(seen[-1], weights_of(first))


def test_counters_are_the_students_and_an_average_of_16_bits_is_refused():
    old = Weights({"w": jnp.array([1.0])}, {"count": jnp.array(3)})
    new = Weights({"w": jnp.array([2.0], jnp.bfloat16)}, {"count": jnp.array(7)})
    mean = follow(old, new, 0.5)
    assert mean.params["w"].dtype == jnp.float32
    assert float(mean.params["w"][0]) == 1.5
    assert int(mean.model_state["count"]) == 7
    keyed = Weights(old.params, {"key": jax.random.key(0)})
    state = fresh_state()._replace(params=new.params, model_state={"key": jax.random.key(1)})
    step = make_mean_teacher_step(lambda state, *_: (state, {}), np.float64(0.9))
    with jax.enable_x64(True):
        (_, average), _ = step((state, keyed), None, GOAL, BATCH)
    assert average.params["w"].dtype == jnp.float32
    assert bool(average.model_state["key"] == jax.random.key(1))
    with pytest.raises(ValueError, match=r"teacher must be held in float32 at least, .*; got bfloat16"):
        follow(new, new, 0.5)


def test_networks_and_optimizers_may_be_named_and_connectors_must_be():
    assert callable(make_mutual_step(applies=[SMALL, SMALL], optimizers=[optax.sgd(0.1)] * 2))
    with pytest.raises(TypeError):
        make_mutual_step.__wrapped__([SMALL, SMALL], [optax.sgd(0.1)] * 2, None)


# As they are called without a checker of types, which would be the first to complain.


def mutual(*arguments):
    inspect.unwrap(both())(*arguments, BATCH)


def mean_teacher(*arguments):
    step = make_train_step(SMALL, SMALL, optimizer())
    inspect.unwrap(make_mean_teacher_step(step, 0.5))(*arguments, BATCH)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_mutual_step([SMALL], [optax.sgd(0.1)]), "applies must be two networks or more; got 1"),
        (lambda: make_mutual_step.__wrapped__(SMALL, [optax.sgd(0.1)]), "applies must be two networks or more; got 1"),
        (
            lambda: make_mutual_step([SMALL, LARGE], [optax.sgd(0.1)]),
            "optimizers must be one for each of the 2 networks; got 1",
        ),
        (
            lambda: make_mutual_step([SMALL, LARGE], [optax.sgd(0.1)] * 2, connectors=[None]),
            "connectors must be one for each of the 2 networks; got 1",
        ),
        (lambda: mutual(states()[:1], None, (GOAL, GOAL)), "state must be one for each of the 2 networks; got 1"),
        (
            lambda: mutual(states()[0], None, (GOAL, GOAL)),
            "state must be one for each of the 2 networks; got one TrainState",
        ),
        (
            lambda: mutual(states(), None, GOAL),
            "objective must be one for each of the 2 networks; got one Objective",
        ),
        (
            lambda: mutual(states(), dense.teacher_weights(), (GOAL, GOAL)),
            "teacher must be None, since the networks teach each other; got a Weights",
        ),
        (
            lambda: mean_teacher(init_mean_teacher(fresh_state()), dense.teacher_weights(), GOAL),
            "teacher must be None, since the student's own average teaches it; got a Weights",
        ),
        (lambda: make_mean_teacher_step(lambda *_: None, 1.5), "decay must lie between 0.0 and 1.0; got 1.5"),
        (lambda: follow(Weights({}, {}), Weights({"w": jnp.ones(1)}, {}), 0.5), "teacher must have the student's tree"),
        (
            lambda: follow(Weights({"w": jnp.ones(1)}, {}), Weights({"w": jnp.ones(3)}, {}), 0.5),
            r"teacher.params\['w'\] and the student's must have the same shape; got \(1,\)",
        ),
        (lambda: weights_of({"w": jnp.ones(1)}), r"state must be a TrainState, a pair \(state, average\) or a tuple"),
    ],
)
def test_what_is_wrong_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_batch_split_over_an_axis_gives_the_same_states():
    """Each learns from the whole batch's peers, also in a relation between examples."""
    goal = weighted_sum(labels=(1.0, cross_entropy), peer=(1.0, on_feature(dense.spread, "embedding")))

    def two(axis_name):
        return make_mutual_step([dense.student(axis_name)] * 2, [optimizer()] * 2, axis_name=axis_name)

    before = fresh_state(0), fresh_state(1)
    whole, expected = jax.jit(two(None))(before, None, (goal, goal), BATCH)
    over_axis = jax.vmap(two("data"), in_axes=(None, None, None, 0), out_axes=None, axis_name="data")
    split, metrics = jax.jit(over_axis)(before, None, (goal, goal), split_batch(BATCH, 4))
    chex.assert_trees_all_close(split[1].params, whole[1].params, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["0/peer"], expected["0/peer"], rtol=1e-5)
