"""The search chooses by validation, on other seeds than it tests; and the test split is read when the choice is made."""

import json
from dataclasses import replace

from experiments import precision, search

import numpy as np
import pytest

SHORT = search.Search(temperatures=(4.0, 8.0), alphas=(0.3, 0.9), seeds=2, test_seeds=3, epochs=2, teacher_epochs=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The results of a short search, and the splits in the order in which they were read."""
    out, splits, load = tmp_path_factory.mktemp("search"), [], search.load

    def watched(source, split):
        splits.append(split)
        return load(source, split)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "load", watched)
        search.main(replace(SHORT, out=out))
    return json.loads((out / "results.json").read_text()), splits


def test_the_choice_is_the_best_of_the_validation_split(finished):
    results, splits = finished
    settings, accuracies = results["search"]["settings"], np.array(results["search"]["validation_accuracy"])
    assert settings == [[4.0, 1.0], [4.0, 0.3], [4.0, 0.9], [8.0, 0.3], [8.0, 0.9]]
    assert accuracies.shape == (2, 5)
    assert results["test"]["settings"]["chosen"] == settings[1 + int(accuracies[:, 1:].mean(axis=0).argmax())]
    assert splits == ["train", "validation", "train", "test"]
    np.testing.assert_allclose(180 * accuracies, np.round(180 * accuracies), atol=1e-3)  # of 180 digits


def test_it_is_tested_on_fresh_seeds(finished):
    results, _ = finished
    tested = np.array(results["test"]["test_accuracy"])
    assert tested.shape == (3, 3)
    assert list(results["test"]["settings"]) == ["alone", "digits.py", "chosen"]
    assert 0.1 < tested.mean() < 1
    assert results["search"]["by"]["way"] in ("vmap", "one by one")
    assert min(results["search"]["by"]["milliseconds"].values()) > 0


def test_a_search_over_nothing_is_refused():
    with pytest.raises(ValueError, match="temperatures must hold one number at least; got none"):
        search.Search(temperatures=())
    with pytest.raises(ValueError, match=r"alphas must lie between 0 and 1; got \(1\.5,\)"):
        search.Search(alphas=(1.5,))
    with pytest.raises(ValueError, match="seeds must be 1 or greater; got 0"):
        search.Search(seeds=0)


@pytest.mark.slow
def test_precision_compares_the_same_seeds(tmp_path):
    precision.main(precision.Precision(seeds=2, epochs=2, teacher_epochs=2, out=tmp_path))
    accuracies = json.loads((tmp_path / "results.json").read_text())["test_accuracy"]
    single, half = (np.array(accuracies[dtype]) for dtype in ("float32", "bfloat16"))
    assert single.shape == half.shape == (2, 2)
    assert np.abs(single - half).max() < 0.1
