"""The controller by how the student does: its law by hand, in the training state, in one program; and terms it weighs."""

import inspect
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from connected import batch, network, student, teacher
from dense import total
from saved import bits

from kdjax import (
    Outputs,
    connectors,
    cross_entropy,
    init_state,
    make_train_step,
    on_logits,
    on_outputs,
    scaled,
    schedules,
    weighted_sum,
)
from kdjax.checkpoints import open_run, restore_state, save_state
from kdjax.connectors import controlled, observe
from kdjax.losses import soft_target_kl
from kdjax.training import data_mesh, freeze, jit_step, pmap_step, shard_batch, shard_map_step, split_batch

SOFT = on_outputs(soft_target_kl, "student.logits", "teacher.logits", temperature="student.c_temperature")
OBJECTIVE = weighted_sum(
    soft=(1.0, scaled(SOFT, by="student.c_weight")), labels=(1.0, scaled(cross_entropy, by="student.c_rest"))
)
RULE = {"weight": (0.9, 0.7), "factor": 0.5, "low": 1.0, "high": 20.0, "patience": 2, "min_delta": 0.01}


def sgd():
    return optax.sgd(0.05, momentum=0.9)


def fresh(temperature=4.0, **rule):
    beside = {"c": controlled(temperature, **(RULE | rule))}
    weights = connectors.init_beside(
        beside, jax.random.key(3), network, student(), network, teacher(), batch()["inputs"]
    )
    return beside, init_state(weights, sgd(), jax.random.key(0))


def made_step(axis_name=None):
    return make_train_step(network, network, sgd(), connectors=fresh()[0], axis_name=axis_name)


def held(state):
    own = connectors.connector_of(state, "c").model_state
    return round(float(own["weight"]), 4), round(float(own["temperature"]), 4)


def told(state, *accuracies, teacher_accuracy=0.9):
    for accuracy in accuracies:
        state = observe(state, "c", accuracy=accuracy, teacher_accuracy=teacher_accuracy)
    return state


def test_the_law_by_hand():
    state, seen = fresh()[1], []
    assert held(state) == (0.9, 4.0)
    for accuracy in (0.5, 0.6, 0.605, 0.55, 0.8, 0.9, 0.9, 0.95, 0.95, 0.95, 0.95):
        state = told(state, accuracy)
        seen.append(held(state))
    # The gap of 0.4 is open by 0.4, 0.3, 0.3 (0.605 is not 0.01 more than 0.6), 0.3, 0.1, 0, 0, and never less than 0.
    # Two in a row without growth halve T: 0.605 and 0.55; then after 0.95 twice, and down to 1 and no lower.
    assert seen == [
        (0.9, 4.0), (0.85, 4.0), (0.85, 4.0), (0.85, 2.0), (0.75, 2.0), (0.7, 2.0), (0.7, 2.0), (0.7, 2.0),
        (0.7, 2.0), (0.7, 1.0), (0.7, 1.0),
    ]  # fmt: skip
    assert held(told(state, 0.1, 0.1, 0.1)) == (0.7, 1.0)
    assert int(connectors.connector_of(state, "c").model_state["observed"]) == 11


def test_a_factor_above_one_softens_up_to_the_largest():
    state = fresh(8.0, factor=2.0, patience=1)[1]
    assert [held(told(state, *[0.5] * times))[1] for times in (1, 2, 3, 4)] == [8.0, 16.0, 20.0, 20.0]


def test_a_student_that_begins_without_a_gap_has_closed_it():
    assert held(told(fresh()[1], 0.9))[0] == held(told(fresh()[1], 0.95, 0.2))[0] == 0.7
    assert held(told(fresh()[1], 0.0, teacher_accuracy=0.0))[0] == 0.7


def test_observing_changes_the_controller_alone():
    state = fresh()[1]
    after = told(state, 0.5)
    again = after._replace(model_state=state.model_state)
    assert bits(again) == bits(state)
    assert after.model_state["student"] is state.model_state["student"]
    # Whose params to evaluate nobody knows, and no controller has any.
    partly = freeze(optax.contrib.schedule_free_sgd(0.1), "bias").init(state.params)
    chex.assert_trees_all_equal(told(state._replace(opt_state=partly), 0.5).model_state, after.model_state)


def test_the_step_reads_what_the_controller_holds_and_compiles_once():
    """Against an objective whose temperature and weights are plain numbers."""
    step = jax.jit(made_step())
    plain = jax.jit(make_train_step(network, network, sgd()))
    state = fresh()[1]
    alone = init_state(student(), sgd(), jax.random.key(0))
    seen = set()
    for number, accuracy in enumerate((0.5, 0.7, 0.7, 0.7, 0.85)):
        state = told(state, accuracy)
        weight, temperature = held(state)
        seen.add((weight, temperature))
        expected = weighted_sum(
            soft=(weight, on_logits(soft_target_kl, temperature=temperature)), labels=(1.0 - weight, cross_entropy)
        )
        state, metrics = step(state, teacher(), OBJECTIVE, batch(number % 2))
        alone, wanted = plain(alone, teacher(), expected, batch(number % 2))
        np.testing.assert_allclose(metrics["loss"], wanted["loss"], rtol=1e-5)
        np.testing.assert_allclose(metrics["soft"], weight * wanted["soft"], rtol=1e-5)
        chex.assert_trees_all_close(connectors.student_of(state).params, alone.params, rtol=1e-4, atol=1e-5)
    assert seen == {(0.9, 4.0), (0.8, 4.0), (0.8, 2.0), (0.725, 2.0)}
    assert step._cache_size() == 1


def test_saved_between_observations_it_goes_on_to_the_same_bits(tmp_path):
    step, state = jax.jit(made_step()), fresh()[1]
    accuracies = (0.5, 0.6, 0.6, 0.6, 0.7)
    with open_run(tmp_path) as run:
        for number, accuracy in enumerate(accuracies):
            state, _ = step(state, teacher(), OBJECTIVE, batch(number % 2))
            state = told(state, accuracy)
            if number == 2:  # one observation of two without growth
                save_state(run, 3, state)
    with open_run(tmp_path) as run:
        resumed, _ = restore_state(run, fresh()[1])
    assert (held(resumed), held(state)) == ((0.85, 4.0), (0.8, 2.0))
    for number in (3, 4):
        resumed, _ = step(resumed, teacher(), OBJECTIVE, batch(number % 2))
        resumed = told(resumed, accuracies[number])
    assert bits(resumed) == bits(state)
    assert step._cache_size() == 1
    assert jax.tree.structure(connectors.student_of(state)) == jax.tree.structure(student())


def numbers(result):
    return jax.device_get((result[0]._replace(rng=jax.random.key_data(result[0].rng)), result[1]))


def test_a_split_batch_is_the_whole_one():
    state, mesh = told(fresh()[1], 0.5, 0.7, 0.7, 0.7), data_mesh()
    expected = numbers(jit_step(made_step())(jax.tree.map(jnp.copy, state), teacher(), OBJECTIVE, batch()))
    assert held(expected[0]) == (0.8, 2.0)
    for way, data in (
        (jit_step(made_step()), shard_batch(batch(), mesh)),
        (pmap_step(made_step("data")), split_batch(batch(), 4)),
        (shard_map_step(made_step("data"), mesh), batch()),
    ):
        got = numbers(way(jax.tree.map(jnp.copy, state), teacher(), OBJECTIVE, data))
        chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


def test_many_students_are_observed_each_by_its_own():
    one, other = fresh()[1], fresh(8.0, patience=1)[1]
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, other)
    own = jax.jit(jax.vmap(lambda state, accuracy: observe(state, "c", accuracy=accuracy, teacher_accuracy=0.9)))
    for accuracies in ((0.5, 0.1), (0.7, 0.1), (0.7, 0.5)):
        both = own(both, jnp.array(accuracies))
    alone = [held(told(one, 0.5, 0.7, 0.7)), held(told(other, 0.1, 0.1, 0.5))]
    assert [held(jax.tree.map(lambda leaf, place=place: leaf[place], both)) for place in (0, 1)] == alone
    assert alone == [(0.8, 4.0), (0.8, 4.0)]
    stepped = jax.jit(jax.vmap(made_step(), in_axes=(0, None, None, None)))(both, teacher(), OBJECTIVE, batch())[1]
    assert stepped["loss"].shape == (2,)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"temperature": 0.5}, r"temperature must lie between low and high, 1.0 and 20.0; got 0.5"),
        ({"temperature": "4"}, "temperature must be a finite number greater than 0; got '4'"),
        ({"weight": 0.5}, "weight must be two numbers, at the start and at the end; got 0.5"),
        ({"weight": (0.5, 0.4, 0.3)}, r"weight must be two numbers, .*; got \(0.5, 0.4, 0.3\)"),
        ({"weight": (0.9, 1.5)}, r"weight\[1\] must lie between 0.0 and 1.0; got 1.5"),
        ({"factor": 0.0}, "factor must be a finite number greater than 0; got 0.0"),
        ({"low": -1.0}, "low must be a finite number greater than 0; got -1.0"),
        ({"high": math.inf}, "high must be a finite number greater than 0; got inf"),
        ({"patience": 0}, "patience must be a whole number of 1 or more; got 0"),
        ({"min_delta": -0.1}, "min_delta must lie between 0.0 and 1.0; got -0.1"),
    ],
)
def test_rules_out_of_range_are_refused(rule, words):
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(controlled)(**(RULE | rule))


def test_what_is_no_observation_is_refused():
    state = fresh()[1]
    for value in (math.nan, np.float32("nan"), jnp.array([0.5, jnp.nan])):
        with pytest.raises(ValueError, match=r"accuracy must be a finite number; got .*nan"):
            observe(state, "c", accuracy=value, teacher_accuracy=0.9)
    with pytest.raises(ValueError, match=r"teacher_accuracy must lie between 0.0 and 1.0; got 97.5"):
        observe(state, "c", accuracy=0.5, teacher_accuracy=97.5)
    with pytest.raises(ValueError, match=r"name must be one of c; got 'controll'"):
        observe(state, "controll", accuracy=0.5, teacher_accuracy=0.9)
    beside = {"c": connectors.learnt_temperature(1.0)}
    weights = connectors.init_beside(
        beside, jax.random.key(3), network, student(), network, teacher(), batch()["inputs"]
    )
    with pytest.raises(ValueError, match=r"a connector made by controlled; 'c' holds \['step'\]"):
        observe(init_state(weights, sgd(), jax.random.key(0)), "c", accuracy=0.5, teacher_accuracy=0.9)


def test_a_term_is_scaled_by_one_number_or_by_each_examples_own():
    values, own = jnp.array([1.0, 2.0, 4.0]), jnp.array([0.5, 0.0, 2.0])
    outputs = Outputs(jnp.zeros((3, 2)), {"one": jnp.float32(3.0), "own": own, "wide": jnp.ones((3, 1))})

    def read(student, teacher, batch):
        return batch["values"]

    data = {"values": values, "own": own}
    assert scaled(read, by="student.one")(outputs, None, data).tolist() == [3.0, 6.0, 12.0]
    for place in ("student.own", "teacher.own", "batch.own"):
        assert scaled(read, by=place)(outputs, outputs, data).tolist() == [0.5, 0.0, 8.0]
    with pytest.raises(ValueError, match=r"student.wide must be one number, or one per example or position.*\(3, 1\)"):
        scaled(read, by="student.wide")(outputs, None, data)
    with pytest.raises(ValueError, match=r"The student has no feature 'other'"):
        scaled(read, by="student.other")(outputs, None, data)
    with pytest.raises(ValueError, match=r"scaled compares the student with a teacher, and this step has none"):
        scaled(read, by="teacher.own")(outputs, None, data)
    for wrong in ("own", "nobody.own", "student."):
        with pytest.raises(ValueError, match=r"by must be a place"):
            scaled(read, by=wrong)


def test_the_numbers_of_a_scaled_term_are_still_the_objectives():
    """Searched, scheduled and differentiated like those of any other term."""
    falling = schedules.linear(4.0, 2.0, steps=2)
    objective = weighted_sum(soft=(0.5, scaled(on_logits(soft_target_kl, temperature=falling), by="student.how_much")))
    assert sorted(jax.tree.leaves(objective)) == [0.5, 2.0, 2.0, 4.0]
    first, second = (
        Outputs(
            jnp.asarray(np.random.default_rng(seed).normal(size=(3, 4)), jnp.float32), {"how_much": jnp.ones(3) / 2}
        )
        for seed in (0, 1)
    )
    for step, temperature in ((0, 4.0), (1, 3.0), (2, 2.0)):
        expected = 0.25 * soft_target_kl(first.logits, second.logits, temperature=temperature)
        np.testing.assert_allclose(total(objective(first, second, {}, step)), expected, rtol=1e-6)


def test_a_mask_stands_beside_a_controller_whose_numbers_are_of_no_example():
    """They move between epochs, by `observe`; it was refused as if they were batch statistics."""
    data = batch()
    count = len(data["labels"])
    masked = data | {"mask": np.arange(count) < count // 2}
    alone = jax.tree.map(lambda array: array[: count // 2], data)
    metrics = [made_step()(fresh()[1], teacher(), OBJECTIVE, one)[1] for one in (masked, alone)]
    told = {float(metrics[0].pop(f"{name} count")) for name in ("labels", "soft", "accuracy")}
    assert told == {count // 2}
    chex.assert_trees_all_close(*metrics, rtol=1e-5)
