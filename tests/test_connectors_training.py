"""Connectors in the train step: they learn, nothing frozen does, and a split batch is the whole one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from connected import BATCH, ROWS, batch, beside, fresh_state, head, network, objective, optimizer, student, teacher
from jax.sharding import NamedSharding, PartitionSpec

from kdjax import Weights, connectors, init_state, make_eval_step, make_train_step, on_feature, weighted_sum
from kdjax.checkpoints import open_run, restore_state, save_state
from kdjax.losses import hint
from kdjax.training import data_mesh, jit_step, pmap_step, shard_batch, shard_map_step, split_batch

STUDENTLESS = {"paraphraser"}


def step_for(name, transform=None, axis_name=None):
    return make_train_step(network, network, transform or optimizer(), connectors=ROWS[name][0], axis_name=axis_name)


def changed(before, after):
    pairs = zip(*map(jax.tree.leaves, (before, after)), strict=True)
    return [float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) > 1e-6 for a, b in pairs]


@pytest.mark.parametrize("name", sorted(ROWS.keys() - {"together"}))
def test_every_connector_trains_with_the_student_and_is_left_behind(name):
    transform = optax.adam(0.01)
    step, state = jax.jit(step_for(name, transform)), fresh_state(name, transform)
    before, losses = state, []
    for number in range(40):
        state, metrics = step(state, teacher(), objective(name), batch(number % 2))
        losses.append(float(metrics["loss"]))
    first = np.mean(losses[2:6])  # a queue is then full, and what is to be matched stands still
    assert np.mean(losses[-8:]) < first - 0.02 * abs(first), losses
    assert any(changed(before.params["connectors"], state.params["connectors"]))
    assert any(changed(before.params["student"], state.params["student"])) != (name in STUDENTLESS)
    alone = connectors.student_of(state)
    assert jax.tree.structure(alone) == jax.tree.structure(student())
    chex.assert_trees_all_equal(alone, Weights(state.params["student"], state.model_state["student"]))
    # Nothing of the teacher's, frozen parts included, is in the optimiser's state: only two moments of each parameter.
    own = sorted(leaf.shape for leaf in jax.tree.leaves(state.params))
    assert sorted(leaf.shape for leaf in jax.tree.leaves(state.opt_state))[1:] == sorted(own * 2)
    for frozen in ("classifier", "paraphraser", "labels", "order", "rows", "columns"):
        if frozen in before.model_state["connectors"]["c"]:
            chex.assert_trees_all_equal(*(one.model_state["connectors"]["c"][frozen] for one in (before, state)))


def with_plain_jit(name, state, data):
    return jit_step(step_for(name))(state, teacher(), objective(name), data)


def with_named_sharding(name, state, data):
    return jit_step(step_for(name))(state, teacher(), objective(name), shard_batch(data, data_mesh()))


def with_pmap(name, state, data):
    return pmap_step(step_for(name, axis_name="data"))(state, teacher(), objective(name), split_batch(data, 4))


def with_shard_map(name, state, data):
    return shard_map_step(step_for(name, axis_name="data"), data_mesh())(state, teacher(), objective(name), data)


def with_vmap(name, state, data):
    mapped = jax.vmap(step_for(name, axis_name="data"), in_axes=(None, None, None, 0), out_axes=None, axis_name="data")
    return jax.jit(mapped)(state, teacher(), objective(name), split_batch(data, 4))


def numbers(result):
    state, metrics = result
    return jax.device_get((state._replace(rng=jax.random.key_data(state.rng)), metrics))


@pytest.mark.slow
def test_a_split_batch_is_the_whole_one():
    """Batch normalisation, a bank, a queue and frozen arrays, in every way to run a step."""
    name = "together"
    expected = numbers(with_plain_jit(name, fresh_state(name), batch()))
    assert any(changed(beside(name).params["connectors"], expected[0].params["connectors"]))
    for way in (with_named_sharding, with_pmap, with_shard_map, with_vmap):
        got = numbers(way(name, fresh_state(name), batch()))
        chex.assert_trees_all_close(got, expected, rtol=1e-6, atol=1e-6)


def test_statistics_of_each_part_alone_are_others():
    """Control for the test above: what batch normalisation gives where nothing is gathered."""
    name = "regressor"
    whole = with_plain_jit(name, fresh_state(name), batch())[0].model_state["connectors"]
    each = jax.jit(jax.vmap(step_for(name), in_axes=(None, None, None, 0)))
    parts = each(fresh_state(name), teacher(), objective(name), split_batch(batch(), 4))[0].model_state["connectors"]
    averaged = jax.tree.map(lambda leaf: leaf.mean(0), parts)
    assert any(changed(whole, averaged))


def test_what_does_not_change_is_not_sent_around():
    name = "projector"
    lowered = shard_map_step(step_for(name, axis_name="data"), data_mesh()).lower(
        fresh_state(name), teacher(), objective(name), batch()
    )
    reduced = [line for line in lowered.compile().as_text().splitlines() if "all-reduce(" in line]
    shape = str(list(head()["kernel"].shape)).replace(" ", "")
    assert reduced
    assert head()["kernel"].shape not in {leaf.shape for leaf in jax.tree.leaves(beside(name).params["connectors"])}
    assert not any(f"f32{shape}" in line for line in reduced)


def test_no_gradient_enters_the_teacher():
    name = "projector"

    def moved(weights):
        state, _ = step_for(name)(fresh_state(name), weights, objective(name), batch())
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(state.params))

    gradients = jax.jit(jax.grad(moved))(teacher())
    chex.assert_trees_all_equal(gradients, jax.tree.map(jnp.zeros_like, gradients))


def test_a_bank_sharded_by_rows_stays_so_and_says_the_same():
    name, mesh = "contrast", data_mesh()
    by_rows, everywhere = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
    plain, placed = fresh_state(name), jax.device_put(fresh_state(name), everywhere)
    bank = placed.model_state["connectors"]["c"]["bank"]
    placed.model_state["connectors"]["c"]["bank"] = bank._replace(
        student=jax.device_put(bank.student, by_rows), teacher=jax.device_put(bank.teacher, by_rows)
    )
    step = jit_step(step_for(name))
    for number in range(3):
        plain, metrics = step(plain, teacher(), objective(name), batch(number))
        placed, sharded = step(placed, teacher(), objective(name), shard_batch(batch(number), mesh))
        chex.assert_trees_all_close(numbers((placed, sharded)), numbers((plain, metrics)), rtol=1e-5, atol=1e-6)
    for memory in placed.model_state["connectors"]["c"]["bank"][:2]:
        assert memory.sharding.is_equivalent_to(by_rows, memory.ndim)


def test_the_bank_is_saved_and_restored_with_the_state(tmp_path):
    name = "contrast"
    state, _ = with_plain_jit(name, fresh_state(name), batch())
    with open_run(tmp_path) as run:
        save_state(run, 1, state)
        restored, _ = restore_state(run, fresh_state(name))
    chex.assert_trees_all_equal(*(numbers((one, ()))[0] for one in (restored, state)))
    assert restored.model_state["connectors"]["c"]["bank"].batches == 1


def test_factor_transfer_from_the_paraphraser_to_the_student():
    """Two stages: an autoencoder of the teacher's feature without a student, then the student with it frozen."""
    beside_none = {"ft": connectors.paraphraser("stage2")}
    weights = connectors.init_beside(
        beside_none, jax.random.key(0), connectors.no_student, Weights({}, {}), network, teacher(), batch()["inputs"]
    )
    first = make_train_step(connectors.no_student, network, optimizer(), connectors=beside_none)
    state = init_state(weights, optimizer(), jax.random.key(1))
    goal = weighted_sum(again=(1.0, on_feature(hint, "ft")))
    state, _ = jax.jit(first)(state, teacher(), goal, {"inputs": batch()["inputs"]})
    trained = connectors.connector_of(state, "ft")
    assert any(changed(weights.params["connectors"]["ft"], trained.params))
    beside_student = {"c": connectors.translator("stage1", "stage2", paraphraser=trained)}
    weights = connectors.init_beside(
        beside_student, jax.random.key(2), network, student(), network, teacher(), batch()["inputs"]
    )
    chex.assert_trees_all_equal(weights.model_state["connectors"]["c"]["paraphraser"].params, trained.params["encoder"])


def test_a_projected_student_is_evaluated_without_its_teacher():
    name = "projector"
    state, _ = with_plain_jit(name, fresh_state(name), batch())
    whole = connectors.through(network, ROWS[name][0], "c")
    kept = connectors.student_of(state, "c")
    outputs, model_state = jax.jit(lambda weights, inputs: whole(*weights, inputs, train=False))(
        kept, batch()["inputs"]
    )
    both, _ = network(*connectors.student_of(state), batch()["inputs"], train=False)
    after, _, _ = connectors.connect(
        ROWS[name][0], state.params["connectors"], state.model_state["connectors"], both, both, {}, train=False
    )
    np.testing.assert_allclose(outputs.logits, after.features["c_logits"], rtol=1e-6)
    chex.assert_trees_all_equal(model_state, kept.model_state)
    assert make_eval_step(whole)(kept, batch())["examples"] == BATCH
    exported = jax.export.export(jax.jit(lambda inputs: whole(*kept, inputs, train=False)[0].logits))(batch()["inputs"])
    np.testing.assert_allclose(exported.call(batch()["inputs"]), outputs.logits, rtol=1e-6)


def schedule_free(part):
    return isinstance(part, optax.contrib.ScheduleFreeState)


def test_what_is_schedule_free_is_left_with_the_params_to_evaluate():
    name, transform = "projector", optax.contrib.schedule_free_sgd(0.5)
    state, step = fresh_state(name, transform), jax.jit(step_for(name, transform))
    for number in range(5):
        state, _ = step(state, teacher(), objective(name), batch(number))
    wanted = optax.contrib.schedule_free_eval_params(state.opt_state, state.params)
    assert all(any(changed(wanted[part], state.params[part])) for part in wanted)
    for found, its in (
        (connectors.student_of(state), wanted["student"]),
        (connectors.student_of(state, "c"), wanted),
        (connectors.connector_of(state, "c"), wanted["connectors"]["c"]),
    ):
        chex.assert_trees_all_close(found.params, its, rtol=1e-6)
    # Where it is so for the connectors alone, the student is as it is trained.
    transform = optax.multi_transform(
        {"own": optax.sgd(0.5), "beside": transform}, {"student": "own", "connectors": "beside"}
    )
    state = fresh_state(name, transform)
    chex.assert_trees_all_equal(connectors.student_of(state).params, state.params["student"])
    step = jax.jit(step_for(name, transform))
    for number in range(2):
        state, _ = step(state, teacher(), objective(name), batch(number))
    chex.assert_trees_all_equal(connectors.student_of(state).params, state.params["student"])
    (part,) = (one for one in jax.tree.leaves(state.opt_state, is_leaf=schedule_free) if schedule_free(one))
    own = state.params["connectors"]["c"]
    wanted = optax.contrib.schedule_free_eval_params(part._replace(z=part.z["connectors"]["c"]), own)
    assert any(changed(wanted, own))
    chex.assert_trees_all_close(connectors.connector_of(state, "c").params, wanted, rtol=1e-6)


def test_cached_outputs_take_the_teachers_place_with_connectors_too():
    name = "variational"
    outputs, _ = network(*teacher(), batch()["inputs"], train=False)
    weights = connectors.init_beside(
        ROWS[name][0], jax.random.key(3), network, student(), None, outputs, batch()["inputs"]
    )
    chex.assert_trees_all_equal(weights, beside(name))
    step = make_train_step(network, None, optimizer(), connectors=ROWS[name][0])
    cached, _ = jax.jit(step)(fresh_state(name), None, objective(name), batch() | {"teacher": outputs})
    online, _ = jax.jit(step_for(name))(fresh_state(name), teacher(), objective(name), batch())
    chex.assert_trees_all_close(cached.params, online.params, rtol=1e-6, atol=1e-7)


def test_a_state_without_the_connectors_is_refused():
    plain = init_state(student(), optimizer(), jax.random.key(0))
    with pytest.raises(ValueError, match=r"state must hold the connectors beside the student.*got \['bias'"):
        step_for("regressor")(plain, teacher(), objective("regressor"), batch())
    with pytest.raises(ValueError, match="params must hold the connector 'c'; it has \\['x'\\]"):
        step_for("regressor")(
            init_state(
                Weights(
                    {"student": student().params, "connectors": {"x": {}}}, {"student": {}, "connectors": {"x": {}}}
                ),
                optimizer(),
                jax.random.key(0),
            ),
            teacher(),
            objective("regressor"),
            batch(),
        )
