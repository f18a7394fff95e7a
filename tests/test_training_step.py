"""What the step promises: the teacher stands outside everything that the optimiser touches, and numbers reproduce."""

import inspect
from functools import cache

import chex
import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from dense import (
    CLASSES,
    DIM,
    batch,
    fresh_state,
    objective,
    optimizer,
    student,
    teacher,
    teacher_weights,
    total,
    weights,
)

from experiments._networks import make_model
from kdjax import (
    Outputs,
    Weights,
    cross_entropy,
    init_state,
    make_eval_step,
    make_train_step,
    on_feature,
    on_logits,
    weighted_sum,
)
from kdjax.losses import attention_transfer, soft_target_kl
from kdjax.networks import from_linen
from kdjax.training import freeze, jit_step
from kdjax.training._teach import teach


def step_for(transform=None, teacher_apply=True):
    return make_train_step(student(), teacher if teacher_apply else None, transform or optimizer())


@cache
def compiled(teacher_apply=True):
    """One program for all tests that ask for no other."""
    return jax.jit(step_for(teacher_apply=teacher_apply))


def test_the_teachers_gradient_is_exactly_zero():
    state = fresh_state()

    @jax.jit
    def loss(weights):
        return step_for()(state, weights, objective(), batch())[1]["loss"]

    gradients = jax.jit(jax.grad(loss))(teacher_weights())
    chex.assert_trees_all_equal(gradients, jax.tree.map(jnp.zeros_like, gradients))
    # Control: the loss does depend on the teacher.
    other = jax.tree.map(lambda leaf: 1.5 * leaf, teacher_weights())
    assert abs(float(loss(other)) - float(loss(teacher_weights()))) > 1e-3


def test_the_state_that_comes_out_does_not_feel_the_teacher_through_a_gradient_either():
    before = fresh_state()

    def moved(weights):
        state, _ = step_for()(before, weights, objective(), batch())
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(state.params))

    for gradient in jax.tree.leaves(jax.jit(jax.grad(moved))(teacher_weights())):
        np.testing.assert_array_equal(gradient, 0.0)


def test_the_teacher_survives_the_donation_of_the_state():
    step, state, weights = jit_step(step_for()), fresh_state(), teacher_weights()
    before = jax.device_get(weights)
    donated = jax.tree.leaves(state.params)
    for _ in range(3):
        state, _ = step(state, weights, objective(), batch())
    chex.assert_trees_all_equal(jax.device_get(weights), before)
    assert all(leaf.is_deleted() for leaf in donated)  # else the donation did not happen, and this tests nothing


def test_no_leaf_of_the_optimisers_state_has_a_teachers_shape():
    state = fresh_state(transform=optax.adam(1e-3))
    state, _ = jax.jit(step_for(optax.adam(1e-3)))(state, teacher_weights(), objective(), batch())
    own = sorted(leaf.shape for leaf in jax.tree.leaves(state.params))
    held = sorted(leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert held == sorted(own * 2)  # Adam's two moments of the student, and nothing else
    teachers = {leaf.shape for leaf in jax.tree.leaves(teacher_weights()) if leaf.ndim > 1}
    assert not teachers & set(held)
    assert not teachers & {leaf.shape for leaf in jax.tree.leaves(state._replace(rng=()))}


def test_the_teacher_is_no_constant_of_the_compiled_program():
    large = weights(7, 512)
    lowered = jax.jit(step_for()).lower(fresh_state(), large, objective(), batch())
    largest = max(leaf.size for leaf in jax.tree.leaves(large))
    constants = [line for line in lowered.as_text().splitlines() if 'stablehlo.constant dense<"' in line]
    assert all(len(line) < largest for line in constants)


def test_cached_outputs_take_the_teachers_place():
    weights = teacher_weights()
    outputs, _ = teacher(*weights, batch()["inputs"], train=False)
    online = compiled()(fresh_state(), weights, objective(), batch())
    cached = compiled(False)(fresh_state(), None, objective(), batch() | {"teacher": outputs})
    chex.assert_trees_all_close(cached[0].params, online[0].params, rtol=1e-6, atol=1e-7)
    # Nor is a teacher that the step knows run where the batch brings its outputs.
    both = compiled()(fresh_state(), None, objective(), batch() | {"teacher": outputs})
    chex.assert_trees_all_equal(both[0].params, cached[0].params)


def test_the_metrics_are_the_terms_means_and_their_weights():
    goal = objective(labels=0.25, soft=0.75, relations=2.0)
    _, metrics = compiled()(fresh_state(), teacher_weights(), goal, batch())
    assert sorted(metrics) == [
        "accuracy", "labels", "labels_weight", "loss", "relations", "relations_weight", "soft", "soft_weight",
    ]  # fmt: skip
    total = 0.25 * metrics["labels"] + 0.75 * metrics["soft"] + 2.0 * metrics["relations"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)
    assert metrics["soft_weight"] == 0.75
    chex.assert_type(list(metrics.values()), jnp.float32)


def test_one_step_is_optax_by_hand():
    """The update written out, for a loss without batch coupling."""
    goal = weighted_sum(labels=(1.0, cross_entropy))
    state, data = fresh_state(), batch()
    rng = jax.random.fold_in(state.rng, 0)

    def loss(params):
        outputs, _ = student()(params, state.model_state, data["inputs"], train=True, rng=rng)
        return optax.softmax_cross_entropy_with_integer_labels(outputs.logits, data["labels"]).mean()

    gradients = jax.jit(jax.grad(loss))(state.params)
    expected = jax.tree.map(lambda leaf, gradient: leaf - 0.1 * gradient, state.params, gradients)
    after, metrics = compiled(False)(state, None, goal, data)
    chex.assert_trees_all_close(after.params, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(metrics["loss"], loss(state.params), rtol=1e-6)
    assert after.step == 1


def test_training_lowers_the_loss_and_repeats_bit_for_bit():
    def train():
        step, state, weights = jit_step(step_for()), fresh_state(), teacher_weights()
        losses = []
        for number in range(60):
            state, metrics = step(state, weights, objective(), batch(seed=number % 4))
            losses.append(float(metrics["loss"]))
        return state, losses

    (first, losses), (second, _) = train(), train()
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:8])
    chex.assert_trees_all_equal(first.params, second.params)
    chex.assert_trees_all_equal(first.model_state, second.model_state)
    assert not jax.tree.all(jax.tree.map(jnp.array_equal, first.model_state, fresh_state().model_state))


def test_each_step_draws_its_own_noise():
    goal, data = weighted_sum(labels=(1.0, cross_entropy)), batch()
    step = compiled(False)
    state = fresh_state()
    later = state._replace(step=state.step + 1)
    losses = [float(step(start, None, goal, data)[1]["loss"]) for start in (state, state, later)]
    assert losses[0] == losses[1] != losses[2]


WANT_THE_LOSS = {
    "reduce_on_plateau": optax.chain(
        optax.sgd(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=2, rtol=0.9, accumulation_size=1)
    ),
    "polyak_sgd": optax.polyak_sgd(max_learning_rate=0.1),
    "frozen in part": freeze(optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=2)), "body"),
}


@pytest.mark.parametrize("name", WANT_THE_LOSS)
def test_an_optimizer_that_wants_the_losss_value_is_given_it(name):
    transform = WANT_THE_LOSS[name]
    step = jax.jit(make_train_step(student(), teacher, transform))
    state, weights, data = fresh_state(transform=transform), teacher_weights(), batch()
    losses = []
    for _ in range(8):
        before = state
        state, metrics = step(before, weights, objective(), data)
        losses.append(float(metrics["loss"]))
    assert min(losses[4:]) < losses[0]
    assert step._cache_size() == 1
    # By hand: the update that optax makes of the loss that the step reports.
    gradients = jax.grad(loss_of)(before.params, before, weights, data)
    transform = optax.with_extra_args_support(transform)
    updates, _ = transform.update(gradients, before.opt_state, before.params, value=metrics["loss"])
    expected = optax.apply_updates(before.params, updates)
    chex.assert_trees_all_close(state.params, expected, rtol=1e-5, atol=1e-6)


@jax.jit
def loss_of(params, state, weights, data):
    rng = jax.random.fold_in(state.rng, state.step)
    said, _ = student()(params, state.model_state, data["inputs"], train=True, rng=rng)
    taught, _ = teacher(*weights, data["inputs"], train=False)
    return total(objective()(said, taught, data, state.step)).mean()


def test_a_plateau_that_is_seen_makes_smaller_steps():
    """With a patience of two updates and a fall that nothing reaches, the scale is halved as told."""
    transform = WANT_THE_LOSS["reduce_on_plateau"]
    step, state = jax.jit(make_train_step(student(), teacher, transform)), fresh_state(0, transform)
    scales = []
    for _ in range(6):
        state, _ = step(state, teacher_weights(), objective(), batch())
        scales.append(float(optax.tree.get(state.opt_state, "scale")))
    assert scales == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_the_step_does_not_compile_twice_over_a_search():
    step = jax.jit(chex.assert_max_traces(step_for(), n=1))
    state, weights = fresh_state(), teacher_weights()
    for temperature in np.arange(1.0, 6.0, 0.5):
        state, _ = step(state, weights, objective(temperature=temperature, soft=float(temperature) / 10), batch())
    assert step._cache_size() == 1
    assert state.step == 10
    chex.clear_trace_counter()


def test_a_half_precision_student_keeps_float32_parameters_and_losses():
    goal = weighted_sum(
        soft=(1.0, on_logits(soft_target_kl, temperature=4.0)),
        attention=(1.0, on_feature(attention_transfer, "stage1")),
    )
    init, apply = from_linen(make_model("digits_student", dtype=jnp.bfloat16))
    state = init_state(jax.jit(init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1))), optimizer(), jax.random.key(0))
    step = jax.jit(make_train_step(apply, networks.teacher()[1], optimizer()))
    state, metrics = step(state, networks.teacher_weights(), goal, networks.batch())
    chex.assert_type(jax.tree.leaves(state.params), jnp.float32)
    chex.assert_type(list(metrics.values()), jnp.float32)
    chex.assert_tree_all_finite((state.params, metrics))


@pytest.mark.parametrize("padding", [0, 5])
def test_evaluation_sums_are_exact_whatever_fills_up_the_batch(padding):
    apply = teacher
    weights, data = teacher_weights(), batch()
    own, _ = student()(*(fresh_state().params, fresh_state().model_state), data["inputs"], train=False)
    outputs, _ = apply(*weights, data["inputs"], train=False)
    logits = np.asarray(outputs.logits, np.float64)
    correct = (logits.argmax(-1) == np.asarray(data["labels"])).sum()
    entropy = (np.log(np.exp(logits).sum(-1)) - logits[np.arange(16), np.asarray(data["labels"])]).sum()
    agreeing = (logits.argmax(-1) == np.asarray(own.logits).argmax(-1)).sum()
    padded = {
        "inputs": jnp.concatenate([data["inputs"], jnp.full((padding, DIM), jnp.nan)]),
        "labels": jnp.concatenate([data["labels"], jnp.zeros(padding, data["labels"].dtype)]),
        "teacher": Outputs(jnp.concatenate([own.logits, jnp.full((padding, CLASSES), jnp.nan)]), {}),
        "mask": jnp.arange(16 + padding) < 16,
    }
    sums = jax.jit(make_eval_step(apply))(weights, padded)
    assert (sums["examples"], sums["correct"], sums["agreeing"]) == (16, correct, agreeing)
    np.testing.assert_allclose(sums["cross_entropy"], entropy, rtol=1e-5)


def test_a_step_with_a_teacher_apply_wants_the_teachers_weights():
    with pytest.raises(ValueError, match="teacher must be the teacher's Weights"):
        step_for()(fresh_state(), None, objective(), batch())
    assert isinstance(teacher_weights(), Weights)
    with pytest.raises(ValueError, match=r"teacher must be the teacher's Weights .*; got dict"):
        inspect.unwrap(teach)(teacher, {"params": teacher_weights().params}, batch())


def test_a_network_of_nans_gets_nothing_right():
    nothing = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), teacher_weights())
    outputs, _ = teacher(*nothing, batch()["inputs"], train=False)
    sums = make_eval_step(teacher)(nothing, batch() | {"teacher": outputs})
    assert (sums["examples"], sums["correct"], sums["agreeing"]) == (16, 0, 0)


def test_labels_of_another_kind_are_no_accuracy_and_no_error_where_no_term_reads_them():
    goal = weighted_sum(soft=(1.0, on_logits(soft_target_kl)))
    of_positions = batch() | {"labels": batch()["labels"][:, None]}
    _, metrics = jax.eval_shape(step_for(), fresh_state(), teacher_weights(), goal, of_positions)
    assert set(metrics) == {"loss", "soft", "soft_weight"}
    for labels in (batch()["labels"][:5], batch()["labels"][0]):
        with pytest.raises(
            ValueError, match=r'batch\["labels"\] must have one row for each example of batch\["inputs"\]'
        ):
            jax.eval_shape(step_for(), fresh_state(), teacher_weights(), goal, batch() | {"labels": labels})
