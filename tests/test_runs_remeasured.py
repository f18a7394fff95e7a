"""Saved networks measured again: what is as it was, what is not, and what is no run of these data."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from comparisons import DATA, RECIPES, run, weights_in

from kdjax.runs import remeasure
from kdjax.runs.remeasured import _close


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "finished"
    run(out, seeds=2, one_teacher=True)
    return out


@pytest.fixture(scope="module")
def teacher(finished):
    return weights_in(finished / "seed-0" / "teacher" / "weights", "teacher")


def again(out, **changes):
    return remeasure(out, **{"data": DATA, **RECIPES, **changes})


def test_a_run_gives_its_results_again(finished):
    found = again(finished)
    assert [one for one in found if one.problem] == []
    # Accuracy and cross-entropy of three networks, and the agreement of two; twice.
    assert len(found) == 2 * (3 * 2 + 2)
    assert {one.measure for one in found if one.network == "alone"} == {"accuracy", "cross_entropy", "agreement"}
    for one in found:
        assert one.found == pytest.approx(one.recorded, abs=1e-6)


def test_a_teacher_may_be_given_as_weights_and_is_then_the_run_s(finished, teacher, tmp_path):
    run(tmp_path / "given", given_teacher=teacher)
    records = [json.loads((out / "results.json").read_text())["seeds"][0] for out in (finished, tmp_path / "given")]
    for record in records:
        for network in record.values():
            if isinstance(network, dict):
                network.pop("seconds")
    assert records[0] == records[1]
    assert [one for one in again(tmp_path / "given", given_teacher=teacher) if one.problem] == []
    other = teacher._replace(params=jax.tree.map(lambda leaf: leaf + 1, teacher.params))
    with pytest.raises(ValueError, match="another digest"):
        again(tmp_path / "given", given_teacher=other)


def test_weights_of_another_network_are_no_teacher(finished, tmp_path):
    student = weights_in(finished / "seed-0" / "alone" / "weights", "alone")
    with pytest.raises(ValueError, match="given_teacher must be of the teacher's network"):
        run(tmp_path / "out", given_teacher=student)


def test_other_data_are_refused(finished):
    other = replace(DATA[1], labels=np.roll(DATA[1].labels, 1))
    with pytest.raises(ValueError, match="the test data have another digest"):
        again(finished, data=[DATA[0], other])


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        again(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="has no seeds"):
        again(tmp_path)


@pytest.mark.parametrize(
    ("recorded", "found", "close"),
    [
        (0.5, 0.5 + 1e-6, True),
        (0.5, 0.5 + 1e-4, False),
        (None, float("nan"), True),
        (None, 0.5, False),
        (0.5, float("nan"), False),
        ([0.5, 1.0], [0.5, 1.0], True),
        ([0.5], [0.5, 1.0], False),
        ("0.5", 0.5, False),
        (0.5, None, False),
    ],
)
def test_what_counts_as_the_same_number(recorded, found, close):
    assert _close(recorded, found, 1e-5) is close
