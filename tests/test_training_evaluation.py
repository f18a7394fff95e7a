"""What an evaluation measures: as scikit-learn does, whatever batch size, mask, devices and kind of labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, jaccard_score, log_loss, top_k_accuracy_score

from kdjax import Outputs, Weights, on_feature, scaled
from kdjax.losses import logit_mse, similarity_graph
from kdjax.metrics import (
    Measure,
    accuracy,
    agreeing,
    class_iou,
    label_accuracy,
    mean_iou,
    perplexity,
    top_k_accuracy,
)
from kdjax.objectives import binary_cross_entropy, cross_entropy, squared_error
from kdjax.training import data_mesh, make_eval_step, make_evaluation, shard_map_step

CLASSES, TIME, EXAMPLES = 5, 3, 22
NOTHING = Weights({}, {})


def said(params, model_state, inputs, *, train, rng=None):
    """The logits are the inputs."""
    return inputs, model_state


def data(*positions, seed=0):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(EXAMPLES, *positions, CLASSES)).astype(np.float32)
    return {"inputs": logits, "labels": rng.integers(0, CLASSES, (EXAMPLES, *positions)).astype(np.int32)}


MEASURES = {
    "accuracy": accuracy,
    "top-2": top_k_accuracy(2),
    "perplexity": perplexity,
    "mean_iou": mean_iou(),
    "class_iou": class_iou(),
    "cross_entropy": cross_entropy,
}


def by_scikit_learn(logits, labels):
    logits, labels = logits.reshape(-1, CLASSES), labels.reshape(-1)
    chosen, shares = logits.argmax(-1), np.asarray(jax.nn.softmax(logits.astype(np.float64)))
    loss = log_loss(labels, shares / shares.sum(-1, keepdims=True), labels=range(CLASSES))
    each = jaccard_score(labels, chosen, average=None, labels=range(CLASSES))  # every class occurs
    return {
        "accuracy": accuracy_score(labels, chosen),
        "top-2": top_k_accuracy_score(labels, logits, k=2, labels=range(CLASSES)),
        "perplexity": np.exp(loss),
        "mean_iou": np.nanmean(each),
        "class_iou": each,
        "cross_entropy": loss,
    }


def close(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("positions", [(), (TIME,), (2, 2)], ids=["examples", "tokens", "pixels"])
@pytest.mark.parametrize("batch_size", [22, 4])
def test_measures_are_scikit_learns(positions, batch_size):
    arrays = data(*positions)
    found = make_evaluation(said, measures=MEASURES)(NOTHING, arrays, batch_size=batch_size)
    close(found, by_scikit_learn(arrays["inputs"], arrays["labels"]))


@pytest.mark.parametrize("rubbish", [0.0, np.nan])
def test_what_is_left_out_is_not_measured(rubbish):
    arrays = data(TIME)
    mask = np.random.default_rng(1).random((EXAMPLES, TIME)) < 0.5
    broken = np.where(mask[..., None], arrays["inputs"], rubbish).astype(np.float32)
    found = make_evaluation(said, measures=MEASURES)(NOTHING, {**arrays, "inputs": broken, "mask": mask}, batch_size=4)
    close(found, by_scikit_learn(arrays["inputs"][mask], arrays["labels"][mask]))
    ignored = {**arrays, "labels": np.where(mask, arrays["labels"], 255).astype(np.uint8)}
    again = make_evaluation(said, measures=MEASURES, ignore_label=255)(NOTHING, ignored, batch_size=4)
    close(again, by_scikit_learn(arrays["inputs"][mask], arrays["labels"][mask]))


def test_agreement_counts_all_and_accuracy_what_has_a_label():
    arrays, other = data(TIME), data(TIME, seed=7)["inputs"]
    known = np.arange(EXAMPLES * TIME).reshape(EXAMPLES, TIME) % 2 == 0
    labels = np.where(known, arrays["labels"], -100)
    arrays = {**arrays, "labels": labels, "teacher": Outputs(jnp.asarray(other), {})}
    found = make_evaluation(said, ignore_label=-100)(NOTHING, arrays, batch_size=7)
    chosen = arrays["inputs"].argmax(-1)
    np.testing.assert_allclose(found["agreement"], np.mean(chosen == other.argmax(-1)), rtol=1e-6)
    np.testing.assert_allclose(found["accuracy"], np.mean(chosen[known] == labels[known]), rtol=1e-6)
    alone = make_evaluation(said, measures={"agreement": agreeing})(
        NOTHING, {k: arrays[k] for k in ("inputs", "teacher")}
    )
    np.testing.assert_allclose(alone["agreement"], found["agreement"], rtol=1e-6)


def test_sums_over_devices_are_those_of_one():
    arrays = data(TIME)
    arrays = {name: array[:20] for name, array in arrays.items()} | {"mask": np.arange(60).reshape(20, TIME) % 4 > 0}
    wanted = jax.jit(make_eval_step(said, measures=MEASURES))(NOTHING, arrays)
    mesh = data_mesh()
    step = make_eval_step(said, measures=MEASURES, axis_name="data")
    found = shard_map_step(lambda weights, teacher, objective, batch: step(weights, batch), mesh)(
        NOTHING, None, None, arrays
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, wanted)


def test_several_labels_and_numbers():
    rng = np.random.default_rng(2)
    logits, several = rng.normal(size=(2, 9, 4)).astype(np.float32)
    several = (several > 0).astype(np.int32)
    arrays = {"inputs": logits, "labels": several}
    measures = {"right": label_accuracy(), "loss": binary_cross_entropy}
    found = make_evaluation(said, measures=measures)(NOTHING, arrays, batch_size=2)
    np.testing.assert_allclose(found["right"], np.mean((logits > 0) == several), rtol=1e-6)
    shares = 1 / (1 + np.exp(-logits))
    by_hand = -(several * np.log(shares) + (1 - several) * np.log(1 - shares)).sum(-1).mean()
    np.testing.assert_allclose(found["loss"], by_hand, rtol=1e-5)
    targets = rng.normal(size=(9, 4)).astype(np.float32)
    found = make_evaluation(said, measures={"mse": squared_error})(NOTHING, {"inputs": logits, "labels": targets})
    np.testing.assert_allclose(found["mse"], np.mean((logits - targets) ** 2), rtol=1e-5)


def test_a_class_that_is_none_is_seen_and_one_that_never_occurs_is_nan():
    arrays = {"inputs": np.eye(3, dtype=np.float32)[[0, 0, 1]], "labels": np.array([0, 1, 1])}
    evaluate = make_evaluation(said, measures={"class_iou": class_iou(), "mean_iou": mean_iou()})
    found = evaluate(NOTHING, arrays)
    np.testing.assert_array_equal(found["class_iou"], [0.5, 0.5, np.nan])
    assert found["mean_iou"] == 0.5
    broken = evaluate(NOTHING, {**arrays, "labels": np.array([0, 1, 7])})
    assert np.isnan(broken["class_iou"]).all()
    assert np.isnan(broken["mean_iou"])


def test_a_measure_of_ones_own_and_one_that_counts_nothing():
    sure = Measure(lambda student, teacher, batch: student.logits.max(-1), lambda sums, count: sums / count, ())
    arrays = data() | {"labelled": np.zeros(EXAMPLES)}
    found = make_evaluation(said, measures={"sure": sure, "accuracy": accuracy})(NOTHING, arrays)
    np.testing.assert_allclose(found["sure"], arrays["inputs"].max(-1).mean(), rtol=1e-5)
    assert np.isnan(found["accuracy"])


@pytest.mark.parametrize(
    ("measures", "arrays", "message"),
    [
        (None, data() | {"labels": np.zeros((EXAMPLES, 2), int)}, r"labels.*, where no measures are given, must be"),
        (None, data() | {"labels": np.zeros((EXAMPLES, CLASSES), np.float32)}, r"must be whole class numbers of shape"),
        ({"top": top_k_accuracy(6)}, data(), "k must be at most the number of classes, of two or more, 5; got 6"),
        ({"agreement": agreeing}, data(), 'give the data a "teacher"'),
        (
            {"mean": lambda student, teacher, batch: student.logits.mean((1, 2))},
            data(TIME) | {"mask": np.ones((EXAMPLES, TIME))},
            "The measure 'mean' must return one number for each example, or for each position",
        ),
        ({"right": label_accuracy()}, data(), r'student.logits and batch\["labels"\] must have the same shape'),
    ],
)
def test_what_cannot_be_measured_is_said(measures, arrays, message):
    with pytest.raises(ValueError, match=message):
        make_evaluation(said, measures=measures)(NOTHING, arrays)


def test_no_k_is_refused():
    with pytest.raises(ValueError, match="k must be a whole number of 1 or more; got 0"):
        top_k_accuracy(0)


def test_what_a_terms_weights_leave_out_is_left_out_of_its_measure():
    arrays = data()
    weight = np.where(np.arange(EXAMPLES) % 2, 2.0, 0.0).astype(np.float32)
    broken = np.where(weight > 0, arrays["labels"], -3)
    measures = {"loss": scaled(cross_entropy, by="batch.w")}
    found = make_evaluation(said, measures=measures)(NOTHING, {**arrays, "labels": broken, "w": weight}, batch_size=4)
    wanted = by_scikit_learn(arrays["inputs"][weight > 0], arrays["labels"][weight > 0])["cross_entropy"]
    np.testing.assert_allclose(found["loss"], 2 * wanted, rtol=1e-5)


def test_a_measure_of_the_whole_batch_is_told_what_has_a_label():
    arrays = data()
    known = np.arange(EXAMPLES) % 3 > 0
    graph = {"graph": on_feature(similarity_graph, "logits")}
    teacher = Outputs(jnp.asarray(data(seed=5)["inputs"]), {})
    missing = {**arrays, "labels": np.where(known, arrays["labels"], -100), "teacher": teacher}
    found = make_evaluation(said, measures=graph, ignore_label=-100)(NOTHING, missing, batch_size=EXAMPLES)
    alone = jax.tree.map(lambda array: array[known], {**arrays, "teacher": teacher})
    wanted = make_evaluation(said, measures=graph)(NOTHING, alone, batch_size=int(known.sum()))
    np.testing.assert_allclose(found["graph"], wanted["graph"], rtol=1e-5)


@pytest.mark.parametrize("measures", [None, {"top": top_k_accuracy(1)}, {"loss": cross_entropy}])
def test_one_logit_has_no_first_choice(measures):
    arrays = {"inputs": np.zeros((4, 1), np.float32), "labels": np.zeros(4, int)}
    with pytest.raises(ValueError, match=r"two classes or more|of two or more"):
        make_evaluation(said, measures=measures)(NOTHING, arrays)


@pytest.mark.parametrize("name", ["examples", "a_count"])
def test_names_that_are_taken_are_refused(name):
    with pytest.raises(ValueError, match=f"The measure's name '{name}' is taken"):
        make_evaluation(said, measures={"a": cross_entropy, name: accuracy})(NOTHING, data())


@pytest.mark.parametrize("measure", [top_k_accuracy, "accuracy", logit_mse])
def test_what_is_no_measure_is_named(measure):
    with pytest.raises(ValueError, match=r"measures must be of kdjax\.metrics, or terms"):
        make_evaluation(said, measures={"a": measure})(NOTHING, data())
