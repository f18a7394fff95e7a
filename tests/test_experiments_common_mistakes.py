"""The page of common mistakes: its code prints what it says, and the experiment's wrong forms are wrong as it says."""

import contextlib
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from experiments import _mistaken_forms as mistakes
from experiments import common_mistakes
from kdjax import Outputs, cross_entropy, losses

os.environ.setdefault("KERAS_BACKEND", "jax")
PAGE = (Path(__file__).parents[1] / "docs" / "common-mistakes.md").read_text()
BLOCKS = re.findall(r"## ([^\n]*)\n(?:(?!\n## ).)*?```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, flags=re.DOTALL)
STUDENT, TEACHER = 3.0 * jax.random.normal(jax.random.key(0), (2, 6, 5))
LABELS = jnp.array([0, 1, 0, 2, 1, 0])


def value_and_gradient(form, student=STUDENT):
    return jax.value_and_grad(lambda student: form(student).mean())(student)


def soft(form, temperature=4.0, student=STUDENT):
    return value_and_gradient(lambda student: form(student, TEACHER, temperature=temperature), student)


def test_every_section_has_its_numbers():
    assert len(BLOCKS) == 11
    assert PAGE.count("```python") == len(BLOCKS)


@pytest.mark.parametrize(("code", "printed"), [block[1:] for block in BLOCKS], ids=[block[0] for block in BLOCKS])
def test_the_page_prints_what_it_says(code, printed):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "common-mistakes.md", "exec"), {})
    number = r"-?\d+\.?\d*(?:e-?\d+)?"
    assert re.sub(number, "#", out.getvalue()) == re.sub(number, "#", printed)
    numbers = [np.array(re.findall(number, text), float) for text in (out.getvalue(), printed)]
    np.testing.assert_allclose(*numbers, rtol=1e-3, atol=1e-4)


def test_the_right_call_of_the_same_function_is_kdjaxs_loss():
    """What is wrong with the wrong forms is their arguments, and nothing else."""
    log_student, of_teacher = jax.nn.log_softmax(STUDENT / 4), jax.nn.softmax(TEACHER / 4)
    right = 16 * optax.losses.kl_divergence(log_student, of_teacher)
    np.testing.assert_allclose(right, losses.soft_target_kl(STUDENT, TEACHER, temperature=4.0), rtol=1e-5)


def test_log_probabilities_as_targets_hide_a_finite_gradient_behind_nan():
    value, gradient = soft(mistakes.log_probabilities_as_targets)
    assert np.isnan(value)
    assert np.isfinite(gradient).all()
    assert abs(gradient).max() > 0


def test_probabilities_as_logarithms_are_negative_and_do_not_rest_at_the_teacher():
    value, gradient = soft(mistakes.probabilities_as_logarithms, student=TEACHER)
    assert value < 0
    # It pulls the teacher's favourite further up than the teacher has it.
    assert (jnp.take_along_axis(gradient, TEACHER.argmax(axis=1)[:, None], axis=1) < 0).all()
    np.testing.assert_allclose(soft(losses.soft_target_kl, student=TEACHER)[1], 0, atol=1e-6)


@pytest.fixture
def keras():
    with jax.numpy_rank_promotion("allow"):
        found = pytest.importorskip("keras", reason="Keras is not installed")
        if not hasattr(found, "distillation"):
            pytest.skip(f"Keras {found.__version__} has no keras.distillation")
        yield found


def in_keras(keras, **keywords):
    """Keras's own loss with T = 4, as a function of the student's logits: the teacher comes first there."""
    loss = keras.distillation.LogitsDistillation(temperature=4.0, **keywords)
    return lambda student: loss.compute_loss(TEACHER, student)


def test_logits_as_probabilities_are_what_keras_does_unless_told_otherwise(keras):
    if keras.__version__ != "3.15.1":
        pytest.skip(f"the page and the experiment say it of Keras 3.15.1; this is {keras.__version__}: look again")
    for student in (STUDENT, TEACHER):
        ours, theirs = (
            soft(mistakes.logits_as_probabilities, student=student),
            value_and_gradient(in_keras(keras), student),
        )
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5, atol=1e-9)


def test_keras_with_an_instance_of_its_divergence_is_kdjaxs_loss_with_the_square_of_t(keras):
    for student in (STUDENT, TEACHER):
        theirs = value_and_gradient(in_keras(keras, loss=keras.losses.KLDivergence()), student)
        ours = soft(losses.soft_target_kl, student=student)
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-4, atol=1e-5)


def test_logits_as_probabilities_push_only_up_and_only_between_0_and_t():
    _, gradient = soft(mistakes.logits_as_probabilities)
    pushed = (STUDENT > 0) & (STUDENT < 4)
    assert {float(np.sign(z)) for z in STUDENT[~pushed]} == {-1.0, 1.0}  # some are below 0, some above T
    assert (gradient[pushed] < 0).all()
    assert not gradient[~pushed].any()
    assert not soft(mistakes.logits_as_probabilities, student=-jnp.abs(STUDENT))[1].any()


def test_logits_as_probabilities_are_negative_and_do_not_rest_at_the_teacher():
    value, gradient = soft(mistakes.logits_as_probabilities, student=TEACHER)
    assert float(value) == pytest.approx(0, abs=1e-6)
    assert gradient.any()
    # The best student says all classes at once: no term can be below t log t.
    of_teacher = jnp.clip(TEACHER / 4, 1e-7, 1)
    lowest, gradient = soft(mistakes.logits_as_probabilities, student=jnp.full_like(TEACHER, 5.0))
    assert lowest < 0
    assert float(lowest) == pytest.approx(float((of_teacher * jnp.log(of_teacher)).sum(axis=1).mean()), rel=1e-5)
    assert not gradient.any()


def test_without_the_square_the_gradient_shrinks_as_one_over_its_temperature_squared():
    for temperature in (2.0, 8.0, 32.0):
        wrong, right = (soft(form, temperature)[1] for form in (mistakes.without_square, losses.soft_target_kl))
        np.testing.assert_allclose(temperature**2 * wrong, right, rtol=1e-3, atol=1e-5)


def test_exchanged_arguments_are_the_reverse_divergence():
    np.testing.assert_allclose(
        mistakes.exchanged(STUDENT, TEACHER, temperature=4.0),
        losses.reverse_kl(STUDENT, TEACHER, temperature=4.0),
        rtol=1e-5,
    )


def test_softmax_twice_never_falls_below_its_floor_and_does_not_feel_a_sure_mistake():
    sure = 30.0 * jax.nn.one_hot(jnp.array([0]), 10)
    for label, wanted in ((0, np.log(np.e + 9) - 1), (1, np.log(np.e + 9))):
        batch = {"labels": jnp.array([label])}
        value, gradient = value_and_gradient(
            lambda z, batch=batch: mistakes.softmax_twice(Outputs(z, {}), None, batch), sure
        )
        assert float(value) == pytest.approx(wanted, abs=1e-5)
        np.testing.assert_allclose(gradient, 0, atol=1e-6)
    mistake = value_and_gradient(lambda z: cross_entropy(Outputs(z, {}), None, {"labels": jnp.array([1])}), sure)[1]
    assert abs(mistake).max() > 0.9


def test_the_teachers_choice_reads_no_label():
    outputs = Outputs(STUDENT, {}), Outputs(TEACHER, {})
    np.testing.assert_array_equal(
        mistakes.teachers_choice(*outputs, {"labels": LABELS}),
        cross_entropy(*outputs, {"labels": TEACHER.argmax(axis=1)}),
    )


def test_detached_attention_has_the_value_and_no_gradient():
    student, teacher = jax.random.normal(jax.random.key(1), (2, 3, 4, 4, 2))
    wrong, right = (
        value_and_gradient(lambda s, form=form: form(s, teacher), student)
        for form in (mistakes.detached_attention, losses.attention_transfer)
    )
    assert wrong[0] == right[0]
    assert not wrong[1].any()
    assert right[1].any()


def test_what_is_called_pkt_is_kernel_alignment():
    longer = STUDENT * jnp.arange(1.0, 7.0)[:, None]  # each example its own length
    np.testing.assert_allclose(losses.pkt(longer, TEACHER), losses.pkt(STUDENT, TEACHER), rtol=1e-4, atol=1e-7)
    alignments = [float(mistakes.alignment_called_pkt(s, TEACHER).mean()) for s in (longer, STUDENT)]
    assert abs(alignments[0] - alignments[1]) > 0.02


def test_the_masked_graph_is_infinite_and_its_mend_pushes_nothing_apart():
    value, gradient = value_and_gradient(lambda s: mistakes.masked_graph(s, TEACHER, LABELS))
    assert np.isposinf(value)
    assert np.isnan(gradient).any()
    mended = value_and_gradient(lambda s: mistakes.masked_graph(s, TEACHER, LABELS, epsilon=1e-8))
    assert np.isfinite(mended[1]).all()
    # Example 3 is alone in its class: nothing pulls at it, and nothing pushes it off.
    assert not mended[1][3].any()
    assert value_and_gradient(lambda s: losses.similarity_graph(s, TEACHER, LABELS))[1][3].any()
    # Units in the embedding's length: far along, the sigmoid is 1 and the gradient gone.
    far = value_and_gradient(lambda s: mistakes.masked_graph(s, TEACHER, LABELS, epsilon=1e-8), jnp.abs(10 * STUDENT))
    assert abs(far[1]).max() < 1e-6


@pytest.mark.parametrize("order", ["shuffled", "fixed", "sorted"])
def test_orders_are_what_they_are_called(order):
    labels = np.arange(70) % 10
    first, second = (common_mistakes.order_of(order, labels, 32, seed=0, epoch=epoch) for epoch in (0, 1))
    assert first.shape == (2, 32)
    assert (first == second).all() == (order != "shuffled")
    assert (np.diff(labels[first.ravel()]) >= 0).all() == (order == "sorted")


def test_a_short_run_writes_what_the_page_is_made_from(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(common_mistakes, "make_model", tiny.make_model)
    settings = common_mistakes.CommonMistakes(seeds=2, epochs=1, teacher_epochs=1, only="masked zero", out=tmp_path)
    for resume in (False, True):  # the second reads NaN, which JSON does not have, from the file
        common_mistakes.main(replace(settings, resume=resume))
        results = json.loads((tmp_path / "results.json").read_text())
        assert len(results["seeds"]) == 2
        assert set(results["seeds"][0]) == {"teacher", "weak teacher", "graph, log of a masked zero", "graph"}
        for record in results["seeds"]:
            assert record["graph"]["accuracy"] > 0
            assert record["graph, log of a masked zero"]["accuracy"] == 0
        assert "NaN in 2 of 2" in capsys.readouterr().out


def test_every_comparison_names_its_arms():
    named = {name for trial in mistakes.TRIALS for name in trial}
    assert named == set(mistakes.arms(4.0))
