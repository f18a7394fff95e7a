"""The search chooses by validation, on other seeds than it tests; and the test split is read when the choice is made."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
from rich.console import Console

from experiments import _settings, precision, search
from experiments._settings import spread

SHORT = search.Search(temperatures=(4.0, 8.0), alphas=(0.3, 0.9), seeds=2, test_seeds=3, epochs=2, teacher_epochs=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The results of a short search, and the splits in the order in which they were read."""
    out, splits, load = tmp_path_factory.mktemp("search") / "out", [], _settings.load

    def watched(source, split, **keywords):
        splits.append(split)
        return load(source, split, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_settings, "load", watched)
        patch.setattr(search, "make_model", tiny.make_model)
        search.main(replace(SHORT, out=out))
    return json.loads((out / "results.json").read_text()), splits


def test_the_choice_is_the_best_of_the_validation_split(finished):
    results, splits = finished
    settings, accuracies = results["search"]["settings"], np.array(results["search"]["validation_accuracy"])
    assert settings == [[4.0, 1.0], [4.0, 0.3], [4.0, 0.9], [8.0, 0.3], [8.0, 0.9]]
    assert accuracies.shape == (2, 5)
    assert results["test"]["settings"]["chosen"] == settings[1 + int(accuracies[:, 1:].mean(axis=0).argmax())]
    assert splits == ["train", "validation", "test"]
    np.testing.assert_allclose(180 * accuracies, np.round(180 * accuracies), atol=1e-3)  # of 180 digits


def test_it_is_tested_on_fresh_seeds(finished):
    results, _ = finished
    tested = np.array(results["test"]["test_accuracy"])
    assert tested.shape == (3, 3)
    assert list(results["test"]["settings"]) == ["alone", "digits.py", "chosen"]
    assert 0.1 < tested.mean() < 1
    assert results["way"] == "one_by_one"
    assert [list(record) for record in results["seeds"][:2]] == [["validation", "teacher"]] * 2
    assert all(next(iter(record)).startswith("test, chosen T = ") for record in results["seeds"][2:])


def test_all_students_of_a_search_run_one_program(monkeypatch):
    compiled, make_epoch = [], search.make_epoch

    def counting(step):
        def counted(*arguments):
            compiled.append(step)
            return step(*arguments)

        return make_epoch(counted)

    monkeypatch.setattr(search, "make_epoch", counting)
    monkeypatch.setattr(search, "make_model", tiny.make_model)
    (data,) = SHORT.load("train")
    taught, teacher = search.teaching(SHORT, data)
    accuracies = search.learning(SHORT, data, taught, "one_by_one", Console(quiet=True))
    taught(0)
    compiled.clear()
    accuracies(0, [(4.0, 0.3), (4.0, 1.0), (8.0, 0.5)], taught(0))
    assert len(compiled) == 2  # once for the metrics' shapes, once for the program
    assert 0.3 < teacher(0, taught(0)) <= 1


def test_the_last_examples_are_held_back_where_asked():
    train, validation = search.splits(replace(SHORT, validation=100))
    (whole,) = SHORT.load("train")
    assert [len(one.labels) for one in (train, validation)] == [len(whole.labels) - 100, 100]
    np.testing.assert_array_equal(np.concatenate([train.inputs, validation.inputs]), whole.inputs)
    assert [one.split for one in (train, validation)] == ["train", "validation"]
    with pytest.raises(ValueError, match="validation must be less than the 1257 examples; got 1257"):
        search.splits(replace(SHORT, validation=1257))


def test_examples_that_lie_class_by_class_are_held_back_from_all_classes(monkeypatch):
    """As a folder's pictures do: the last of them are of one class."""
    (whole,) = SHORT.load("train")
    order = np.argsort(whole.labels, kind="stable")
    sorted_data = replace(whole, inputs=whole.inputs[order], labels=whole.labels[order])
    monkeypatch.setattr(search.Search, "load", lambda self, *splits: [sorted_data])
    train, validation = search.splits(replace(SHORT, validation=100))
    assert [len(train.labels), len(validation.labels)] == [len(order) - 100, 100]
    assert np.bincount(validation.labels, minlength=10).min() >= 9
    both = np.concatenate([train.inputs, validation.inputs]).reshape(len(order), -1)
    np.testing.assert_array_equal(np.sort(both.sum(1)), np.sort(whole.inputs.reshape(len(order), -1).sum(1)))
    assert spread(np.array([2, 0, 1]), 2).tolist() == [0, 1]
    assert spread(np.array([0, 0, 1, 1, 2, 2]), 3).tolist() == [0, 2, 4]
    assert spread(np.array([0, 1]), 5).tolist() == [0, 1]


def test_precision_compares_the_same_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "make_model", tiny.make_model)
    precision.main(precision.Precision(seeds=2, epochs=2, teacher_epochs=2, batch_size=128, out=tmp_path))
    seeds = json.loads((tmp_path / "results.json").read_text())["seeds"]
    single, half = (np.array([record[dtype] for record in seeds]) for dtype in ("float32", "bfloat16"))
    assert single.shape == half.shape == (2, 2)
    assert np.abs(single - half).max() < 0.1
