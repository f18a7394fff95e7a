"""What a mask, a missing label or a weight of 0 leaves out changes no number: not the loss, no metric, no gradient."""

import chex
import jax
import jax.numpy as jnp
import laws_masked
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from masked import (
    EXAMPLES,
    GOAL,
    OPTIMIZER,
    STUDENT,
    TEACHER,
    TIME,
    WITH_FEATURES,
    batch,
    filled,
    fresh,
    halves,
    network,
    numbers,
    same,
    step,
)

from kdjax import cross_entropy, make_train_step, on_feature, on_logits, on_outputs, scaled, weighted_sum
from kdjax.losses import dist, rkd_distance, soft_target_kl
from kdjax.objectives import _counted
from kdjax.training import (
    data_mesh,
    jit_step,
    make_mutual_step,
    phases,
    pmap_step,
    shard_batch,
    shard_map_step,
    split_batch,
    sweeps,
)

# Padding never changes a number


def padded(arrays, where, rubbish):
    """As many examples more as `where` has zeros, put where these stand."""
    where = np.asarray(where, bool)
    longer = {name: np.zeros((len(where), *array.shape[1:]), array.dtype) + array[:1] for name, array in arrays.items()}
    for name, array in longer.items():
        array[where] = arrays[name]
    return filled(longer, where, rubbish)


@given(
    where=st.permutations([True] * EXAMPLES + [False] * 4),
    rubbish=st.sampled_from([0.0, 1e30, np.inf, np.nan]),
    kind=st.sampled_from([np.bool_, np.float32, np.int8]),
)
def test_padding_never_changes_a_number(where, rubbish, kind):
    plain = batch()
    longer = padded(plain, where, rubbish)
    longer["mask"] = longer["mask"].astype(kind)
    same(step()(fresh(), TEACHER, GOAL, longer), step()(fresh(), TEACHER, GOAL, plain))


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_what_tokens_are_left_out_changes_no_number(share):
    """Against the tokens that count, as a batch of their own: no token sees another here."""
    mask = np.random.default_rng(6).random((EXAMPLES, TIME)) < share
    mask[3, 1] = True
    arrays = batch(TIME)
    alone = {name: array[mask] for name, array in arrays.items()}
    result = step()(fresh(), TEACHER, GOAL, arrays | {"mask": mask, "labels": np.where(mask, arrays["labels"], -100)})
    same(result, step()(fresh(), TEACHER, GOAL, alone))


# The others are asked by the verification report.
@pytest.mark.parametrize("name", ["soft_target_kl", "rkd_distance", "linear_soft_target_kl", "crd"])
def test_a_mask_leaves_out_the_same_whichever_the_loss(name):
    found = laws_masked.left_out_by_the_step(name)
    assert all(measured.holds for measured in found.values())
    assert bool(found) == (name != "crd")


def test_a_batch_of_which_nothing_counts_moves_nothing():
    nothing = filled(batch(), np.zeros(EXAMPLES, bool), np.nan)
    state, metrics = step()(fresh(), TEACHER, GOAL, nothing)
    chex.assert_trees_all_equal(state.params, STUDENT.params)
    assert {name: float(value) for name, value in metrics.items() if "weight" not in name} == dict.fromkeys(
        ["loss", "labels", "labels count", "soft", "soft count", "accuracy", "accuracy count"], 0.0
    )


# In every way to train, on one device and on four


@pytest.fixture(scope="module")
def wanted():
    return numbers(step()(fresh(), TEACHER, GOAL, halves()[1]))


@pytest.mark.parametrize("way", ["jit", "pmap", "shard_map"])
def test_counts_are_summed_over_devices(way, wanted):
    masked, _ = halves()
    mesh = data_mesh()
    of_axis = make_train_step(network, network, OPTIMIZER, axis_name="data")
    if way == "jit":
        result = step()(fresh(), TEACHER, GOAL, shard_batch(masked, mesh))
    elif way == "pmap":
        result = pmap_step(of_axis)(fresh(), TEACHER, GOAL, split_batch(masked, mesh.size))
    else:
        result = shard_map_step(of_axis, mesh)(fresh(), TEACHER, GOAL, masked)
    same(result, wanted)
    assert {float(result[1][f"{name} count"]) for name in ("labels", "soft", "accuracy")} == {masked["mask"].sum()}


def test_a_mutual_step_leaves_out_the_same(wanted):
    both = jit_step(make_mutual_step([network] * 2, [OPTIMIZER] * 2))
    masked, alone = halves()
    states = lambda: (fresh(0), fresh(1))  # noqa: E731
    same(both(states(), None, (GOAL, GOAL), masked), both(states(), None, (GOAL, GOAL), alone))


def test_a_planned_step_leaves_out_the_same(wanted):
    plan = phases.plan(phases.Phase("one", 1, GOAL, OPTIMIZER), phases.Phase("two", 1, GOAL, OPTIMIZER))
    planned = jit_step(phases.make_planned_step(plan, lambda phase: make_train_step(network, network, phase.optimizer)))
    state, metrics = planned(phases.enter(plan, 0, fresh()), TEACHER, phases.objectives_of(plan), halves()[0])
    same((state.state, metrics), wanted)


def test_a_sweep_leaves_out_the_same(wanted):
    swept = jit_step(sweeps.make_sweep_step(make_train_step(network, None, OPTIMIZER), network))
    states, metrics = swept(sweeps.stack([fresh()] * 2), TEACHER, sweeps.stack([GOAL] * 2), halves()[0])
    for own in sweeps.unstack((states, metrics)):
        same(own, wanted)


def test_cached_outputs_are_left_out_too(wanted):
    masked, _ = halves()
    taught, _ = network(*TEACHER, masked["inputs"], train=False)
    result = step()(fresh(), TEACHER, GOAL, masked | {"teacher": taught})
    same(result, wanted)


# Labels that are missing


def test_an_ignored_label_counts_for_what_reads_labels_and_for_nothing_else():
    arrays = batch(TIME)
    known = np.random.default_rng(3).random((EXAMPLES, TIME)) < 0.6
    for ignored in (-100, 255):
        labels = np.where(known, arrays["labels"], ignored).astype(np.int16)
        _, metrics = step(ignore_label=ignored)(fresh(), TEACHER, GOAL, arrays | {"labels": labels})
        _, of_known = step()(fresh(), TEACHER, GOAL, arrays | {"mask": known})
        _, of_all = step()(fresh(), TEACHER, GOAL, arrays)
        for name, other in (("labels", of_known), ("accuracy", of_known), ("soft", of_all)):
            np.testing.assert_allclose(metrics[name], other[name], rtol=1e-5)
    _, of_batch = step()(fresh(), TEACHER, GOAL, arrays | {"labelled": known})
    np.testing.assert_allclose(of_batch["loss"], metrics["loss"], rtol=1e-6)


# Weights of examples and positions


@pytest.mark.parametrize("positions", [(), (TIME,)])
def test_a_weight_of_zero_counts_nothing_be_the_term_nan(positions):
    arrays = batch(*positions)
    weight = np.where(np.random.default_rng(4).random(arrays["labels"].shape) < 0.5, 2.0, 0.0).astype(np.float32)
    goal = weighted_sum(labels=(1.0, scaled(cross_entropy, by="batch.known")))
    plain = weighted_sum(labels=(2.0, cross_entropy))
    broken = np.where(weight > 0, arrays["labels"], -3)  # cross-entropy of no class is NaN
    state, metrics = step()(fresh(), TEACHER, goal, arrays | {"labels": broken, "known": weight})
    wanted, others = step()(fresh(), TEACHER, plain, arrays | {"mask": weight > 0})
    same((state.params, metrics["loss"]), (wanted.params, others["loss"]))


def test_a_weight_of_an_example_is_that_of_its_positions():
    arrays, each = batch(TIME), np.linspace(0.5, 2.0, EXAMPLES).astype(np.float32)
    goal = weighted_sum(labels=(1.0, scaled(cross_entropy, by="batch.known")))
    _, of_examples = step()(fresh(), TEACHER, goal, arrays | {"known": each})
    everywhere = np.broadcast_to(each[:, None], (EXAMPLES, TIME))
    _, of_positions = step()(fresh(), TEACHER, goal, arrays | {"known": everywhere})
    np.testing.assert_allclose(of_examples["loss"], of_positions["loss"], rtol=1e-6)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_term_of_weight_zero_moves_nothing_be_it_nan(bad):
    """Its own slope is NaN or infinite, too."""

    def broken(student, teacher, batch):
        return bad * jnp.sum(student.logits, axis=-1) / jnp.zeros(())

    both = weighted_sum(labels=(1.0, cross_entropy), off=(0.0, broken))
    state, metrics = step()(fresh(), TEACHER, both, batch())
    wanted, _ = step()(fresh(), TEACHER, weighted_sum(labels=(1.0, cross_entropy)), batch())
    assert not np.isfinite(metrics["off"])
    same((state.params, metrics["loss"]), (wanted.params, metrics["labels"]))


def test_a_weight_of_zero_still_has_the_slope_of_its_term():
    """In value, and in what the step does: a search by gradients may begin at 0."""

    @jax.jit
    def loss(weight):
        goal = weighted_sum(labels=(1.0, cross_entropy), soft=(weight, on_logits(soft_target_kl)))
        return make_train_step(network, network, OPTIMIZER)(fresh(), TEACHER, goal, batch())

    slope = jax.jit(jax.jacrev(lambda weight: loss(weight)[1]["loss"]))(0.0)
    np.testing.assert_allclose(slope, loss(0.0)[1]["soft"], rtol=1e-5)
    moved = jax.jit(jax.jacrev(lambda weight: loss(weight)[0].params))(0.0)
    by_hand = jax.tree.map(lambda end, start: end - start, loss(1.0)[0].params, loss(0.0)[0].params)
    chex.assert_trees_all_close(moved, by_hand, rtol=1e-3, atol=1e-5)


# Features, relations and functions of one's own


def test_a_mask_of_examples_leaves_out_their_features():
    masked, alone = halves(0.0)
    same(step()(fresh(), TEACHER, WITH_FEATURES, masked), step()(fresh(), TEACHER, WITH_FEATURES, alone))


def test_a_loss_of_the_whole_batch_is_told_what_counts():
    relation = weighted_sum(relation=(1.0, on_feature(rkd_distance, "hidden")))
    masked, alone = halves(0.0)
    same(step()(fresh(), TEACHER, relation, masked), step()(fresh(), TEACHER, relation, alone))


@pytest.mark.parametrize("positions", [False, True])
def test_dist_leaves_out_examples_with_all_their_positions_and_single_ones(positions):
    goal = weighted_sum(pattern=(1.0, on_logits(dist)))
    arrays = batch(TIME)
    mask = np.arange(EXAMPLES) % 3 > 0
    mask = np.broadcast_to(mask[:, None], (EXAMPLES, TIME)).copy() if positions else mask
    if positions:
        mask[1, 0] = False
    alone = {name: array[mask].reshape(-1, *array.shape[2:]) for name, array in arrays.items()}
    same(step()(fresh(), TEACHER, goal, arrays | {"mask": mask}), step()(fresh(), TEACHER, goal, alone))


def test_a_function_of_ones_own_may_give_each_position_a_number():
    apart = lambda student, teacher: jnp.mean((student - teacher) ** 2, axis=-1)  # noqa: E731
    goal = weighted_sum(apart=(1.0, on_outputs(apart, "student.hidden", "teacher.hidden")))
    arrays, mask = batch(TIME), np.arange(EXAMPLES * TIME).reshape(EXAMPLES, TIME) % 3 > 0
    alone = {name: array[mask] for name, array in arrays.items()}
    same(step()(fresh(), TEACHER, goal, arrays | {"mask": mask}), step()(fresh(), TEACHER, goal, alone))


# Seen to fail


def test_a_weighted_term_counts_what_has_a_label():
    labels = np.where(np.arange(EXAMPLES) < 3, batch()["labels"], -100)
    given = batch() | {"labels": labels, "w": np.ones(EXAMPLES, np.float32)}
    goal = weighted_sum(labels=(1.0, scaled(cross_entropy, by="batch.w")))
    _, found = step(ignore_label=-100)(fresh(), TEACHER, goal, given)
    _, wanted = step()(fresh(), TEACHER, weighted_sum(labels=(1.0, cross_entropy)), batch() | {"mask": labels >= 0})
    np.testing.assert_allclose(found["loss"], wanted["loss"], rtol=1e-5)
    hidden = scaled(lambda student, teacher, batch: jnp.zeros(batch["labels"].shape[0]), by="batch.w")
    with pytest.raises(ValueError, match=r"The term 'own' must show whether it reads labels"):
        jax.eval_shape(step(ignore_label=-100), fresh(), TEACHER, weighted_sum(own=(1.0, hidden)), given)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_a_mean_in_half_precision_is_taken_in_float32(dtype):
    values = jnp.ones((100, 1001), dtype)
    for counted in (None, jnp.ones((100, 1001), bool)):
        mean = _counted.mean_of(values, counted)
        assert mean.dtype == jnp.float32
        assert mean == 1


def test_a_feature_that_only_looks_like_positions_is_kept_by_its_examples():
    counted = jnp.asarray(np.arange(EXAMPLES * TIME).reshape(EXAMPLES, TIME) % 2 == 0)
    feature = jnp.ones((EXAMPLES, TIME))
    np.testing.assert_array_equal(_counted.keep(feature, counted), feature)
    of_positions = _counted.keep(jnp.ones((EXAMPLES, TIME, 2)), counted)
    np.testing.assert_array_equal(of_positions[..., 0], counted)


def test_three_networks_teach_each_other_about_tokens():
    three = jit_step(make_mutual_step([network] * 3, [OPTIMIZER] * 3))
    states, metrics = three(tuple(map(fresh, range(3))), None, (GOAL,) * 3, batch(TIME))
    assert np.isfinite(metrics["loss"])
    assert len(states) == 3
