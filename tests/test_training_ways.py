"""Every kind of step through every way to run it: one shape, one result."""

import chex
import dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import BATCH, batch, fresh_state, objective, optimizer, student, teacher, teacher_weights

from kdjax import make_train_step, on_feature
from kdjax.checkpoints import open_run, restore_state, save_state
from kdjax.losses import hint
from kdjax.training import (
    augmented,
    data_mesh,
    freeze,
    init_mean_teacher,
    jit_step,
    make_epoch,
    make_mean_teacher_step,
    make_mutual_step,
    phases,
    pmap_step,
    replicate,
    shard_batch,
    shard_largest_axis,
    shard_map_step,
    split_batch,
    sweeps,
)

DEVICES = 4
HINT = {"hint": (1.0, on_feature(hint, "hint"))}


# Kinds: each gives (step, state, teacher, objective).


def plain(axis_name):
    step = make_train_step(student(axis_name), teacher, optimizer(), axis_name=axis_name)
    return step, fresh_state(), teacher_weights(), objective()


def with_a_connector(axis_name):
    mapping, state = dense.beside(0)
    step = make_train_step(student(axis_name), teacher, optimizer(), connectors=mapping, axis_name=axis_name)
    return step, state, teacher_weights(), objective(**HINT)


def mutual(axis_name):
    applies = [student(axis_name)] * 2
    step = make_mutual_step(applies, [optimizer()] * 2, axis_name=axis_name)
    return step, (fresh_state(0), fresh_state(1)), None, (objective(), objective(temperature=2.0))


def mutual_with_a_connector(axis_name):
    mapping, state = dense.beside(0, its=(student(), dense.weights(1, 4)))
    applies = [student(axis_name)] * 2
    step = make_mutual_step(applies, [optimizer()] * 2, connectors=[mapping, None], axis_name=axis_name)
    return step, (state, fresh_state(1)), None, (objective(**HINT), objective())


def mean_teacher(axis_name):
    own = student(axis_name)
    step = make_mean_teacher_step(make_train_step(own, own, optimizer(), axis_name=axis_name), 0.9)
    return step, init_mean_teacher(fresh_state()), None, objective()


def planned(axis_name):
    own, its = student(axis_name), teacher
    plan = phases.plan(
        phases.Phase("head", 2, objective(), freeze(optimizer(), "body")),
        phases.Phase("all", 3, objective(), optimizer()),
    )
    step = phases.make_planned_step(plan, lambda phase: make_train_step(own, its, phase.optimizer, axis_name=axis_name))
    return step, phases.enter(plan, 1, fresh_state()), teacher_weights(), phases.objectives_of(plan)


def sweep(axis_name):
    step = make_train_step(student(axis_name), None, optimizer(), axis_name=axis_name)
    states = sweeps.stack([fresh_state(0), fresh_state(5)])
    objectives = sweeps.stack([objective(), objective(temperature=2.0)])
    return sweeps.make_sweep_step(step, teacher), states, teacher_weights(), objectives


def on_views(axis_name):
    step, *rest = plain(axis_name)

    def noisy(key, batch):
        # By each example's own place in the data, not in the part of the batch.
        shift = dense.hashed(key, (BATCH, dense.DIM), None)[batch["indices"]]
        return {**batch, "inputs": batch["inputs"] + shift}

    return augmented(step, noisy), *rest


KINDS = [plain, with_a_connector, mutual, mutual_with_a_connector, mean_teacher, planned, sweep, on_views]


BATCHES = [batch(seed=seed) for seed in range(2)]
DATA = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *BATCHES) | {"indices": jnp.tile(jnp.arange(BATCH), 2)}
ORDER = np.arange(2 * BATCH).reshape(2, BATCH)


# Ways: each runs a kind for two batches, and gives the state and the metrics' means.


def stepped(step, state, its, goal, batches):
    each = []
    for one in batches:
        state, metrics = step(state, its, goal, one)
        each.append(metrics)
    return state, jax.tree.map(lambda first, second: (first + second) / 2, *each)


def jit(kind):
    step, *arguments = kind(None)
    compiled = jit_step(step)
    result = stepped(compiled, *arguments, BATCHES)
    assert compiled._cache_size() == 1
    return result


def jit_on_a_split_state_and_batch(kind):
    step, state, its, goal = kind(None)
    mesh = data_mesh()
    state = shard_largest_axis(state, mesh, at_least=8)
    return stepped(jit_step(step), state, replicate(its, mesh), goal, [shard_batch(one, mesh) for one in BATCHES])


def pmap(kind):
    step, *arguments = kind("data")
    return stepped(pmap_step(step), *arguments, [split_batch(one, DEVICES) for one in BATCHES])


def shard_map(kind):
    step, *arguments = kind("data")
    return stepped(shard_map_step(step, data_mesh()), *arguments, BATCHES)


def an_epoch_in_a_scan(kind):
    step, *arguments = kind(None)
    return make_epoch(step, steps_per_call=2)(*arguments, DATA, ORDER)


def an_epoch_on_four_devices(kind):
    step, state, its, goal = kind(None)
    mesh = data_mesh()
    placed = replicate((state, its), mesh)
    return make_epoch(step, mesh=mesh)(*placed, goal, replicate(DATA, mesh), ORDER)


WAYS = [
    jit_on_a_split_state_and_batch,
    pmap,
    shard_map,
    an_epoch_in_a_scan,
    an_epoch_on_four_devices,
]


def comparable(result):
    """Typed keys as the numbers that they are."""

    def number(leaf):
        is_key = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return jax.device_get(jax.tree.map(number, result))


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def kind_and_result(request):
    return request.param, comparable(jit(request.param))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_kind_of_step_gives_the_same_however_it_is_run(kind_and_result, way):
    kind, expected = kind_and_result
    state, metrics = comparable(way(kind))
    chex.assert_trees_all_equal_structs(state, expected[0])
    chex.assert_trees_all_close(state, expected[0], rtol=2e-6, atol=2e-6)
    assert metrics.keys() == expected[1].keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(value, expected[1][name], rtol=2e-6, atol=2e-6, err_msg=name)


def test_every_kind_of_step_moves_its_students(kind_and_result):
    """Else the comparisons above would compare nothing."""
    kind, (state, metrics) = kind_and_result
    before = comparable(kind(None)[1])
    moved = [np.max(np.abs(a - b)) for a, b in zip(*map(jax.tree.leaves, (before, state)), strict=True) if a.size]
    assert max(moved) > 1e-2
    assert metrics["loss"].shape == ((2,) if kind is sweep else ())
    assert np.all(metrics["loss"] > 0)


def test_every_kind_of_state_is_saved_and_restored_to_the_bit(kind_and_result, tmp_path):
    kind, _ = kind_and_result
    _, state, _, _ = kind(None)
    with open_run(tmp_path / "state") as run:
        save_state(run, 1, state, {})
    with open_run(tmp_path / "state") as run:
        restored, _ = restore_state(run, state)
    chex.assert_trees_all_equal(comparable(restored), comparable(state))


def test_a_relational_loss_of_each_part_alone_is_another_number():
    """Control: what data parallelism gives where nothing is gathered."""
    step, state, its, goal = plain(None)
    each = jax.jit(jax.vmap(step, in_axes=(None, None, None, 0)))
    parts = each(state, its, goal, split_batch(batch(), DEVICES))[1]["relations"]
    whole = jax.jit(step)(state, its, goal, batch())[1]["relations"]
    assert abs(float(parts.mean()) - float(whole)) > 1e-3
