"""The loop: the same bits from wherever the batches come, exact means, and nothing compiled twice."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import COMPILATIONS
from dense import batch, fresh_state, objective, optimizer, student, teacher, teacher_weights

from kdjax import Outputs, make_train_step
from kdjax.batches import epoch_indices
from kdjax.training import data_mesh, jit_step, make_epoch, replicate, shard_largest_axis

EXAMPLES, SIZE = 35, 8
DATA = {name: array for name, array in batch(EXAMPLES).items() if name != "indices"}
# Seven batches, two epochs of the data: with three steps a call, one remains.
ORDER = np.concatenate([epoch_indices(EXAMPLES, SIZE, seed=0, epoch=number) for number in range(2)])[:7]
GOAL = objective()


def step():
    return make_train_step(student(), teacher, optimizer())


def bits(result):
    state, means = result
    return jax.device_get(state._replace(rng=jax.random.key_data(state.rng))), means


def batches(order=ORDER, **more):
    """As a stream gives them: rows of NumPy's arrays, in a mapping each."""
    whole = jax.device_get(DATA) | more
    for rows in order:
        yield {name: array[rows] for name, array in whole.items()} | {"indices": rows}


@pytest.fixture(scope="module")
def epoch():
    return make_epoch(step())


@pytest.fixture(scope="module")
def expected(epoch):
    return bits(epoch(fresh_state(), teacher_weights(), GOAL, DATA, ORDER))


def test_a_pass_that_was_stopped_and_begun_again_has_the_same_bits_and_means(epoch, expected):
    stops = iter([False, False, True])
    state, means = epoch(fresh_state(), teacher_weights(), GOAL, DATA, ORDER, stop=lambda: next(stops))
    assert int(state.step) == 3
    seen, again = [], iter([False, True])
    state, means = epoch(
        state,
        teacher_weights(),
        GOAL,
        DATA,
        ORDER[3:],
        begun=(3, means),
        watch=lambda done, _: seen.append(done),
        stop=lambda: next(again),
    )
    result = epoch(state, teacher_weights(), GOAL, DATA, ORDER[5:], begun=(5, means))
    assert seen == [4, 5]
    assert bits(result)[1] == expected[1]
    chex.assert_trees_all_equal(bits(result)[0], expected[0])


@pytest.fixture(scope="module")
def by_hand():
    compiled, state, metrics = jit_step(step()), fresh_state(), []
    for one in batches():
        state, said = compiled(state, teacher_weights(), GOAL, one)
        metrics.append(jax.device_get(said))
    return state, metrics


def test_an_epoch_is_its_steps_and_its_means_are_theirs(expected, by_hand):
    state, means = expected
    after, metrics = by_hand
    chex.assert_trees_all_close(state, bits((after, {}))[0], rtol=1e-6, atol=1e-6)
    assert means.keys() == metrics[0].keys()
    for name, mean in means.items():
        assert isinstance(mean, float)
        np.testing.assert_allclose(mean, np.mean([one[name] for one in metrics]), rtol=1e-6, err_msg=name)
    assert state.step == 7
    assert len({float(one["loss"]) for one in metrics}) == 7


def on_the_host(folder):
    return jax.device_get(DATA)


def memory_mapped(folder):
    for name, array in DATA.items():
        np.save(folder / f"{name}.npy", array)
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in DATA}


def mixed(folder):
    return DATA | {"inputs": memory_mapped(folder)["inputs"]}


def a_stream(folder):
    return batches()


def a_list_of_batches_on_the_device(folder):
    return [jax.tree.map(jnp.asarray, one) for one in batches()]


def test_arrays_here_and_there_give_the_same_bits(compiled_as_users_do, tmp_path):
    epoch = make_epoch(step())
    together, apart = (
        bits(epoch(fresh_state(), teacher_weights(), GOAL, arrays, ORDER)) for arrays in (DATA, mixed(tmp_path))
    )
    chex.assert_trees_all_equal(apart, together)


@pytest.mark.parametrize("source", [on_the_host, memory_mapped, a_stream, a_list_of_batches_on_the_device])
def test_the_same_batches_give_the_same_bits_wherever_they_come_from(source, epoch, expected, tmp_path):
    arrays = source(tmp_path)
    order = ORDER if isinstance(arrays, dict) else None
    result = bits(epoch(fresh_state(), teacher_weights(), GOAL, arrays, order))
    chex.assert_trees_all_equal(result, expected)


@pytest.mark.parametrize("host", [False, True], ids=["on the device", "on the host"])
def test_how_many_steps_are_one_call_changes_nothing(host, expected):
    """Two scans of three steps each, and one step that remains."""
    arrays, calls = jax.device_get(DATA) if host else DATA, []
    epoch = make_epoch(step(), steps_per_call=3)
    result = epoch(
        fresh_state(), teacher_weights(), GOAL, arrays, ORDER, watch=lambda done, newest: calls.append((done, newest))
    )
    chex.assert_trees_all_close(bits(result), expected, rtol=1e-6, atol=1e-6)
    assert [done for done, _ in calls] == [3, 6, 7]


def test_a_stream_is_one_step_a_call_whatever_was_asked_for(expected):
    calls, epoch = [], make_epoch(step(), steps_per_call=3)
    result = epoch(fresh_state(), teacher_weights(), GOAL, batches(), watch=lambda done, _: calls.append(done))
    chex.assert_trees_all_equal(bits(result), expected)
    assert calls == [1, 2, 3, 4, 5, 6, 7]


def test_what_is_watched_is_the_newest_steps_metrics(epoch, by_hand):
    seen, (_, metrics) = [], by_hand
    epoch(fresh_state(), teacher_weights(), GOAL, DATA, ORDER, watch=lambda *shown: seen.append(shown))
    assert [done for done, _ in seen] == [1, 2, 3, 4, 5, 6, 7]
    for (_, newest), own in zip(seen, metrics, strict=True):
        assert newest["loss"].is_ready() in (True, False)  # it may be asked for, without waiting
        chex.assert_trees_all_close(newest, own, rtol=1e-5, atol=1e-6)


def seen_by_a_step(arrays, order):
    """The batches that a step is given."""

    def noting(state, its, goal, one):
        return state, {name: jnp.asarray(value, jnp.float32) for name, value in one.items() if name != "inputs"}

    seen = []
    make_epoch(noting)(fresh_state(), None, GOAL, arrays, order, watch=lambda _, newest: seen.append(newest))
    return seen


@pytest.mark.parametrize("place", [jnp.asarray, np.asarray], ids=["on the device", "on the host"])
def test_a_batch_says_which_examples_it_has_unless_the_data_say_so(place):
    arrays = {"labels": place(np.arange(5)), "inputs": place(np.zeros((5, 2)))}
    order = [[3, 1], [0, 4]]
    assert [one["indices"].tolist() for one in seen_by_a_step(arrays, order)] == order
    own = arrays | {"indices": place(np.arange(5) + 100)}
    seen = seen_by_a_step(own, order)
    assert [one["indices"].tolist() for one in seen] == [[103, 101], [100, 104]]
    assert [one["labels"].tolist() for one in seen] == order


def test_trees_of_arrays_are_rows_too(expected, epoch):
    """A teacher's cached outputs, on the host and on the device."""
    said = jax.jit(lambda weights: teacher(*weights, DATA["inputs"], train=False)[0])(teacher_weights())
    for cached in (said, jax.device_get(said)):
        result = bits(epoch(fresh_state(), None, GOAL, DATA | {"teacher": cached}, ORDER))
        chex.assert_trees_all_close(result, expected, rtol=1e-5, atol=1e-6)


def test_the_states_memory_is_used_again_and_no_other(epoch):
    state, its = fresh_state(), teacher_weights()
    after, _ = epoch(state, its, GOAL, DATA, ORDER)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((after, its, DATA)))


@pytest.mark.parametrize("placed", ["as it is", "committed", "on four devices", "split over four devices"])
def test_no_epoch_compiles_what_the_first_one_did(placed):
    mesh = data_mesh() if "devices" in placed else None
    state, its, arrays = fresh_state(), teacher_weights(), DATA
    if placed == "committed":  # as a restored one is
        state = jax.device_put(state, jax.devices()[0])
    elif mesh is not None:
        its, arrays = replicate((its, arrays), mesh)
        state = shard_largest_axis(state, mesh, at_least=8) if "split" in placed else replicate(state, mesh)
    epoch = make_epoch(step(), mesh=mesh)
    before, compiled = COMPILATIONS.count, []
    for _ in range(3):
        state, _ = epoch(state, its, GOAL, arrays, ORDER)
        compiled.append(COMPILATIONS.count - before)
    # The step, and the zeros that its metrics are added to.
    assert compiled == [2, 2, 2]


def test_on_four_devices_it_is_the_same(expected):
    mesh = data_mesh()
    state, its = replicate((fresh_state(), teacher_weights()), mesh)
    epoch = make_epoch(step(), mesh=mesh)
    for arrays, order in ((replicate(DATA, mesh), ORDER), (jax.device_get(DATA), ORDER), (batches(), None)):
        copy = jax.tree.map(jnp.copy, state)
        chex.assert_trees_all_close(bits(epoch(copy, its, GOAL, arrays, order)), expected, rtol=1e-5, atol=1e-5)


def test_each_device_has_its_part_of_a_batch():
    mesh, shapes = data_mesh(), []

    def noting(state, its, goal, one):
        jax.debug.inspect_array_sharding(one["inputs"], callback=lambda how: shapes.append(how.shard_shape((SIZE, 6))))
        return state, {"sum": one["inputs"].sum()}

    make_epoch(noting, mesh=mesh)(replicate(fresh_state(), mesh), None, GOAL, replicate(DATA, mesh), ORDER)
    assert {*shapes} == {(SIZE // 4, 6)}


@pytest.mark.parametrize(
    ("arrays", "order", "message"),
    [
        (DATA, [[0, EXAMPLES]], "order must lie between 0 and 34; got 0 to 35"),
        (DATA, [[-1, 3]], "order must lie between 0 and 34; got -1 to 3"),
        (DATA, [[0.0, 1.0]], r"order must be whole numbers \[steps, batch\], .*; got shape \(1, 2\) and dtype float64"),
        (DATA, [[True, False]], r"order must be whole numbers \[steps, batch\], .*; .* dtype bool"),
        (DATA, [0, 1, 2], r"order must be whole numbers \[steps, batch\], .*; got shape \(3,\)"),
        (DATA, None, r"order must say which examples make which batch, \[steps, batch\]; got None"),
        (DATA, np.zeros((0, 8), np.int32), "arrays must give one batch at least; got none"),
        ([], None, "arrays must give one batch at least; got none"),
        ([DATA], ORDER, "order must be None where the batches come one by one"),
        (
            DATA | {"labels": DATA["labels"][:-1]},
            ORDER,
            r"arrays must have one row for each example, all as many; got \{'inputs': \[35\], 'labels': \[34\]\}",
        ),
        (
            DATA | {"teacher": Outputs(DATA["inputs"], {"size": np.float32(1)})},
            ORDER,
            "arrays must have one row for each example, all as many; got .*'no axis', 35",
        ),
        ({}, ORDER, r"arrays must have one row for each example, all as many; got \{\}"),
        (DATA | {"mask": np.full(EXAMPLES, 0.5)}, ORDER, 'arrays must have 0 and 1 in "mask", .*; got 0.5'),
        (
            DATA | {"mask": jnp.full(EXAMPLES, 0.5, jnp.bfloat16)},
            ORDER,
            'arrays must have 0 and 1 in "mask", .*; got 0.5',
        ),
        (DATA | {"labelled": jnp.full(EXAMPLES, 2)}, ORDER, 'arrays must have 0 and 1 in "labelled", .*; got 2'),
        (
            iter([batch(8) | {"mask": np.linspace(0, 1, 8)}]),
            None,
            'batch must have 0 and 1 in "mask", .*; got 0.142857',
        ),
        (
            iter([(DATA["inputs"], DATA["labels"])]),
            None,
            "arrays must be arrays by name, or an iterable of batches by name; got a tuple",
        ),
    ],
)
def test_what_does_not_fit_is_said(arrays, order, message, epoch):
    with pytest.raises(ValueError, match=message):
        epoch(fresh_state(), teacher_weights(), GOAL, arrays, order)


@pytest.mark.parametrize("steps", [0, 1.5])
def test_steps_a_call_are_a_whole_number(steps):
    with pytest.raises(ValueError, match="steps_per_call must be a whole number of 1 or more; got"):
        inspect.unwrap(make_epoch)(step(), steps_per_call=steps)
