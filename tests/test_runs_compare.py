"""Teacher, student alone and student distilled, by one call: resumed to the bit, on any devices, the same to rounding."""

import io
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from comparisons import DATA, NETWORKS, RECIPES, WIDTHS, lines, numbers, recipe, run, weights_in
from rich.console import Console

from kdjax import connectors, cross_entropy, on_feature, weighted_sum
from kdjax.caching import StaleError
from kdjax.checkpoints import read_description
from kdjax.data import unit_range
from kdjax.losses import hint
from kdjax.runs import _seeds, fitting
from kdjax.runs.folders import open_folder
from kdjax.training import loop


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "finished"
    run(out, seeds=2)
    return out


def test_results_hold_what_was_promised(finished):
    results = json.loads((finished / "results.json").read_text())
    assert results["parameters"]["alone"] == 64 * 6 + 6 + 6 * 10 + 10
    assert {"command", "config", "data", "versions", "hardware", "commit"} <= results.keys()
    assert [record["seed"] for record in results["seeds"]] == [0, 1]
    for record in results["seeds"]:
        for phase in WIDTHS:
            assert 0 < record[phase]["accuracy"] < 1
            assert record[phase]["seconds"] > 0
        assert 0 < record["distilled"]["agreement"] <= 1
    history = lines(finished, "alone", 1)
    assert [record["epoch"] for record in history] == [1, 2]
    assert history[-1]["test"]["accuracy"] == results["seeds"][1]["alone"]["accuracy"]
    assert history[-1]["train"]["loss"] < history[0]["train"]["loss"]


def test_saved_networks_are_the_measured_ones(finished):
    folder = finished / "seed-0" / "distilled" / "weights"
    outputs, _ = NETWORKS[6][1](*weights_in(folder, "distilled"), unit_range(DATA[1].inputs), train=False)
    accuracy = float(np.mean(np.argmax(outputs.logits, -1) == DATA[1].labels))
    assert accuracy == pytest.approx(read_description(folder)["test"]["accuracy"], abs=1e-6)


def test_both_students_start_from_the_same_weights_and_differ_in_the_end(finished, tmp_path):
    assert np.abs(numbers(finished, "alone") - numbers(finished, "distilled")).max() > 1e-3
    run(tmp_path / "same", distilled=replace(RECIPES["alone"], name="dense distilled"))
    np.testing.assert_array_equal(numbers(tmp_path / "same", "alone"), numbers(tmp_path / "same", "distilled"))


def test_a_run_that_was_interrupted_ends_in_the_same_bits(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "SECONDS_BETWEEN_SAVES", 0.0)
    out, calls, append = tmp_path / "interrupted", [], fitting.append_json_line

    def interrupt(path, record):
        calls.append(path)
        if len(calls) == 2 + 2:  # the teacher's two epochs, then the second of the student alone, before it is saved
            raise KeyboardInterrupt
        append(path, record)

    monkeypatch.setattr(fitting, "append_json_line", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(out)
    assert not (out / "results.json").exists()
    monkeypatch.setattr(fitting, "append_json_line", append)
    run(out, resume=True)
    for phase in WIDTHS:
        np.testing.assert_array_equal(numbers(out, phase), numbers(finished, phase))
        assert len(lines(out, phase)) == 2


def test_a_saved_teacher_is_used_again_and_the_cache_changes_nothing(finished, tmp_path):
    given = finished / "seed-0" / "teacher" / "weights"
    for cache in ("disk", "off"):
        out = tmp_path / cache
        run(out, given_teacher=given, cache=cache)
        assert not (out / "seed-0" / "teacher").exists()
        assert (out / "teacher-outputs" / "logits.bin").exists() == (cache == "disk")
    # The same batches and targets; only the order of a few additions differs.
    np.testing.assert_allclose(
        numbers(tmp_path / "disk", "distilled"), numbers(tmp_path / "off", "distilled"), rtol=1e-3, atol=1e-4
    )
    # What is kept in memory is what is kept on disk.
    np.testing.assert_array_equal(numbers(tmp_path / "disk", "distilled"), numbers(finished, "distilled"))
    # Another teacher's outputs in its place are not taken.
    kept = tmp_path / "disk" / "teacher-outputs" / "logits.bin"
    kept.write_bytes(kept.read_bytes()[:-1] + b"!")
    with pytest.raises(StaleError, match="has changed since"):
        run(tmp_path / "disk", given_teacher=given, cache="disk", resume=True)


@pytest.mark.parametrize(
    ("memory", "disk", "place", "words"),
    [
        (4_000_000, 0, "memory", "0.05 MB, are kept in memory, as 0.0 GB of memory and 0.0 GB of disk are free."),
        (100_000, 2_000_000, "disk", "0.05 MB, are kept in {out}, as"),
        (100_000, 10_000, "off", "0.05 MB, are computed in every step, as"),
    ],
)
def test_auto_keeps_the_teachers_outputs_where_there_is_room_and_says_so(
    memory, disk, place, words, tmp_path, monkeypatch
):
    monkeypatch.setattr(_seeds, "free_memory", lambda: memory)
    monkeypatch.setattr(_seeds.shutil, "disk_usage", lambda folder: SimpleNamespace(free=disk))
    text = io.StringIO()
    one = _seeds.Shared(tmp_path, DATA, unit_range, "auto", 1, "float32", None, 0, Console(file=text))
    teacher = one.prepared(RECIPES)["teacher"]
    with open_folder(tmp_path, {"cache": "auto"}, resume=False):
        assert one.place_of_cache(teacher) == place
    assert words.format(out=tmp_path) in text.getvalue()
    # A resumption stays with it, however much room there is by then: run in every step, the teacher's sums are others.
    monkeypatch.setattr(_seeds, "free_memory", lambda: 0 if place == "memory" else 4_000_000)
    with open_folder(tmp_path, {"cache": "auto"}, resume=True):
        assert one.place_of_cache(teacher) == place
    assert "as the run began" in text.getvalue()
    (tmp_path / "config.json").write_text('{"cache": "auto", "chosen": {"cache": "nowhere"}}')
    with pytest.raises(ValueError, match="the chosen cache must be one of memory, disk, off; got 'nowhere'"):
        one.place_of_cache(teacher)


def test_a_finished_run_grows_by_seeds_and_is_not_trained_again(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    before = (tmp_path / "copy" / "seed-0" / "alone" / "metrics.jsonl").read_text()
    results = run(tmp_path / "copy", seeds=3, resume=True)
    assert (tmp_path / "copy" / "seed-0" / "alone" / "metrics.jsonl").read_text() == before
    assert len(results["seeds"]) == 3


def test_what_else_differs_between_the_students_is_said(tmp_path):
    text = io.StringIO()
    run(tmp_path, text, alone=recipe("alone", epochs=1, batch_size=256))
    said = text.getvalue()
    assert "epochs of alone is 1 and of distilled 2" in said
    assert "batch_size of alone is 256 and of distilled 128" in said


@pytest.mark.parametrize("way", ["devices", "scan", "bfloat16"])
def test_every_way_to_compute_gives_the_same_numbers_to_rounding(way, finished, tmp_path, monkeypatch):
    if way == "scan":  # as GPU and TPU do it; an epoch of 9 steps is now scans of 4, 4 and 1
        monkeypatch.setattr(loop, "STEPS_PER_CALL", 4)
        monkeypatch.setattr(loop.jax, "default_backend", lambda: "gpu")
    run(tmp_path, **{"devices": {"devices": "all"}, "scan": {}, "bfloat16": {"dtype": "bfloat16"}}[way])
    for phase in WIDTHS:
        own, other = numbers(tmp_path, phase), numbers(finished, phase)
        losses = [lines(out, phase)[-1]["train"]["loss"] for out in (tmp_path, finished)]
        if way == "bfloat16":
            assert 1e-4 < np.linalg.norm(own - other) / np.linalg.norm(other) < 0.1
        else:
            np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-4)
        assert losses[0] == pytest.approx(losses[1], rel=0.02 if way == "bfloat16" else 1e-3)


def test_connectors_learn_and_stay_behind(tmp_path):
    beside = {"to_teacher": connectors.regressor("embedding")}
    objective = weighted_sum(labels=(1.0, cross_entropy), hint=(0.5, on_feature(hint, "to_teacher")))
    run(tmp_path / "out", distilled=recipe("distilled", objective, connectors=beside))
    assert lines(tmp_path / "out", "distilled")[-1]["train"]["hint"] > 0
    assert numbers(tmp_path / "out", "distilled").shape == numbers(tmp_path / "out", "alone").shape
