"""Comparisons of any outputs: tokens with labels that are missing, masks, dicts of inputs, and measures of one's own."""

import dataclasses
import inspect
import json

import numpy as np
import optax
import pytest
from flax import linen as nn

from kdjax import Outputs, Shared, cross_entropy, on_logits, on_outputs, weighted_sum
from kdjax.caching import cache_teacher
from kdjax.losses import linear_soft_target_kl, logit_mse, soft_target_kl
from kdjax.metrics import accuracy, class_iou, perplexity, top_k_accuracy
from kdjax.networks import from_linen
from kdjax.objectives import smoothed_cross_entropy, squared_error
from kdjax.runs import Recipe, _data, _seeds, compare
from kdjax.runs.report import comparison, comparison_lines

CLASSES, TIME = 5, 4
LABELS = weighted_sum(labels=(1.0, cross_entropy))
BOTH = weighted_sum(labels=(0.5, cross_entropy), soft=(0.5, on_logits(soft_target_kl)))


class Tokens(nn.Module):
    """Reads a dict: token numbers, and how loud each is."""

    width: int

    @nn.compact
    def __call__(self, inputs):
        hidden = nn.relu(nn.Embed(CLASSES, self.width)(inputs["ids"]) * inputs["loud"][..., None])
        dense = nn.Dense(CLASSES, use_bias=False)
        return Outputs(dense(hidden), {"hidden": hidden, "head": Shared(dense.variables["params"]["kernel"])})


def arrays(examples, seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, CLASSES, (examples, TIME))
    labels = np.where(rng.random((examples, TIME)) < 0.8, (2 * ids + 1) % CLASSES, -100)
    inputs = {"ids": ids, "loud": np.ones((examples, TIME), np.float32)}
    return {"inputs": inputs, "labels": labels, "mask": rng.random((examples, TIME)) < 0.9}


DATA = arrays(48, 0), arrays(18, 1)


def recipe(width, objective):
    return Recipe(from_linen(Tokens(width)), objective, lambda updates: optax.adam(3e-2), epochs=3, batch_size=8)


RECIPES = {"teacher": recipe(16, LABELS), "alone": recipe(3, LABELS), "distilled": recipe(3, BOTH)}
MEASURES = {"perplexity": perplexity, "accuracy": accuracy, "class_iou": class_iou()}
SETTINGS = {"data": DATA, "measures": MEASURES, "ignore_label": -100, **RECIPES}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tokens"
    return out, compare(out, seeds=2, one_teacher=True, **SETTINGS)


@pytest.mark.parametrize("cache", ["off", "disk"])
def test_students_taught_by_heads_are_those_taught_by_logits(run, cache, tmp_path):
    heads = ("student.hidden", "student.head", "teacher.hidden", "teacher.head")
    soft = on_outputs(linear_soft_target_kl, *heads, temperature=4.0)
    by_heads = {"distilled": recipe(3, weighted_sum(labels=(0.5, cross_entropy), soft=(0.5, soft)))}
    found = compare(tmp_path / "heads", seeds=1, one_teacher=True, cache=cache, **SETTINGS | by_heads)
    own, wanted = (results["seeds"][0]["distilled"] for results in (found, run[1]))
    np.testing.assert_allclose(own["perplexity"], wanted["perplexity"], rtol=1e-4)


def test_tokens_are_compared_by_the_first_measure(run, capsys):
    out, results = run
    assert results["measure"] == {"name": "perplexity", "percent": False, "lower_is_better": True}
    for seed in results["seeds"]:
        for network in ("teacher", "alone", "distilled"):
            own = seed[network]
            assert np.isfinite(own["perplexity"])
            assert 0 <= own["accuracy"] <= 1
            assert len(own["class_iou"]) == CLASSES
            assert ("agreement" in own) == (network != "teacher")
    assert json.loads((out / "results.json").read_text())["seeds"] == results["seeds"]


def test_one_teacher_serves_all_seeds(run):
    out, results = run
    first, second = (seed["teacher"] for seed in results["seeds"])
    assert first["perplexity"] == pytest.approx(second["perplexity"], rel=1e-6)
    assert first["seconds"] > 0 == second["seconds"]
    assert not (out / "seed-1" / "teacher").exists()


def test_what_all_seeds_of_a_given_teacher_share_is_computed_once(run, tmp_path, monkeypatch):
    calls = []

    def counting(apply, teacher, inputs, **more):
        calls.append(len(inputs["ids"]))
        return cache_teacher(apply, teacher, inputs, **more)

    monkeypatch.setattr(_seeds, "cache_teacher", counting)
    out, results = run
    again = compare(tmp_path / "given", seeds=2, given_teacher=out / "seed-0" / "teacher" / "weights", **SETTINGS)
    assert sorted(calls) == [18, 48]
    for own, before in zip(again["seeds"], results["seeds"], strict=True):
        assert own["distilled"]["perplexity"] == before["distilled"]["perplexity"]


def test_a_run_of_tokens_goes_on_and_refuses_another_measure(run):
    out, results = run
    again = compare(out, seeds=2, one_teacher=True, resume=True, **SETTINGS)
    assert [seed["distilled"]["perplexity"] for seed in again["seeds"]] == [
        seed["distilled"]["perplexity"] for seed in results["seeds"]
    ]
    labelled = [part | {"labels": np.maximum(part["labels"], 0)} for part in DATA]
    other = {**SETTINGS, "ignore_label": None, "data": labelled}
    with pytest.raises(ValueError, match="ignore_label"):
        compare(out, seeds=2, one_teacher=True, resume=True, **other)


def test_the_table_says_what_less_means(run):
    from rich.console import Console

    _, results = run
    console = Console(record=True, width=120)
    comparison(results, console)
    text = console.export_text()
    assert "test perplexity" in text
    assert "perplexity transfer rate" in text
    seeds = [
        {
            name: {"error": value}
            for name, value in zip(("teacher", "alone", "distilled"), (0.001, 0.004, distilled), strict=True)
        }
        for distilled in (0.0019, 0.0021)
    ]
    measure = {"name": "error", "percent": False, "lower_is_better": True}
    lines = comparison_lines({"seeds": seeds, "measure": measure})
    assert "the teacher helped" in lines[0]
    assert "66.67 % of the teacher's lead of 0.003 error" in lines[1]


def known():
    """The data without a label that is none."""
    return [one | {"labels": np.where(one["labels"] < 0, 0, one["labels"])} for one in DATA]


@pytest.mark.parametrize("name", ["mask", "labelled"])
def test_a_mask_says_what_counts_and_is_no_weight(tmp_path, name):
    """Fractions counted in full, and NaN too."""
    for odd in (0.5, np.nan, 2):
        mask = np.ones(DATA[1]["labels"].shape)
        mask[0] = odd
        message = rf'data \(the test data\) must have 0 and 1 in "{name}", which says what counts; got {odd}'
        with pytest.raises(ValueError, match=message):
            compare(tmp_path / "run", **{**SETTINGS, "data": (DATA[0], DATA[1] | {name: mask})})
    assert not (tmp_path / "run").exists()


def test_stored_outputs_of_another_teacher_are_refused(tmp_path):
    """With a cache they were left out, and without one they taught, beside the figures of the teacher that did not."""
    logits = np.zeros((*DATA[0]["labels"].shape, 3), np.float32)
    with pytest.raises(ValueError, match=r'data must have no "teacher", .*; the train data have one'):
        compare(tmp_path / "run", **{**SETTINGS, "data": (DATA[0] | {"teacher": Outputs(logits, {})}, DATA[1])})
    assert not (tmp_path / "run").exists()


def test_a_preprocess_that_takes_a_mean_over_the_examples_is_refused(tmp_path):
    """The test data, and the one picture that an exported network sees, would have another mean."""

    def of_all(inputs):
        return inputs | {"loud": inputs["loud"] + inputs["ids"].mean()}

    with pytest.raises(ValueError, match="preprocess must change each example by itself; the first one's result"):
        compare(tmp_path / "run", **{**SETTINGS, "preprocess": of_all})
    assert not (tmp_path / "run").exists()


def test_labels_that_are_no_class_are_named_before_any_training(tmp_path):
    """Where they count: left out by the mask they may be anything."""
    for part, where in enumerate(("train", "test")):
        data = known()
        labels, mask = data[part]["labels"].copy(), data[part]["mask"].copy()
        row = tuple(np.argwhere(mask)[3])
        labels[row] = -100
        data[part] |= {"labels": labels}
        message = (
            rf"data must fit the teacher's logits: of the {where} data, .* there are also -100\. .* ignore_label=-100"
        )
        with pytest.raises(ValueError, match=message):
            compare(tmp_path / "run", **{**SETTINGS, "data": data, "ignore_label": None})
        assert not (tmp_path / "run").exists()
        mask[row] = False
        found = [
            _data.labels_outside(one, (len(one["labels"]), TIME, CLASSES), None)
            for one in (data[part], data[part] | {"mask": mask})
        ]
        assert [said is None for said in found] == [False, True]
    longer = {
        "inputs": {"ids": np.zeros((5, 7), int), "loud": np.ones((5, 7), np.float32)},
        "labels": np.full((5, 7), 9),
    }
    with pytest.raises(ValueError, match=r"of the test data, .* there are also 9"):
        compare(tmp_path / "run", **{**SETTINGS, "data": (DATA[0], longer | {"mask": np.ones((5, 7), bool)})})


def test_labels_that_a_term_of_ones_own_reads_in_its_own_way_are_left_to_it(tmp_path):
    def loss(logits, labels):
        return cross_entropy(Outputs(logits, {}), None, {"labels": labels % CLASSES})

    of_known = on_outputs(loss, "student.logits", "batch.labels")
    data = [one | {"labels": one["labels"] + CLASSES} for one in known()]
    own = {
        name: dataclasses.replace(one, objective=weighted_sum(labels=(1.0, of_known))) for name, one in RECIPES.items()
    }
    settings = {"data": data, "measures": {"own": of_known}, **own}
    assert np.isfinite(compare(tmp_path / "run", seeds=1, **settings)["seeds"][0]["distilled"]["own"])


def test_a_loss_that_labels_make_nan_is_explained(tmp_path):
    smoothed = weighted_sum(labels=(1.0, smoothed_cross_entropy(0.1)))
    data = [one | {"labels": one["labels"] + 3} for one in known()]
    own = {name: dataclasses.replace(one, objective=smoothed) for name, one in RECIPES.items()}
    with pytest.raises(FloatingPointError, match=r"has diverged.* Of the training data, .* there are also 5, 6, 7\."):
        compare(tmp_path / "run", seeds=1, data=data, measures={"top": top_k_accuracy(2)}, **own)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((DATA[0],), "data must be two data sets"),
        ((DATA[0], {"labels": DATA[1]["labels"]}), 'data must have "inputs".* the test data have'),
        (
            (DATA[0], {name: array[:0] for name, array in {"inputs": np.zeros((3, 2))}.items()}),
            "the test data have none",
        ),
        ((DATA[0] | {"mask": np.ones((3, TIME))}, DATA[1]), "one row for each example in every array; the train data"),
    ],
)
def test_arrays_that_are_no_data_are_named(data, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        compare(tmp_path / "run", **{**SETTINGS, "data": data})
    assert not (tmp_path / "run").exists()


def test_a_run_refuses_another_measure_of_the_same_name_and_arrays_of_other_names(run):
    out, _ = run
    again = {"seeds": 2, "one_teacher": True, "resume": True}
    other = {**SETTINGS, "measures": {**MEASURES, "accuracy": top_k_accuracy(2)}}
    with pytest.raises(ValueError, match="programs"):
        compare(out, **again, **other)
    renamed = {("labelled" if name == "mask" else name): array for name, array in DATA[1].items()}
    with pytest.raises(ValueError, match="data_digests"):
        compare(out, **again, **{**SETTINGS, "data": (DATA[0], renamed)})


@pytest.mark.parametrize(
    ("measures", "message"),
    [
        ({}, "measures must be measures by name, one at least"),
        (["accuracy"], "measures must be measures by name"),
        ({"seconds": accuracy}, "The measure's name 'seconds' is taken"),
        (
            {"class_iou": class_iou()},
            "The first of measures must be one number, for the table; 'class_iou' is an array",
        ),
        ({"top": top_k_accuracy(9)}, "measures cannot be taken of the test data: k must be at most"),
    ],
)
def test_measures_that_cannot_be_compared_are_named_before_any_training(measures, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(compare)(tmp_path / "run", **{**SETTINGS, "measures": measures})
    assert not (tmp_path / "run").exists()


def test_numbers_are_compared_without_a_first_choice_to_agree_on(tmp_path):
    class Line(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(nn.relu(nn.Dense(self.width)(x)))

    def of(width, objective):
        return Recipe(from_linen(Line(width)), objective, lambda updates: optax.adam(3e-2), epochs=2, batch_size=8)

    x = np.random.default_rng(0).normal(size=(2, 24, 3)).astype(np.float32)
    data = [{"inputs": part, "labels": part.sum(-1)} for part in x]
    labels, both = (
        weighted_sum(labels=(1.0, squared_error), **more) for more in ({}, {"soft": (1.0, on_logits(logit_mse))})
    )
    recipes = {"teacher": of(16, labels), "alone": of(2, labels), "distilled": of(2, both)}
    results = compare(tmp_path / "run", data=data, measures={"error": squared_error}, seeds=1, **recipes)
    assert "agreement" not in results["seeds"][0]["distilled"]
    assert results["measure"]["lower_is_better"]
