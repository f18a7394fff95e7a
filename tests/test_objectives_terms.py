"""The objective: a value, a pytree, numbers that move without another compilation, errors that say what is wrong."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dense import total

from kdjax import Outputs, cross_entropy, on_feature, on_logits, schedules, weighted_sum
from kdjax.losses import attention_transfer, hint, jensen_shannon, logit_mse, overhaul, rkd_angle, soft_target_kl

KEY = jax.random.key(0)


def outputs(seed, batch=6):
    keys = jax.random.split(jax.random.key(seed), 2)
    features = {"stage1": jax.random.normal(keys[0], (batch, 4, 4, 3)), "embedding": jnp.ones((batch, 5))}
    return Outputs(jax.random.normal(keys[1], (batch, 10)), features)


STUDENT, TEACHER = outputs(1), outputs(2)
BATCH = {"labels": jnp.arange(6)}


def weighted_loss(student, teacher, labels, *, strength=2.0):
    return strength * jnp.square(student - teacher).sum(-1) * (labels >= 0)


def test_a_weighted_sum_is_the_sum_of_its_terms_by_hand():
    objective = weighted_sum(
        labels=(0.3, cross_entropy),
        soft=(0.7, on_logits(soft_target_kl, temperature=4.0)),
        attention=(10, on_feature(attention_transfer, "stage1")),
        own=(0.5, lambda student, teacher, batch: jnp.abs(student.logits - teacher.logits).max(-1)),
    )
    scores = objective(STUDENT, TEACHER, BATCH, 0)
    logits = np.asarray(STUDENT.logits, np.float64)
    by_hand = np.log(np.exp(logits).sum(-1)) - logits[np.arange(6), np.arange(6)]
    np.testing.assert_allclose(scores.terms["labels"], by_hand, rtol=1e-5)
    np.testing.assert_allclose(scores.terms["soft"], soft_target_kl(STUDENT.logits, TEACHER.logits, temperature=4.0))
    expected = sum(
        weight * scores.terms[name]
        for name, weight in [("labels", 0.3), ("soft", 0.7), ("attention", 10.0), ("own", 0.5)]
    )
    np.testing.assert_allclose(total(scores), expected, rtol=1e-6)
    assert {name: round(float(weight), 6) for name, weight in scores.weights.items()} == {
        "labels": 0.3,
        "soft": 0.7,
        "attention": 10.0,
        "own": 0.5,
    }


def test_numbers_are_leaves_and_settings_are_not():
    term = on_feature(rkd_angle, "embedding", block=2)
    assert jax.tree.leaves(term) == []
    assert jax.tree.leaves(on_logits(soft_target_kl, temperature=np.float64(3))) == [3.0]
    assert jax.tree.leaves(on_logits(weighted_loss, strength=3)) == [3.0]
    assert jax.tree.structure(term) != jax.tree.structure(on_feature(rkd_angle, "embedding", block=3))


def test_a_search_over_weights_and_temperature_compiles_once():
    calls = chex.assert_max_traces(lambda objective, step: total(objective(STUDENT, TEACHER, BATCH, step)).mean(), n=1)
    compiled = jax.jit(calls)
    values = set()
    for number, temperature in enumerate([1, 2.5, np.float32(4.0), np.float64(8.0), np.int64(9)]):
        objective = weighted_sum(
            labels=(0.1 * number, cross_entropy), soft=(1.0, on_logits(soft_target_kl, temperature=temperature))
        )
        values.add(round(float(compiled(objective, number)), 4))
    assert len(values) == 5
    chex.clear_trace_counter()


def test_an_objective_can_be_vmapped_and_differentiated():
    def value(temperature):
        objective = weighted_sum(soft=(1.0, on_logits(soft_target_kl, temperature=temperature)))
        return total(objective(STUDENT, TEACHER, BATCH, 0)).mean()

    temperatures = jnp.array([1.0, 3.0, 6.0])
    np.testing.assert_allclose(jax.vmap(value)(temperatures), [value(float(t)) for t in temperatures], rtol=1e-5)
    slope = jax.grad(value)(3.0)
    np.testing.assert_allclose(slope, (value(3.01) - value(2.99)) / 0.02, rtol=1e-2)
    objective = weighted_sum(soft=(1.0, on_logits(soft_target_kl, temperature=4.0)))
    slopes = jax.grad(lambda goal: total(goal(STUDENT, TEACHER, BATCH, 0)).mean())(objective)
    np.testing.assert_allclose(slopes.weights["soft"], value(4.0), rtol=1e-6)


@pytest.mark.parametrize(
    "schedule", [schedules.linear(1.0, 3.0, steps=10), optax.linear_schedule(1.0, 3.0, 10), lambda step: 1.0 + step / 5]
)
def test_weights_and_temperatures_may_be_schedules(schedule):
    objective = weighted_sum(soft=(schedule, on_logits(soft_target_kl, temperature=schedule)))
    for step, value in [(0, 1.0), (5, 2.0), (10, 3.0)]:
        scores = jax.jit(lambda goal, step: goal(STUDENT, TEACHER, BATCH, step))(objective, step)
        expected = value * soft_target_kl(STUDENT.logits, TEACHER.logits, temperature=value)
        np.testing.assert_allclose(total(scores), expected, rtol=1e-5)
        np.testing.assert_allclose(scores.weights["soft"], value, rtol=1e-6)


def test_a_schedules_numbers_move_without_a_compilation():
    compiled = jax.jit(chex.assert_max_traces(lambda goal, step: total(goal(STUDENT, TEACHER, BATCH, step)), n=1))
    for end in (2.0, 3.0, 4.0):
        compiled(weighted_sum(labels=(schedules.cosine(1.0, end, steps=int(end)), cross_entropy)), 3)
    chex.clear_trace_counter()
    assert compiled._cache_size() == 1


def test_a_hyper_parameter_may_be_one_number_a_channel():
    margin = jnp.array([-0.5, -0.1, -1.0])
    term = on_feature(overhaul, "stage1", margin=margin)
    np.testing.assert_array_equal(jax.tree.leaves(term)[0], margin)
    expected = overhaul(STUDENT.features["stage1"], TEACHER.features["stage1"], margin=margin)
    np.testing.assert_array_equal(term(STUDENT, TEACHER, BATCH), expected)
    with pytest.raises(ValueError, match=r"margin must have shape \(3,\), one number per channel"):
        on_feature(overhaul, "stage1", margin=jnp.zeros(7))(STUDENT, TEACHER, BATCH)


def test_labels_reach_losses_that_ask_for_them():
    scores = weighted_sum(own=(1.0, on_logits(weighted_loss)))(STUDENT, TEACHER, BATCH, 0)
    np.testing.assert_allclose(total(scores), weighted_loss(STUDENT.logits, TEACHER.logits, BATCH["labels"]))


def test_student_and_teacher_features_may_have_different_names():
    teacher = Outputs(TEACHER.logits, {"deep": TEACHER.features["stage1"]})
    term = on_feature(hint, "stage1", teacher="deep")
    np.testing.assert_allclose(
        term(STUDENT, teacher, BATCH), hint(STUDENT.features["stage1"], TEACHER.features["stage1"])
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: weighted_sum(), "needs at least one term"),
        (lambda: weighted_sum(labels=cross_entropy), "labels must be a pair"),
        (
            lambda: weighted_sum(labels=(float("nan"), cross_entropy)),
            "weight of labels must be a finite number; got nan",
        ),
        (lambda: weighted_sum(labels=("1", cross_entropy)), "weight of labels must be a number or a function"),
        (lambda: weighted_sum(loss=(1.0, cross_entropy)), "'loss' is taken"),
        (lambda: weighted_sum(soft_weight=(1.0, cross_entropy)), "'soft_weight' is taken"),
        (
            lambda: on_logits(soft_target_kl, temperature=0.0),
            "temperature must be a finite number greater than 0; got 0.0",
        ),
        (lambda: on_logits(soft_target_kl, temperature=float("inf")), "temperature must be a finite number"),
        (lambda: on_logits(soft_target_kl, temprature=4.0), "Did you mean 'temperature'"),
        (lambda: on_logits(logit_mse, temperature=4.0), "A hyper-parameter of logit_mse"),
        (lambda: schedules.linear(1.0, 2.0, steps=0), "steps must be a finite number greater than 0"),
        (lambda: schedules.staircase(float("nan"), factor=0.5, every=2), "start must be a finite number"),
    ],
)
def test_what_is_wrong_is_said_when_the_objective_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("term", "teacher", "message"),
    [
        (on_feature(hint, "stage9"), TEACHER, r"student has no feature 'stage9'; it has \['embedding', 'stage1'\]"),
        (on_feature(hint, "stage1", teacher="top"), TEACHER, "teacher has no feature 'top'"),
        (on_logits(soft_target_kl), None, "soft_target_kl compares the student with a teacher, and this step has none"),
        (
            lambda student, teacher, batch: jnp.zeros(()),
            TEACHER,
            r"'own' must return one number per example.*got shape \(\)",
        ),
    ],
)
def test_what_is_wrong_is_said_when_the_objective_meets_the_outputs(term, teacher, message):
    with pytest.raises(ValueError, match=message):
        weighted_sum(own=(1.0, term))(STUDENT, teacher, BATCH, 0)


def test_labels_of_the_wrong_kind_are_refused():
    with pytest.raises(ValueError, match=r'batch\["labels"\] must be whole class numbers of shape \(6,\)'):
        cross_entropy(STUDENT, None, {"labels": jnp.ones(6)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: on_logits(jensen_shannon, beta=7.0), r"beta must lie between 0\.0 and 1\.0; got 7\.0"),
        (lambda: on_feature(attention_transfer, "stage1", power=-2.0), "power must be a finite number greater than 0"),
        (lambda: on_feature(rkd_angle, "embedding", block=0), "block must be a whole number"),
        (
            lambda: on_logits(soft_target_kl, temperature=schedules.linear(4.0, 0.0, steps=10)),
            r"temperature must be a finite number greater than 0; got 0\.0, at step 10\.",
        ),
        (lambda: on_logits(soft_target_kl, temperature=lambda step: -1.0 - step), "temperature must be .* got -1.0"),
        (lambda: on_logits(soft_target_kl, temperature="4"), "temperature must be a number or a function of the step"),
        (lambda: on_logits(soft_target_kl, temperature=True), "temperature must be a number or a function of the step"),
        (lambda: weighted_sum(own=(jnp.ones(6), cross_entropy)), r"weight of own must be one number; got shape \(6,\)"),
        (lambda: weighted_sum(own=(lambda step: jnp.ones(6), cross_entropy)), r"must be one number; got shape \(6,\)"),
    ],
)
def test_a_losss_own_checks_speak_when_the_term_is_made(make, message):
    """Under jit its numbers are traced, and nothing could be checked any more."""
    with pytest.raises(ValueError, match=message):
        make()


def test_a_label_that_is_no_class_is_seen():
    values = cross_entropy(STUDENT, None, {"labels": jnp.array([-1, 0, 9, 10, 3, 4])})
    np.testing.assert_array_equal(np.isnan(values), [True, False, False, True, False, False])


@pytest.mark.parametrize(
    ("dtype", "classes"), [("uint8", 256), ("uint8", 300), ("int8", 128), ("int8", 200), ("uint16", 65536)]
)
def test_narrow_labels_are_the_same_class_numbers_as_wide_ones(dtype, classes):
    logits = jax.random.normal(KEY, (4, classes))
    labels = np.array([0, 1, 100, min(np.iinfo(dtype).max, classes - 1)])
    values = [cross_entropy(Outputs(logits, {}), None, {"labels": labels.astype(kind)}) for kind in (dtype, "int32")]
    assert bool(jnp.isfinite(values[1]).all())
    chex.assert_trees_all_equal(*values)


def test_a_label_beyond_32_bits_is_no_class():
    labels = np.array([1, 2**32 + 1, -(2**40), 2**31])
    values = cross_entropy(Outputs(jnp.zeros((4, 3)), {}), None, {"labels": labels})
    assert jnp.isnan(values).tolist() == [False, True, True, True]


def test_labels_that_are_missing_are_named():
    with pytest.raises(ValueError, match=r"batch must have \"labels\"; it has \['inputs'\]"):
        weighted_sum(own=(1.0, on_logits(weighted_loss)))(STUDENT, TEACHER, {"inputs": jnp.zeros(6)}, 0)


def test_the_numbers_of_a_schedule_have_gradients():
    def value(goal):
        return total(goal(STUDENT, TEACHER, BATCH, 5)).mean()

    goal = weighted_sum(soft=(schedules.linear(4, 2, steps=10), on_logits(soft_target_kl)))
    slopes = jax.grad(value)(goal)
    np.testing.assert_allclose(slopes.weights["soft"].numbers[0], 0.5 * value(goal) / 3.0, rtol=1e-5)
