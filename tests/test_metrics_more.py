"""Calibration and cost: against scikit-learn, the papers' formulas, and programs whose cost is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from jax import lax
from sklearn.metrics import brier_score_loss

from kdjax import (
    Outputs,
    Weights,
    cross_entropy,
    init_state,
    make_train_step,
    on_logits,
    schedules,
    weighted_sum,
)
from kdjax.losses import soft_target_kl
from kdjax.metrics import (
    _costs,
    accuracy,
    agreeing,
    brier_score,
    calibration_error,
    cost,
    finished,
    label_accuracy,
    latency,
    reliability,
    sums_of,
    top_k_accuracy,
)
from kdjax.objectives._counted import without_ignored
from kdjax.testing import strategies

MEASURES = {"error": calibration_error(5), "bins": reliability(5), "brier": brier_score()}


def measured(logits, labels, mask=None, measures=MEASURES):
    batch = {"labels": jnp.asarray(labels)} | ({} if mask is None else {"mask": jnp.asarray(mask)})
    return finished(measures, sums_of(measures, Outputs(jnp.asarray(logits), {}), None, batch))


def softmax(logits):
    shares = np.exp(np.float64(logits) - np.max(logits, axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def slow_error(logits, labels, bins):
    """Guo et al., eq. 3, bin by bin."""
    probabilities = softmax(logits)
    sure, right = probabilities.max(axis=-1), probabilities.argmax(axis=-1) == labels
    total = 0.0
    for number in range(bins):
        own = (sure > number / bins) & (sure <= (number + 1) / bins)
        if own.any():
            total += own.mean() * abs(right[own].mean() - sure[own].mean())
    return total


def test_calibration_error_is_the_papers_and_the_reliability_what_it_is_made_of():
    draw = np.random.default_rng(0)
    logits, labels = 2.0 * draw.normal(size=(500, 4)).astype(np.float32), draw.integers(0, 4, 500)
    found = measured(logits, labels)
    assert found["error"] == pytest.approx(slow_error(logits, labels, 5), abs=1e-6)
    sure, right, share = np.nan_to_num(found["bins"]).T
    assert np.sum(share * np.abs(sure - right)) == pytest.approx(found["error"], abs=1e-6)
    assert share.sum() == pytest.approx(1.0)


def test_brier_score_is_scikit_learns():
    draw = np.random.default_rng(1)
    logits, labels = 2.0 * draw.normal(size=(300, 4)).astype(np.float32), draw.integers(0, 4, 300)
    wanted = brier_score_loss(labels, softmax(logits), labels=range(4), scale_by_half=False)
    assert measured(logits, labels)["brier"] == pytest.approx(wanted, rel=1e-5)


def test_batches_and_tokens_are_summed_and_what_does_not_count_is_left_out():
    draw = np.random.default_rng(2)
    logits, labels = draw.normal(size=(6, 7, 4)).astype(np.float32), draw.integers(0, 4, (6, 7))
    mask = draw.random((6, 7)) < 0.7
    whole = measured(logits[mask], labels[mask])
    broken = np.where(mask[..., None], logits, np.nan)
    parts = [
        sums_of(MEASURES, Outputs(jnp.asarray(z), {}), None, {"labels": jnp.asarray(y), "mask": jnp.asarray(m)})
        for z, y, m in zip(np.split(broken, 3), np.split(labels, 3), np.split(mask, 3), strict=True)
    ]
    found = finished(MEASURES, jax.tree.map(lambda *some: sum(some), *parts))
    for name, value in whole.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


@given(logits=strategies.logits(4, 3), labels=strategies.labels(4, 3))
def test_they_stay_within_their_ends(logits, labels):
    found = measured(logits, labels)
    assert 0 <= found["error"] <= 1 + 1e-6
    assert 0 <= found["brier"] <= 2 + 1e-6
    assert found["bins"][:, 2].sum() == pytest.approx(1.0)


@pytest.mark.parametrize("logits", [[[np.nan, 0.0]], [[1.0, 0.0]]])
def test_nan_and_a_label_that_is_no_class_are_seen(logits):
    label = 0 if np.isnan(logits).any() else 5
    found = measured(logits, [label])
    assert np.isnan(found["error"])
    assert np.isnan(found["brier"])


LABELLED = {"accuracy": accuracy, "top-2": top_k_accuracy(2)}


@pytest.mark.parametrize("label", [-1, 4, 255])
def test_a_label_that_is_no_class_is_no_mistake_of_the_networks(label):
    logits = np.eye(4, dtype=np.float32)
    found = measured(logits, [0, 1, label, 0], measures=LABELLED)
    assert all(np.isnan(value) for value in found.values()), found
    assert measured(logits, [0, 1, label, 0], [1, 1, 0, 1], LABELLED)["accuracy"] == pytest.approx(2 / 3)
    labels = {"labels": jnp.asarray([0, 1, label, 0])}
    again = sums_of(LABELLED, Outputs(jnp.asarray(logits), {}), None, without_ignored(labels, label))
    assert (float(again["accuracy"]), float(again["accuracy_count"])) == (2, 3)


@pytest.mark.parametrize("ignored", [-100, 255])
def test_training_with_labels_that_are_ignored_keeps_its_accuracy(ignored):
    def network(params, model_state, inputs, *, train, rng=None):
        return inputs @ params, model_state

    step = make_train_step(network, None, optax.sgd(0.0), ignore_label=ignored)
    state = init_state(Weights(jnp.eye(4), {}), optax.sgd(0.0), jax.random.key(0))
    batch = {"inputs": jnp.eye(4), "labels": jnp.asarray([0, 1, ignored, 0])}
    goal = weighted_sum(labels=(1.0, cross_entropy))
    assert float(step(state, None, goal, batch)[1]["accuracy"]) == pytest.approx(2 / 3)
    masked = {**batch, "labels": jnp.asarray([0, 9, ignored, 0]), "mask": jnp.asarray([1, 0, 1, 1])}
    assert float(step(state, None, goal, masked)[1]["accuracy"]) == 0.5


def test_a_yes_or_no_label_that_is_nan_is_seen():
    assert np.isnan(measured([[-1.0, 1.0]], [[np.nan, 1.0]], measures={"right": label_accuracy()})["right"])


def test_nan_of_either_network_agrees_with_nothing():
    logits = jnp.asarray([[1.0, 0.0], [jnp.nan, 0.0], [0.0, 1.0]])
    whole = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    for student, teacher in ((logits, whole), (whole, logits), (logits, logits)):
        sums = sums_of({"same": agreeing}, Outputs(student, {}), Outputs(teacher, {}), {})
        assert finished({"same": agreeing}, sums)["same"] == pytest.approx(2 / 3)


def test_bins_that_are_none_are_named():
    for make in (calibration_error, reliability):
        with pytest.raises(ValueError, match="bins must be a whole number of 1 or more; got 0"):
            make.__wrapped__(0)


def dense(params, model_state, inputs, *, train, rng=None):
    return inputs @ params["kernel"], model_state


WEIGHTS = Weights({"kernel": np.ones((64, 10), np.float32)}, {})


def test_cost_is_what_the_products_are():
    inputs = jax.ShapeDtypeStruct((32, 64), np.float32)
    found = cost(dense, WEIGHTS, inputs)
    assert found.flops == 2 * 32 * 64 * 10
    assert found.weight_bytes == 64 * 10 * 4
    assert found.bytes_moved >= 4 * (32 * 64 + 64 * 10 + 32 * 10)


@pytest.mark.parametrize("inside", [jax.jit, jax.checkpoint, lambda own: lambda *two: lax.cond(True, own, own, *two)])
@pytest.mark.parametrize("loop", ["scan", "while"])
def test_of_a_loop_no_operations_are_counted(loop, inside):
    def repeated(weights, inputs):
        if loop == "scan":
            return lax.scan(lambda found, own: (found @ own, None), inputs, weights)[0]
        return lax.while_loop(lambda found: found.sum() < 9, lambda found: found @ weights[0], inputs)

    def looped(params, model_state, inputs, *, train, rng=None):
        return inside(repeated)(params, inputs), model_state

    found = cost(looped, Weights(np.ones((10, 8, 8), np.float32), {}), np.ones((1, 8), np.float32))
    assert np.isnan(found.flops)
    assert np.isnan(found.bytes_moved)
    assert found.weight_bytes == 10 * 8 * 8 * 4


def test_latency_times_the_calls_it_says_and_a_larger_network_takes_longer():
    large = Weights({"kernel": np.ones((1500, 1500), np.float32)}, {})
    one = latency(dense, WEIGHTS, np.ones((1, 64), np.float32), calls=30)
    many = latency(dense, large, np.ones((512, 1500), np.float32), calls=5, warm_up=2)
    assert (one.batch, one.calls, many.batch, many.calls) == (1, 30, 512, 5)
    assert one.p05_ms <= one.median_ms <= one.p95_ms
    assert one.per_second == pytest.approx(1e3 / one.median_ms)
    assert many.p05_ms > one.median_ms
    with pytest.raises(ValueError, match="calls must be a whole number of 1 or more; got 0"):
        latency(dense, WEIGHTS, np.ones((1, 64), np.float32), calls=0)
    with pytest.raises(ValueError, match="seconds must be"):
        latency(dense, WEIGHTS, np.ones((1, 64), np.float32), seconds=0.0)


def test_latency_begins_no_call_after_its_time_and_times_three_at_least(monkeypatch):
    ticks = iter(range(10_000))
    monkeypatch.setattr(_costs.time, "perf_counter", lambda: float(next(ticks)))  # a call takes one second
    one = np.ones((1, 64), np.float32)
    for seconds, calls in ((0.5, 3), (12.0, 3), (15.0, 6), (1000.0, 20), (None, 20)):
        found = latency(dense, WEIGHTS, one, calls=20, seconds=seconds)
        assert (found.calls, found.median_ms) == (calls, 1000.0), seconds
    assert latency(dense, WEIGHTS, one, calls=1, warm_up=0, seconds=0.5).calls == 1


def test_a_teacher_with_more_classes_may_choose_one_that_the_student_lacks():
    student, teacher = jnp.array([[2.0, 1.0], [0.0, 1.0]]), jnp.array([[0.0, 1.0, 9.0], [0.0, 1.0, 0.0]])
    found = agreeing.values(Outputs(student, {}), Outputs(teacher, {}), {})
    assert found.tolist() == [0.0, 1.0]


def test_a_measure_with_a_schedule_is_refused_since_an_evaluation_has_no_step():
    outputs = Outputs(jnp.eye(3), {})
    term = on_logits(soft_target_kl, temperature=schedules.linear(4.0, 1.0, steps=10))
    with pytest.raises(ValueError, match="The measure 'soft' must have numbers in the place of schedules"):
        sums_of({"soft": term}, outputs, outputs, {})
    sums_of({"soft": schedules.at(term, 3)}, outputs, outputs, {})
