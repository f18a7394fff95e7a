"""One step, nine ways to run it, one result; and two wrong ways, which must be seen to be wrong."""

import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from networks import BATCH, batch, fresh_state, objective, optimizer, student, teacher, teacher_weights

from kdjax import make_eval_step, make_train_step
from kdjax.training import (
    data_mesh,
    jit_step,
    pmap_step,
    process_rows,
    replicate,
    shard_batch,
    shard_map_step,
    split_batch,
)

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


# What a compiled step sends, read from its text: results, then the name of a collective.
COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
TYPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
SIZE = 24  # a batch like no axis of the networks
LOGITS, OWN, OTHERS = (SIZE, 10), (SIZE, 8), (SIZE, 12)  # of the networks: logits, the two embeddings
CHANNELS = 4 + 4  # that the student's BatchNorm normalises


def sent(compiled):
    """By collective, the sorted shapes of all arrays that it brings to a device in one step."""
    found = {}
    for results, name in COLLECTIVE.findall(compiled.as_text()):
        for kind, sizes in TYPE.findall(results):
            assert kind in ("f32", "s32"), results  # four bytes a number: shapes tell bytes
            found.setdefault(name, []).append(tuple(int(size) for size in sizes.split(",") if size))
    return {name: sorted(shapes) for name, shapes in found.items()}


def shapes_of(tree):
    return [leaf.shape for leaf in jax.tree.leaves(tree)]


def amount(shapes):
    return sum(math.prod(shape) for shape in shapes)


def test_shard_map_sends_gradients_and_what_terms_read_and_nothing_else():
    step = shard_map_step(step_for("data"), data_mesh())
    found = sent(step.lower(fresh_state(), teacher_weights(), objective(), batch(SIZE)).compile())
    assert found.keys() == {"all-gather", "reduce-scatter", "all-reduce"}
    # Labels, both networks' logits, both embeddings; back come the student's gradients, each device's own part.
    assert found["all-gather"] == sorted([(SIZE,), LOGITS, LOGITS, OWN, OTHERS])
    assert found["reduce-scatter"] == [(SIZE // DEVICES, 8), (SIZE // DEVICES, 10)]
    # The gradients go once: summed as shard_map differentiates, and not averaged again by the step, as pmap needs it.
    student_ = shapes_of(fresh_state().params)
    kernels = [shape for shape in student_ if len(shape) > 1]
    assert [shape for shape in found["all-reduce"] if shape in kernels] == sorted(kernels)
    # A channel of BatchNorm: two sums forward, one backward beside its gradients. And the metrics.
    rest = amount(found["all-reduce"]) - amount(student_)
    assert 0 < rest <= 3 * CHANNELS + 8


def test_jit_sends_gradients_once_and_what_terms_read_and_nothing_else():
    mesh = data_mesh()
    placed = replicate((fresh_state(), teacher_weights()), mesh)
    found = sent(jit_step(step_for()).lower(*placed, objective(), shard_batch(batch(SIZE), mesh)).compile())
    shapes = [shape for several in found.values() for shape in several]
    # XLA may transpose what it adds. No kernel of the teacher is among these, no map, and none of the student's twice.
    student_ = shapes_of(fresh_state().params)
    kernels = [tuple(sorted(shape)) for shape in student_ if len(shape) > 1]
    by_example = [shape for shape in shapes if shape[:1] == (SIZE,)]
    assert sorted(tuple(sorted(shape)) for shape in shapes if len(shape) > 1 and shape not in by_example) == sorted(
        kernels
    )
    # The relational term alone reads other examples: embeddings, and a few numbers an example for the distances.
    assert {OWN, OTHERS} <= {*by_example} <= {OWN, OTHERS, (SIZE,), (SIZE, 1), (SIZE, 2)}
    assert by_example.count(OTHERS) == 1
    assert by_example.count(OWN) <= 3
    assert amount(shape for shape in by_example if shape not in (OWN, OTHERS)) <= 16 * SIZE
    # Biases' gradients, BatchNorm, means over the batch of both embeddings, metrics.
    rest = amount(shape for shape in shapes if len(shape) < 2 and shape not in by_example)
    vectors = amount(shape for shape in student_ if len(shape) < 2)
    assert vectors <= rest <= vectors + 5 * CHANNELS + 8 + 12 + 16


def test_a_process_feeds_its_block_of_every_batch():
    whole = np.arange(24).reshape(3, 8)
    for count in (1, 2, 4, 8):
        blocks = [whole[:, process_rows(8, process_index=i, process_count=count)] for i in range(count)]
        assert {block.shape for block in blocks} == {(3, 8 // count)}
        np.testing.assert_array_equal(np.concatenate(blocks, axis=1), whole)
    assert process_rows(6) == slice(0, 6)  # by default: this process, of as many as there are
    with pytest.raises(ValueError, match="batch_size must divide by the 3 processes; got 8"):
        process_rows(8, process_index=0, process_count=3)
    with pytest.raises(ValueError, match="process_index must lie between 0 and process_count - 1 = 1; got 2"):
        process_rows(8, process_index=2, process_count=2)


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
