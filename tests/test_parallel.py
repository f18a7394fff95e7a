"""One step, nine ways to run it, one result; and two wrong ways, which must be seen to be wrong."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from networks import BATCH, batch, fresh_state, objective, optimizer, student, teacher, teacher_weights

from kdjax import make_eval_step, make_train_step
from kdjax.parallel import data_mesh, jit_step, pmap_step, replicate, shard_batch, shard_map_step, split_batch

DEVICES = 4


def step_for(axis_name=None):
    return make_train_step(student(axis_name)[1], teacher()[1], optimizer(), axis_name=axis_name)


def plain(state, *rest):
    return step_for()(state, *rest)


def jit(state, *rest):
    return jit_step(step_for())(state, *rest)


def jit_with_named_sharding(state, weights, goal, data):
    mesh = data_mesh()
    placed = replicate((state, weights), mesh)
    return jit_step(step_for())(*placed, goal, shard_batch(data, mesh))


def pmap(state, weights, goal, data):
    return pmap_step(step_for("data"))(state, weights, goal, split_batch(data, DEVICES))


def shard_map(state, *rest):
    return shard_map_step(step_for("data"), data_mesh())(state, *rest)


def vmap_over_the_batch(state, weights, goal, data):
    mapped = jax.vmap(step_for("data"), in_axes=(None, None, None, 0), out_axes=None, axis_name="data")
    return jax.jit(mapped)(state, weights, goal, split_batch(data, DEVICES))


def vmap_over_students(state, weights, goal, data):
    other = fresh_state(seed=5)
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), state, other)
    mapped = jax.jit(jax.vmap(step_for(), in_axes=(0, None, 0, None)))
    goals = jax.tree.map(lambda *leaves: jnp.stack(leaves), goal, objective(temperature=2.0))
    states, metrics = mapped(states, weights, goals, data)
    return jax.tree.map(lambda leaf: leaf[0], (states, metrics))


def pmap_of_vmap(state, weights, goal, data):
    states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    many = jax.vmap(step_for("data"), in_axes=(0, None, None, None))
    mapped = jax.pmap(many, axis_name="data", in_axes=(None, None, None, 0), out_axes=None)
    states, metrics = mapped(states, weights, goal, split_batch(data, DEVICES))
    return jax.tree.map(lambda leaf: leaf[1], (states, metrics))


def scan(state, weights, goal, data):
    def body(carry, one_batch):
        return step_for()(carry, weights, goal, one_batch)

    batches = jax.tree.map(lambda array: array[None], data)
    state, history = jax.jit(lambda start: lax.scan(body, start, batches))(state)
    return state, jax.tree.map(lambda values: values[0], history)


WAYS = [
    jit,
    jit_with_named_sharding,
    pmap,
    shard_map,
    vmap_over_the_batch,
    vmap_over_students,
    pmap_of_vmap,
    scan,
]


def arguments():
    return fresh_state(), teacher_weights(), objective(), batch()


@pytest.fixture(scope="module")
def expected():
    return jax.device_get(without_key(plain(*arguments())))


def without_key(result):
    """The state's typed key as numbers, which can be compared."""
    state, metrics = result
    return state._replace(rng=jax.random.key_data(state.rng)), metrics


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_same_step_however_it_is_run(way, expected):
    state, metrics = jax.device_get(without_key(way(*arguments())))
    chex.assert_trees_all_equal_structs(state, expected[0])
    chex.assert_trees_all_close(state, expected[0], rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_close(metrics, expected[1], rtol=1e-6, atol=1e-6)


def test_the_step_moves_what_it_should(expected):
    before = fresh_state()
    moved = [
        np.max(np.abs(a - b)) for a, b in zip(*map(jax.tree.leaves, (before.params, expected[0].params)), strict=True)
    ]
    assert max(moved) > 1e-2  # else the comparison above would compare nothing
    assert expected[1]["relations"] > 1e-3


def test_a_relational_loss_of_each_part_alone_is_another_number(expected):
    """Control: what data parallelism gives where nothing is gathered."""
    parts = split_batch(batch(), DEVICES)
    each = jax.jit(jax.vmap(step_for(), in_axes=(None, None, None, 0)))
    means = each(fresh_state(), teacher_weights(), objective(), parts)[1]["relations"]
    assert abs(float(means.mean()) - float(expected[1]["relations"])) > 1e-3


def test_gradients_averaged_only_outside_are_n_times_too_large_under_shard_map():
    """Control: the common form, on a loss whose gradient is known."""
    mesh, spec = data_mesh(), jax.sharding.PartitionSpec
    data = jnp.arange(1.0, 9.0)

    def outside_only(weight, part):
        gradient = jax.grad(lambda w: jnp.mean(w * part))(weight)
        return lax.pmean(gradient, "data")

    def both(weight, part):
        gradient = jax.grad(lambda w: lax.pmean(jnp.mean(w * part), "data"))(weight)
        return lax.pmean(gradient, "data")

    def run(function):
        mapped = jax.shard_map(function, mesh=mesh, in_specs=(spec(), spec("data")), out_specs=spec())
        return float(jax.jit(mapped)(jnp.float32(2.0), data))

    right = float(data.mean())
    np.testing.assert_allclose(run(both), right, rtol=1e-6)
    np.testing.assert_allclose(run(outside_only), DEVICES * right, rtol=1e-6)


def test_no_collective_carries_a_teacher_weight_or_an_unread_feature():
    mesh = data_mesh()
    arguments_ = arguments()
    compiled = shard_map_step(step_for("data"), mesh).lower(*arguments_).compile().as_text()
    gathers = [line for line in compiled.splitlines() if "all-gather(" in line]
    assert gathers
    # stage1 of student and teacher, 4 × 4 maps of 4 and of 6 channels, and the 8 × 8 inputs: nobody reads them.
    for unread in (f"[{BATCH},4,4,4]", f"[{BATCH},4,4,6]", f"[{BATCH},8,8,1]"):
        assert not any(unread in line for line in gathers), unread
    teacher_shapes = {
        str(list(leaf.shape)).replace(" ", "") for leaf in jax.tree.leaves(arguments_[1]) if leaf.ndim > 1
    }
    student_shapes = {str(list(leaf.shape)).replace(" ", "") for leaf in jax.tree.leaves(arguments_[0].params)}
    for shape in teacher_shapes - student_shapes:
        collectives = [line for line in compiled.splitlines() if "all-reduce(" in line or "all-gather(" in line]
        assert not any(shape in line for line in collectives), shape


@pytest.mark.parametrize("axis_name", [None, "data"])
def test_evaluation_over_devices_counts_each_example_once(axis_name):
    weights, data = teacher_weights(), batch()
    data["mask"] = jnp.arange(BATCH) < BATCH - 3
    expected = make_eval_step(teacher()[1])(weights, jax.tree.map(lambda array: array[: BATCH - 3], data))
    step = make_eval_step(teacher()[1], axis_name=axis_name)
    if axis_name is None:
        sums = jax.jit(step)(weights, shard_batch(data, data_mesh()))
    else:
        sums = jax.pmap(step, axis_name="data", in_axes=(None, 0), out_axes=None)(weights, split_batch(data, DEVICES))
    chex.assert_trees_all_close(jax.device_get(sums), jax.device_get(expected), rtol=1e-5)
    assert sums["examples"] == BATCH - 3


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"batch must divide by the mesh's 4 devices; got 6 examples"):
        shard_batch(batch(6), data_mesh())
    with pytest.raises(ValueError, match=r"batch must divide by devices = 4; got 6 examples"):
        split_batch(batch(6), 4)
