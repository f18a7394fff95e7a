"""Terms that take their arrays from places: any number of them, from either network or from the batch."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dense import total

from kdjax import (
    Outputs,
    Shared,
    Weights,
    computed,
    cross_entropy,
    init_state,
    make_train_step,
    on_feature,
    on_logits,
    on_outputs,
    scaled,
    schedules,
    weighted_sum,
)
from kdjax.losses import (
    decoupled_kd,
    fsp,
    hint,
    overhaul,
    similarity_distribution,
    soft_target_kl,
    top_k_kl,
    variational_information,
)


def outputs(seed):
    keys = jax.random.split(jax.random.key(seed), 4)
    features = {
        "stage1": jax.random.normal(keys[0], (6, 4, 4, 3)),
        "stage2": jax.random.normal(keys[1], (6, 4, 4, 5)),
        "embedding": jax.random.normal(keys[2], (6, 7)),
    }
    return Outputs(jax.random.normal(keys[3], (6, 10)), features)


STUDENT, TEACHER = outputs(1), outputs(2)
LABELS = jnp.arange(6)


def test_four_arrays_reach_a_loss_in_their_order():
    term = on_outputs(fsp, "student.stage1", "student.stage2", "teacher.stage1", "teacher.stage2")
    expected = fsp(*(who.features[name] for who in (STUDENT, TEACHER) for name in ("stage1", "stage2")))
    np.testing.assert_array_equal(term(STUDENT, TEACHER, {}), expected)
    to_itself = on_outputs(fsp, "student.stage1", "student.stage2", "student.stage1", "student.stage2")
    np.testing.assert_array_equal(to_itself(STUDENT, TEACHER, {}), np.zeros(6))
    assert (expected > 0).all()


def test_arrays_may_come_from_the_batch():
    values, indices = jax.lax.top_k(jax.nn.log_softmax(TEACHER.logits), 3)
    batch = {"top_values": values, "top_indices": indices}
    term = on_outputs(top_k_kl, "student.logits", "batch.top_values", "batch.top_indices", temperature=2.0)
    expected = top_k_kl(STUDENT.logits, values, indices, temperature=2.0)
    np.testing.assert_array_equal(term(STUDENT, None, batch), expected)
    assert jax.tree.leaves(term) == [2.0]


def test_detached_is_the_student_without_gradient():
    def product(first, second):
        return jnp.sum(first * second, axis=-1)

    def total(logits, place):
        return on_outputs(product, "student.logits", place)(Outputs(logits, {}), None, {}).sum()

    slope = jax.grad(total)
    np.testing.assert_allclose(slope(STUDENT.logits, "detached.logits"), STUDENT.logits, rtol=1e-6)
    np.testing.assert_allclose(slope(STUDENT.logits, "student.logits"), 2 * STUDENT.logits, rtol=1e-6)
    with pytest.raises(ValueError, match=r"The student has no feature 'stage3'; it has .*Did you mean 'stage"):
        on_outputs(hint, "student.stage1", "detached.stage3")(STUDENT, None, {})


def test_an_array_may_be_taken_by_name():
    student = Outputs(STUDENT.logits, {**STUDENT.features, "raw": jnp.linspace(-1.0, 1.0, 7)})
    term = on_outputs(variational_information, "student.embedding", "teacher.embedding", raw_variance="student.raw")
    expected = variational_information(
        student.features["embedding"], TEACHER.features["embedding"], raw_variance=student.features["raw"]
    )
    np.testing.assert_array_equal(term(student, TEACHER, {}), expected)
    assert jax.tree.leaves(term) == []


def test_labels_come_by_themselves_unless_a_place_gives_them():
    of_batch = on_outputs(decoupled_kd, "student.logits", "teacher.logits")
    placed = on_outputs(decoupled_kd, "student.logits", "teacher.logits", "batch.others")
    batch = {"labels": LABELS, "others": LABELS + 1}
    np.testing.assert_array_equal(
        of_batch(STUDENT, TEACHER, batch), decoupled_kd(STUDENT.logits, TEACHER.logits, LABELS)
    )
    np.testing.assert_array_equal(
        placed(STUDENT, TEACHER, batch), decoupled_kd(STUDENT.logits, TEACHER.logits, LABELS + 1)
    )


@pytest.mark.parametrize(
    ("term", "places"),
    [
        (on_logits(soft_target_kl), ("student.logits", "teacher.logits")),
        (on_logits(decoupled_kd), ("student.logits", "teacher.logits", "batch.labels")),
        (
            on_outputs(decoupled_kd, "student.logits", "teacher.logits", "batch.others"),
            ("student.logits", "teacher.logits", "batch.others"),
        ),
        (on_feature(overhaul, "a", margin="batch.margin"), ("student.a", "teacher.a", "batch.margin")),
        (computed("crd"), ("student.crd",)),
        (
            scaled(on_feature(hint, "a", teacher="b"), by="batch.sure"),
            ("batch.sure", "student.a", "teacher.b"),
        ),
        (scaled(scaled(computed("crd"), by="student.c"), by="batch.d"), ("batch.d", "student.c", "student.crd")),
        (scaled(cross_entropy, by="batch.sure"), ("batch.sure", "student.logits", "batch.labels")),
    ],
)
def test_a_term_shows_the_places_that_it_reads(term, places):
    assert term.places == places
    assert jax.tree.unflatten(jax.tree.structure(term), jax.tree.leaves(term)).places == places


def test_on_logits_is_a_short_form():
    term = on_outputs(soft_target_kl, "student.logits", "teacher.logits", temperature=3.0)
    assert jax.tree.structure(term) == jax.tree.structure(on_logits(soft_target_kl, temperature=3.0))


def test_a_value_worked_out_already_is_a_term():
    student = Outputs(STUDENT.logits, {"crd": jnp.arange(6.0)})
    scores = weighted_sum(crd=(2.0, computed("crd")))(student, None, {}, 0)
    np.testing.assert_array_equal(total(scores), 2.0 * np.arange(6.0))
    with pytest.raises(ValueError, match=r"student has no feature 'crd'; it has \['embedding', 'stage1', 'stage2'\]"):
        computed("crd")(STUDENT, None, {})
    with pytest.raises(ValueError, match=r"student has no feature 'stage3'.* Did you mean 'stage.'"):
        on_feature(hint, "stage3")(STUDENT, TEACHER, {})


def test_such_a_term_is_a_value_like_the_others():
    def summed(objective):
        return total(objective(Outputs(STUDENT.logits, {"crd": jnp.arange(6.0)}), None, {}, 0)).sum()

    compiled = jax.jit(chex.assert_max_traces(summed, n=1))
    assert [float(compiled(weighted_sum(crd=(weight, computed("crd"))))) for weight in (1.0, 2.0, 3.0)] == [
        15,
        30,
        45,
    ]
    chex.clear_trace_counter()


def test_a_pair_of_numbers_is_two_leaves():
    """Searched, scheduled and differentiated as any other number is."""
    teacher = Outputs(TEACHER.logits, {**TEACHER.features, "queue": jnp.eye(7)})
    places = ("student.embedding", "teacher.embedding", "teacher.queue")
    term = on_outputs(similarity_distribution, *places, temperatures=(schedules.linear(0.2, 0.4, steps=10), 0.1))
    assert len(jax.tree.leaves(term)) == 4
    at_the_end = total(weighted_sum(own=(1.0, term))(STUDENT, teacher, {}, 10))
    expected = similarity_distribution(
        STUDENT.features["embedding"], TEACHER.features["embedding"], jnp.eye(7), temperatures=(0.4, 0.1)
    )
    np.testing.assert_allclose(at_the_end, expected, rtol=1e-5)


def test_a_loss_that_returns_more_than_its_values_is_sent_to_its_connector():
    def term(student, teacher, batch):
        return jnp.zeros(6), "the next bank"

    with pytest.raises(ValueError, match=r"'own' must return one array, shape \(6,\); got a tuple.*contrast"):
        weighted_sum(own=(1.0, term))(STUDENT, TEACHER, {}, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: on_outputs(fsp, "student.stage1"),
            "fsp needs student_bottom, student_top, teacher_bottom, teacher_top; got the arrays student.stage1",
        ),
        (
            lambda: on_outputs(hint, "student.a", "teacher.a", "teacher.b"),
            "hint needs student, teacher; got .*too many",
        ),
        (lambda: on_feature(overhaul, "stage1"), "overhaul needs student, teacher, margin; got .*'margin'"),
        (lambda: on_outputs(fsp), "on_outputs needs the places of its arrays"),
        (lambda: on_outputs(fsp, "stage1"), r"A place must be .* got 'stage1' for fsp"),
        (lambda: on_outputs(fsp, "pupil.stage1"), "got 'pupil.stage1' for fsp"),
        (lambda: on_outputs(fsp, "student."), r"got 'student\.' for fsp"),
        (
            lambda: on_outputs(top_k_kl, "student.logits", "batch.v", "batch.i", temperature=-1.0),
            "temperature must be a finite number greater than 0; got -1.0",
        ),
        (
            lambda: on_outputs(
                similarity_distribution, "student.a", "teacher.a", "teacher.queue", temperatures=(0.1, 0.0)
            ),
            r"temperatures\[1\] must be a finite number greater than 0; got 0.0",
        ),
    ],
)
def test_what_is_wrong_is_said_when_the_term_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_missing_is_said_when_the_term_meets_the_outputs():
    term = on_outputs(top_k_kl, "student.logits", "batch.top_values", "batch.top_indices")
    with pytest.raises(ValueError, match=r'batch must have "top_values"; it has \[\'labels\'\]'):
        term(STUDENT, None, {"labels": LABELS})
    with pytest.raises(ValueError, match="fsp compares the student with a teacher, and this step has none"):
        on_outputs(fsp, "student.stage1", "student.stage2", "teacher.stage1", "teacher.stage2")(STUDENT, None, {})


def test_a_learnt_scale_has_no_slope_from_a_label_that_does_not_count():
    """It is the value, NaN there: in the next update the scale itself was NaN."""

    def network(params, model_state, inputs, *, train, rng=None):
        return Outputs(inputs @ params["k"], {"how": Shared(params["how"])}), model_state

    def error(student, teacher, batch):
        return jnp.square(student.logits[:, 0] - batch["labels"])

    optimizer = optax.sgd(0.1)
    state = init_state(Weights({"k": jnp.ones((2, 1)), "how": jnp.float32(1.0)}, {}), optimizer, jax.random.key(0))
    objective = weighted_sum(error=(1.0, scaled(error, by="student.how")))
    batch = {"inputs": jnp.ones((3, 2)), "labels": jnp.array([1.0, 0.0, jnp.nan]), "mask": jnp.array([1, 1, 0])}
    state, metrics = make_train_step(network, None, optimizer)(state, None, objective, batch)
    assert float(metrics["loss"]) == 2.5
    assert float(state.params["how"]) == pytest.approx(1 - 0.1 * 2.5)
