"""What a step sends between devices, what each process feeds, and what goes wrong where gradients are averaged outside.

That a step gives the same however it is run is in test_training_ways.py.
"""

import inspect
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import BATCH, CLASSES, batch, fresh_state, optimizer, student, teacher, teacher_weights
from jax import lax

from kdjax import Weights, cross_entropy, make_eval_step, make_train_step, on_feature, on_logits, weighted_sum
from kdjax.losses import rkd_distance, soft_target_kl
from kdjax.training import (
    data_mesh,
    jit_step,
    process_rows,
    replicate,
    shard_batch,
    shard_map_step,
    split_batch,
)

DEVICES = 4
GOAL = weighted_sum(
    labels=(0.5, cross_entropy),
    soft=(0.5, on_logits(soft_target_kl, temperature=4.0)),
    relations=(3.0, on_feature(rkd_distance, "embedding")),  # of every pair in the whole batch
)


def step_for(axis_name=None):
    return make_train_step(student(axis_name), teacher, optimizer(), axis_name=axis_name)


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
LOGITS, OWN, OTHERS = (SIZE, CLASSES), (SIZE, 4), (SIZE, 8)  # of the networks: logits, the two embeddings
CHANNELS = 4  # that the student's batch normalisation normalises


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
    found = sent(step.lower(fresh_state(), teacher_weights(), GOAL, batch(SIZE)).compile())
    assert found.keys() == {"all-gather", "reduce-scatter", "all-reduce"}
    # Labels, both networks' logits, both embeddings; back come the student's gradients, each device's own part.
    assert found["all-gather"] == sorted([(SIZE,), LOGITS, LOGITS, OWN, OTHERS])
    assert found["reduce-scatter"] == [(SIZE // DEVICES, 4), (SIZE // DEVICES, CLASSES)]
    # The gradients go once: summed as shard_map differentiates, and not averaged again by the step, as pmap needs it.
    student_ = shapes_of(fresh_state().params)
    kernels = [shape for shape in student_ if len(shape) > 1]
    assert [shape for shape in found["all-reduce"] if shape in kernels] == sorted(kernels)
    # A channel that is normalised: two sums forward, two backward. And the metrics.
    rest = amount(found["all-reduce"]) - amount(student_)
    assert 0 < rest <= 4 * CHANNELS + 8


def test_jit_sends_gradients_once_and_what_terms_read_and_nothing_else():
    mesh = data_mesh()
    placed = replicate((fresh_state(), teacher_weights()), mesh)
    found = sent(jit_step(step_for()).lower(*placed, GOAL, shard_batch(batch(SIZE), mesh)).compile())
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
    with pytest.raises(ValueError, match=r"process_index must be a whole number of 0 or more; got 0\.5"):
        inspect.unwrap(process_rows)(8, process_index=0.5, process_count=2)
    with pytest.raises(ValueError, match=r"process_count must be a whole number of 1 or more; got 2\.0"):
        inspect.unwrap(process_rows)(8, process_index=0, process_count=2.0)


@pytest.mark.parametrize("axis_name", [None, "data"])
def test_evaluation_over_devices_counts_each_example_once(axis_name):
    weights, data = teacher_weights(), batch()
    data["mask"] = jnp.arange(BATCH) < BATCH - 3
    expected = make_eval_step(teacher)(weights, jax.tree.map(lambda array: array[: BATCH - 3], data))
    step = make_eval_step(teacher, axis_name=axis_name)
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


def test_no_devices_are_named():
    with pytest.raises(ValueError, match="devices must hold one device or more; got none"):
        data_mesh([])
    for devices in (0, -1, 2.0):
        with pytest.raises(ValueError, match=f"devices must be a whole number of 1 or more; got {devices}"):
            split_batch.__wrapped__(batch(4), devices)


@pytest.mark.parametrize("place", [lambda one: shard_batch(one, data_mesh()), lambda one: split_batch(one, 4)])
def test_what_has_no_axis_of_examples_is_named(place):
    for value, shown in ((0.3, "'no axis'"), (np.float32(0.3), "'no axis'"), (np.zeros(5), "5")):
        with pytest.raises(ValueError, match=rf"batch must hold arrays \[batch, …\], .*'alpha': {shown}"):
            place(batch(8) | {"alpha": value})
    with pytest.raises(ValueError, match="batch must hold arrays"):
        place({})


def test_a_teacher_that_shares_arrays_with_the_state_is_named_before_they_are_taken():
    run, own = jit_step(step_for()), teacher_weights()
    state, other = fresh_state(), teacher_weights(8)
    shared = Weights(other.params, {"mean": jax.tree.leaves(state.params)[0]})
    with pytest.raises(
        ValueError, match=r"teacher must not share arrays with state, .*shares teacher\.model_state\['mean'"
    ):
        run(state, shared, GOAL, batch())
    state, _ = run(state, own, GOAL, batch())
    # Another teacher is looked at anew.
    shared = Weights(other.params, {"mean": jax.tree.leaves(state.params)[0]})
    with pytest.raises(ValueError, match="teacher must not share arrays with state"):
        run(state, shared, GOAL, batch())
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
