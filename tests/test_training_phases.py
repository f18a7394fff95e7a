"""Plans of phases: what each phase moves, bit by bit, that a resumed run is the unbroken one, and the steps in between."""

import functools
import itertools
from dataclasses import FrozenInstanceError

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from phased import LABELS, ONE, PARTS, batch, network, start, weights

from kdjax import Outputs, cross_entropy, make_train_step, on_feature, on_logits, schedules, weighted_sum
from kdjax.checkpoints import open_run, restore_state, save_state
from kdjax.losses import hint, soft_target_kl
from kdjax.training import freeze, freeze_model_state, jit_step, make_epoch, train_only, weights_of
from kdjax.training.phases import (
    Phase,
    bounds,
    enter,
    make_planned_step,
    objectives_of,
    phase_at,
    plan,
    state_like,
    stretches,
)


def prepared(phases):
    """The plan, and its compiled step."""

    def make_step(phase):
        student = freeze_model_state(network, "stage[12]") if phase.name == "head" else network
        return make_train_step(student, network, phase.optimizer)

    return phases, jit_step(make_planned_step(phases, make_step))


def run(training, *, state=None, until=None):
    """Trains from a state, or from the start. Returns the last state, on the host each state, and each step's metrics."""
    phases, step = training
    state = state or start(phases)
    seen, every_metrics = [], []
    for number in range(int(state.state.step), bounds(phases)[-1] if until is None else until):
        if state.phase != phase_at(phases, number):
            state = enter(phases, phase_at(phases, number), state)
        state, metrics = step(state, weights(1), objectives_of(phases), batch(number))
        every_metrics.append(jax.device_get(metrics))
        seen.append(jax.device_get(state.state._replace(rng=())))
    assert step._cache_size() <= len(phases), "each phase compiles once"
    return state, seen, every_metrics


def bits(tree):
    return [(leaf.shape, str(leaf.dtype), np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(tree)]


def moved(before, after):
    return {name for name in PARTS if bits(before.params[name]) != bits(after.params[name])}


@functools.cache
def two_stages():
    features = weighted_sum(
        one=(1.0, on_feature(hint, "stage1")), two=(schedules.linear(0.0, 1.0, steps=3), on_feature(hint, "stage2"))
    )
    soft = weighted_sum(
        labels=(0.5, cross_entropy), soft=(schedules.linear(1.0, 0.5, steps=4), on_logits(soft_target_kl))
    )
    phases = plan(
        Phase("features", 4, features, freeze(optax.adamw(0.01, weight_decay=0.1), "logits")),
        Phase("head", 5, soft, train_only(optax.adamw(0.02, weight_decay=0.1), "logits")),
    )
    return prepared(phases)


def test_two_stages_move_the_features_and_then_the_head_and_nothing_else():
    _, seen, metrics = run(two_stages())
    assert two_stages()[1]._cache_size() == 2
    before, first, second = weights(0), seen[3], seen[-1]
    assert moved(before, first) == {"stage1", "stage2"}
    assert moved(first, second) == {"logits"}
    assert bits(first.model_state) != bits(before.model_state)
    assert bits(second.model_state) == bits(first.model_state), "the frozen stages' statistics are held"
    # Schedules count from the start of their phase.
    np.testing.assert_allclose([one["two_weight"] for one in metrics[:4]], [0, 1 / 3, 2 / 3, 1], rtol=1e-6)
    np.testing.assert_allclose([one["soft_weight"] for one in metrics[4:]], [1, 0.875, 0.75, 0.625, 0.5])


def test_progressive_distillation_learns_shallow_layers_first_then_more():
    adam = optax.adam(0.01)
    of = {name: (1.0, on_feature(hint, name)) for name in ("stage1", "stage2")}
    phases = plan(
        Phase("shallow", 3, weighted_sum(stage1=of["stage1"]), train_only(adam, "stage1")),
        Phase("deeper", 3, weighted_sum(**of), train_only(adam, "stage1|stage2")),
        Phase("all", 3, weighted_sum(**of, labels=(1.0, cross_entropy)), adam),
    )
    _, seen, metrics = run(prepared(phases))
    states = [weights(0), seen[2], seen[5], seen[8]]
    assert [moved(*pair) for pair in itertools.pairwise(states)] == [
        {"stage1"},
        {"stage1", "stage2"},
        {"stage1", "stage2", "logits"},
    ]
    assert [set(metrics[at]) & {*of, "labels"} for at in (0, 3, 6)] == [{"stage1"}, {*of}, {*of, "labels"}]


def test_a_term_that_warms_up_in_its_phase_starts_from_nothing():
    """The first phase is that of a run without it, the first step at weight 0 as good as, and then they part."""
    warm = weighted_sum(
        labels=(1.0, cross_entropy), soft=(schedules.linear(0.0, 2.0, steps=2), on_logits(soft_target_kl))
    )
    sgd = optax.sgd(0.1, momentum=0.9)
    labels = Phase("labels", 2, LABELS, sgd)
    _, with_soft, metrics = run(prepared(plan(labels, Phase("both", 3, warm, sgd))))
    _, without, _ = run(prepared(plan(labels, Phase("more", 3, LABELS, sgd))))
    assert [float(one["soft_weight"]) for one in metrics[2:]] == [0.0, 1.0, 2.0]
    assert bits(with_soft[:2]) == bits(without[:2])
    np.testing.assert_allclose(
        with_soft[2].params["logits"]["kernel"], without[2].params["logits"]["kernel"], rtol=1e-5
    )
    assert moved(with_soft[3], without[3]) == set(PARTS)


@pytest.mark.parametrize("stop", [2, 4, 6])  # in the first phase, between the two, and in the second
def test_a_run_that_is_resumed_ends_in_the_same_bits(tmp_path, stop):
    phases, _ = two_stages()
    whole, _, _ = run(two_stages())
    broken, _, _ = run(two_stages(), until=stop)
    with open_run(tmp_path) as folder:
        save_state(folder, stop, broken)
    with open_run(tmp_path) as folder:
        restored, _ = restore_state(folder, lambda step: state_like(phases, step, start(phases, seed=3)))
    assert restored.phase == broken.phase == (1 if stop == 6 else 0)
    assert bits(restored.state.params) == bits(broken.state.params) != bits(whole.state.params)
    resumed, _, _ = run(two_stages(), state=restored)
    assert bits(resumed.state._replace(rng=())) == bits(whole.state._replace(rng=()))
    assert int(resumed.state.step) == 9


def test_damage_just_after_a_phase_began_falls_back_to_the_phase_before(tmp_path):
    phases, _ = two_stages()
    states = {stop: run(two_stages(), until=stop)[0] for stop in (4, 5)}
    assert [state.phase for state in states.values()] == [0, 1]
    with open_run(tmp_path) as folder:
        for stop, state in states.items():
            save_state(folder, stop, state)
    path = tmp_path / "5" / "record" / "metadata"
    path.write_bytes(bytes(byte ^ 255 for byte in path.read_bytes()))
    with open_run(tmp_path) as folder, pytest.warns(RuntimeWarning, match="Going back from step 5 to step 4"):
        restored, _ = restore_state(folder, lambda step: state_like(phases, step, start(phases, seed=3)))
    assert restored.phase == 0
    resumed, _, _ = run(two_stages(), state=restored)
    whole, _, _ = run(two_stages())
    assert bits(resumed.state._replace(rng=())) == bits(whole.state._replace(rng=()))


def test_a_loop_by_epochs_that_do_not_end_with_the_phases_ends_in_the_same_bits():
    """Epochs of three and six updates, through a plan of four and five."""
    phases, step = two_stages()
    whole, _, metrics = run(two_stages())
    rows = [batch(number) for number in range(9)]
    arrays = {name: np.concatenate([one[name] for one in rows]) for name in rows[0]}
    order = np.arange(9 * 8).reshape(9, 8)
    epoch, state, seen = make_epoch(step), start(phases), []
    for first, last in ((0, 3), (3, 9)):
        for index, own in stretches(phases, first, order[first:last]):
            if state.phase != index:
                state = enter(phases, index, state)
            state, means = epoch(state, weights(1), objectives_of(phases), arrays, own)
            seen.append((index, len(own), means["loss"]))
    chex.assert_trees_all_close(state.state.params, whole.state.params, rtol=1e-6, atol=1e-7)
    assert [one[:2] for one in seen] == [(0, 3), (0, 1), (1, 5)]
    losses = np.array([float(one["loss"]) for one in metrics])
    np.testing.assert_allclose([one[2] for one in seen], [losses[:3].mean(), losses[3], losses[4:].mean()], rtol=1e-5)


def test_entering_a_phase_starts_its_optimizer_and_keeps_all_else():
    phases, _ = two_stages()
    before, _, _ = run(two_stages(), until=3)
    after = enter(phases, 1, before)
    assert (before.phase, after.phase) == (0, 1)
    old, new = before.state, after.state
    assert bits((new.step, new.params, new.model_state)) == bits((old.step, old.params, old.model_state))
    assert bits(new.opt_state) == bits(phases[1].optimizer.init(old.params))
    assert jax.tree.structure(new.opt_state) != jax.tree.structure(old.opt_state)
    assert bool(jnp.all(new.rng == old.rng))
    # Also from a state that is in no phase yet.
    chex.assert_trees_all_equal(enter(phases, 1, old), after)


def test_the_phase_is_part_of_the_trees_structure_and_no_number_of_the_device():
    """A step chooses its program by it, without waiting for the device."""
    phases, _ = two_stages()
    first, second = start(phases), enter(phases, 1, start(phases))
    assert jax.tree.structure(first) != jax.tree.structure(second)
    assert jax.tree.map(lambda leaf: leaf, second).phase == 1
    with pytest.raises(FrozenInstanceError):
        first.phase = 1


def test_a_schedule_counts_from_the_start_of_its_phase_and_constants_stay():
    phases, _ = two_stages()
    of_features, of_head = objectives_of(phases)
    assert [float(schedules.at(of_features.weights["two"], step)) for step in (0, 3, 9)] == [0, 1, 1]
    assert [float(schedules.at(of_head.weights["soft"], step)) for step in (4, 6, 8, 9)] == [1, 0.75, 0.5, 0.5]
    assert of_head.weights["labels"] == 0.5
    own = schedules.linear(4.0, 2.0, steps=2)
    warm = weighted_sum(soft=(1.0, on_logits(soft_target_kl, temperature=own)))
    moved = objectives_of(plan(ONE, ONE._replace(name="b", objective=warm)))[1]
    logits = jnp.array([[1.0, 0.0, -1.0]])
    for step, temperature in ((2, 4.0), (3, 3.0), (4, 2.0)):
        said = moved(Outputs(logits, {}), Outputs(-logits, {}), {}, step).terms["soft"]
        np.testing.assert_allclose(said, soft_target_kl(logits, -logits, temperature=temperature), rtol=1e-6)


def test_epochs_are_cut_where_a_phase_ends():
    phases = plan(*(Phase(name, steps, LABELS, optax.sgd(0.1)) for name, steps in (("a", 1), ("b", 3), ("c", 2))))
    rows = np.arange(12).reshape(6, 2)
    assert [(index, own.tolist()) for index, own in stretches(phases, 0, rows)] == [
        (0, [[0, 1]]),
        (1, [[2, 3], [4, 5], [6, 7]]),
        (2, [[8, 9], [10, 11]]),
    ]
    assert [(index, len(own)) for index, own in stretches(phases, 3, rows[:3])] == [(1, 1), (2, 2)]
    assert [*stretches(phases, 4, rows[:0])] == []
    with pytest.raises(ValueError, match="step must lie between 0 and 6, the plan's updates; got 7"):
        [*stretches(phases, 4, rows[:3])]


def test_the_phase_is_a_function_of_the_step():
    phases = plan(*(Phase(name, steps, LABELS, optax.sgd(0.1)) for name, steps in (("a", 1), ("b", 3), ("c", 2))))
    assert bounds(phases) == (0, 1, 4, 6)
    assert [phase_at(phases, step) for step in range(7)] == [0, 1, 1, 1, 2, 2, 2]
    assert phase_at(phases, jnp.int32(4)) == 2


def test_a_phase_begins_where_a_schedule_free_one_is_evaluated():
    """It trains at other params than it is evaluated at; of those neither the next optimizer nor its frozen parts know."""
    first = Phase("first", 4, LABELS, optax.contrib.schedule_free_sgd(1.0, b1=0.6))
    both = plan(first, ONE)
    step = jax.jit(make_planned_step(both, lambda phase: make_train_step(network, None, phase.optimizer)))
    state = start(both)
    for number in range(4):
        state, _ = step(state, None, objectives_of(both), batch(number))
    before, after = weights_of(state), weights_of(enter(both, 1, state))
    chex.assert_trees_all_equal(after, before)
    apart = jax.tree.map(lambda one, other: float(jnp.abs(one - other).max()), after.params, state.state.params)
    assert max(jax.tree.leaves(apart)) > 1e-3


def test_a_phase_after_a_partly_schedule_free_one_and_a_first_one_begin_at_their_params():
    part = Phase("first", 2, LABELS, freeze(optax.contrib.schedule_free_sgd(1.0, b1=0.6), "logits"))
    both = plan(part, ONE)
    step = jax.jit(make_planned_step(both, lambda phase: make_train_step(network, None, phase.optimizer)))
    state = start(both)
    chex.assert_trees_all_equal(state.state.params, weights(0).params)  # not in a bit otherwise
    for number in range(2):
        state, _ = step(state, None, objectives_of(both), batch(number))
    after = enter(both, 1, state).state.params
    chex.assert_trees_all_equal(after["logits"], weights(0).params["logits"])
    assert float(jnp.abs(after["stage1"]["kernel"] - state.state.params["stage1"]["kernel"]).max()) > 1e-3
