"""The experiments as their users run them, made short: results, checkpoints, resumption to the bit, and clear errors."""

import fcntl
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from experiments import _loop, _three_runs, compression, digits, pipeline, soft_targets

import jax
import numpy as np
import pytest
from rich.console import Console

from kdjax.caching import StaleError
from kdjax.checkpoints import load_weights, read_description, save_weights
from kdjax.models import make_model
from kdjax.networks import from_linen

SCRIPTS = Path(__file__).parents[1] / "experiments"
SHORT = digits.Digits(seeds=2, teacher_epochs=2, epochs=3, batch_size=128)


def weights_in(folder, model):
    init, _ = from_linen(make_model(model))
    return load_weights(folder, jax.eval_shape(init, jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32)))


def numbers(weights):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(weights)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "finished"
    digits.main(replace(SHORT, out=out))
    return out


def test_results_hold_what_was_promised(finished):
    results = json.loads((finished / "results.json").read_text())
    assert results["config"]["temperature"] == 4.0
    assert {"jax", "flax", "optax", "orbax-checkpoint"} <= results["versions"].keys()
    assert [record["seed"] for record in results["seeds"]] == [0, 1]
    for record in results["seeds"]:
        for network in ("teacher", "alone", "distilled"):
            assert 0 < record[network]["accuracy"] < 1
            assert record[network]["seconds"] > 0
        assert 0 < record["distilled"]["agreement"] <= 1
    lines = (finished / "seed-1" / "alone" / "metrics.jsonl").read_text().splitlines()
    history = [json.loads(line) for line in lines]
    assert [record["epoch"] for record in history] == [1, 2, 3]
    assert history[-1]["test"]["accuracy"] == results["seeds"][1]["alone"]["accuracy"]
    assert history[-1]["train"]["loss"] < history[0]["train"]["loss"]


def test_saved_networks_are_the_measured_ones(finished):
    """The last epoch's accuracy, again, from the files alone."""
    from kdjax.data import load, unit_range

    test = load("digits", "test")
    _, apply = from_linen(make_model("digits_student"))
    folder = finished / "seed-0" / "distilled" / "weights"
    weights = weights_in(folder, "digits_student")
    outputs, _ = apply(*weights, unit_range(test.inputs), train=False)
    accuracy = float(np.mean(np.argmax(outputs.logits, -1) == test.labels))
    assert accuracy == pytest.approx(read_description(folder)["test"]["accuracy"], abs=1e-6)


def test_both_students_start_from_the_same_weights_and_differ_in_the_end(finished):
    alone, distilled = (
        weights_in(finished / "seed-0" / name / "weights", "digits_student") for name in ("alone", "distilled")
    )
    assert np.abs(numbers(alone) - numbers(distilled)).max() > 1e-3


def test_a_run_that_was_interrupted_ends_in_the_same_bits(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(_loop, "SECONDS_BETWEEN_SAVES", 0.0)
    out, calls = tmp_path / "interrupted", []
    append = _loop.append_json_line

    def interrupt(path, record):
        calls.append(path)
        if len(calls) == 2 + 2:  # the teacher's two epochs, then the second of the student alone, before it is saved
            raise KeyboardInterrupt
        append(path, record)

    monkeypatch.setattr(_loop, "append_json_line", interrupt)
    with pytest.raises(SystemExit):
        digits.main(replace(SHORT, out=out))
    assert not (out / "results.json").exists()
    monkeypatch.setattr(_loop, "append_json_line", append)
    digits.main(replace(SHORT, out=out, resume=True))
    for seed in (0, 1):
        for phase, model in (
            ("teacher", "digits_teacher"),
            ("alone", "digits_student"),
            ("distilled", "digits_student"),
        ):
            folder = f"seed-{seed}/{phase}"
            np.testing.assert_array_equal(
                numbers(weights_in(out / folder / "weights", model)),
                numbers(weights_in(finished / folder / "weights", model)),
            )
            lines = (out / folder / "metrics.jsonl").read_text().splitlines()
            assert len(lines) == (2 if phase == "teacher" else 3)


def test_a_saved_teacher_is_used_again_and_the_cache_changes_nothing(finished, tmp_path):
    given = finished / "seed-0" / "teacher" / "weights"
    results = {}
    for cache in ("disk", "off"):
        out = tmp_path / cache
        digits.main(replace(SHORT, out=out, seeds=1, teacher=given, cache=cache))
        assert not (out / "seed-0" / "teacher").exists()
        assert (out / "seed-0" / "teacher-outputs" / "logits.bin").exists() == (cache == "disk")
        results[cache] = numbers(weights_in(out / "seed-0" / "distilled" / "weights", "digits_student"))
    # The same batches and targets; only the order of a few additions differs.
    np.testing.assert_allclose(results["disk"], results["off"], rtol=1e-3, atol=1e-4)
    # What is kept in memory is what is kept on disk.
    np.testing.assert_array_equal(
        results["disk"], numbers(weights_in(finished / "seed-0" / "distilled" / "weights", "digits_student"))
    )
    # Another teacher's outputs in its place are not taken.
    kept = tmp_path / "disk" / "seed-0" / "teacher-outputs" / "logits.bin"
    kept.write_bytes(kept.read_bytes()[:-1] + b"!")
    with pytest.raises(StaleError, match="has changed since"):
        digits.main(replace(SHORT, out=tmp_path / "disk", seeds=1, teacher=given, cache="disk", resume=True))


@pytest.mark.parametrize(
    ("memory", "disk", "words"),
    [
        (4_000_000, 0, "0.05 MB, are kept in memory, as 0.0 GB of memory and 0.0 GB of disk are free."),
        (100_000, 2_000_000, "0.05 MB, are kept in {out}, as"),
        (100_000, 10_000, "0.05 MB, are computed anew in every step, as"),
    ],
)
def test_auto_keeps_the_teachers_outputs_where_there_is_room_and_says_so(memory, disk, words, tmp_path, monkeypatch):
    monkeypatch.setattr(_three_runs, "free_memory", lambda: memory)
    monkeypatch.setattr(_three_runs.shutil, "disk_usage", lambda folder: SimpleNamespace(free=disk))
    text = io.StringIO()
    place = _three_runs._place_of_cache(SHORT, tmp_path, 1257 * 10 * 4, Console(file=text))
    assert words.format(out=tmp_path) in text.getvalue()
    assert place == ("memory" if "memory" in words.split(",")[1] else "disk" if "{out}" in words else "off")


def test_a_finished_run_grows_by_seeds_and_is_not_trained_again(finished, tmp_path):
    import shutil

    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    before = (out / "seed-0" / "alone" / "metrics.jsonl").read_text()
    digits.main(replace(SHORT, out=out, seeds=3, resume=True))
    assert (out / "seed-0" / "alone" / "metrics.jsonl").read_text() == before
    assert len(json.loads((out / "results.json").read_text())["seeds"]) == 3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": "digit"}, ValueError, "Did you mean 'digits'"),
        ({"teacher_model": "digits_techer"}, ValueError, "Did you mean 'digits_teacher'"),
        ({"temperature": 0.0}, ValueError, "temperature must be a finite number greater than 0; got 0.0"),
        ({"alpha": float("nan")}, ValueError, "alpha must be a finite number"),
        ({"alpha": 1.5}, ValueError, "alpha must lie between 0 and 1"),
        ({"epochs": 0}, ValueError, "epochs must be a whole number, 1 or greater; got 0"),
        ({"teacher_model": "soft_targets_teacher"}, ValueError, "inputs must be at least 10 pixels high and wide"),
        ({"batch_size": 5000}, ValueError, "batch_size must be at most the 1257 examples; got 5000"),
        ({"teacher": Path("nowhere")}, FileNotFoundError, "nowhere"),
        ({"data": "idx:nowhere"}, (ValueError, FileNotFoundError), "nowhere"),
        ({"data": "mnist", "data_dir": Path("nowhere")}, (ValueError, FileNotFoundError, OSError), "nowhere"),
    ],
)
def test_what_is_wrong_is_said_before_any_training_and_leaves_nothing(changes, error, message, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(error, match=message):
        digits.main(replace(SHORT, **({"out": out} | changes)))
    assert not out.exists()


def test_a_folder_in_use_is_never_written_into(finished, tmp_path):
    before = sorted(path.name for path in finished.rglob("*"))
    with pytest.raises(FileExistsError, match=r"out is not empty.*--resume"):
        digits.main(replace(SHORT, out=finished))
    with pytest.raises(ValueError, match=r"--resume needs the settings.*temperature was 4\.0 and is now 5\.0"):
        digits.main(replace(SHORT, out=finished, resume=True, temperature=5.0))
    assert sorted(path.name for path in finished.rglob("*")) == before
    with pytest.raises(ValueError, match="needs at least the 2 seeds of before; got 1"):
        digits.main(replace(SHORT, out=finished, resume=True, seeds=1))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no run that --resume could go on with"):
        digits.main(replace(SHORT, out=foreign, resume=True))
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(NotADirectoryError, match="out must be a folder"):
        digits.main(replace(SHORT, out=file))
    assert file.read_text() == "mine"


def test_two_runs_never_share_a_folder(finished):
    with (finished / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="out is being written by another process"):
            digits.main(replace(SHORT, out=finished, resume=True))


def test_a_place_that_cannot_be_written_is_named():
    with pytest.raises(PermissionError, match="out cannot be written to: /proc/kdjax"):
        digits.main(replace(SHORT, out=Path("/proc/kdjax")))


def test_a_teacher_of_another_architecture_is_told_leaf_by_leaf(finished, tmp_path):
    student = weights_in(finished / "seed-0" / "distilled" / "weights", "digits_student")
    given = tmp_path / "without description"
    save_weights(given, student)
    with pytest.raises(ValueError, match=r"these leaves differ: model_state/.*/mean: wanted, and not saved"):
        digits.main(replace(SHORT, out=tmp_path / "out", teacher=given))
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_other_data_or_of_another_model_is_refused(finished, tmp_path):
    for network, message in (("distilled", "model 'digits_teacher'.*says 'digits_student'"), ("teacher", "data 'npz:")):
        given = finished / "seed-0" / network / "weights"
        data = {"data": f"npz:{tmp_path / 'other.npz'}"} if network == "teacher" else {}
        images, labels = np.zeros((200, 8, 8), np.uint8), np.arange(200) % 10
        np.savez(tmp_path / "other.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
        with pytest.raises(ValueError, match=f"teacher must have been trained with {message}"):
            digits.main(replace(SHORT, out=tmp_path / "out", teacher=given, **data))
        assert not (tmp_path / "out").exists()


def test_a_teacher_of_nans_is_refused(finished, tmp_path):
    weights = weights_in(finished / "seed-0" / "teacher" / "weights", "digits_teacher")
    weights.params["hidden"]["bias"] = weights.params["hidden"]["bias"].at[3].set(np.nan)
    save_weights(tmp_path / "broken", weights)
    with pytest.raises(ValueError, match=r"teacher must hold finite numbers.*\['hidden'\]\['bias'\]"):
        digits.main(replace(SHORT, out=tmp_path / "out", teacher=tmp_path / "broken"))
    assert not (tmp_path / "out").exists()


def test_many_steps_a_call_give_what_single_steps_give(finished, tmp_path, monkeypatch):
    """The way of GPU and TPU, where an epoch of 9 steps is now scans of 4, 4 and 1."""
    monkeypatch.setattr(_loop, "STEPS_PER_CALL", 4)
    monkeypatch.setattr(_loop.jax, "default_backend", lambda: "gpu")
    digits.main(replace(SHORT, out=tmp_path / "out", seeds=1))
    for phase, model in (("teacher", "digits_teacher"), ("distilled", "digits_student")):
        folder = f"seed-0/{phase}/weights"
        scanned, single = (numbers(weights_in(out / folder, model)) for out in (tmp_path / "out", finished))
        np.testing.assert_allclose(scanned, single, rtol=1e-3, atol=1e-3)
        records = [
            json.loads((out / f"seed-0/{phase}/metrics.jsonl").read_text().splitlines()[-1])
            for out in (tmp_path / "out", finished)
        ]
        assert records[0]["train"]["loss"] == pytest.approx(records[1]["train"]["loss"], rel=1e-3)


@pytest.mark.parametrize("script", ["digits", "pipeline", "compression", "soft_targets"])
def test_help_tells_types_defaults_and_meaning(script):
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for option in (
        "--data STR",
        "--data-dir",
        "--seeds INT",
        "--epochs INT",
        "--out",
        "--resume",
        "--temperature FLOAT",
    ):
        assert option in text, option
    assert "(default:" in text


def test_the_articles_settings_are_the_defaults():
    a, c, d = pipeline.Pipeline(), compression.Compression(), soft_targets.SoftTargets()
    assert (a.batch_size, a.epochs, a.learning_rate, a.temperature, a.alpha) == (128, 5, 1e-2, 4.0, 0.5)
    assert (c.batch_size, c.epochs, c.learning_rate, c.temperature, c.alpha) == (32, 6, 1e-4, 7.0, 0.3)
    assert (d.teacher_batch_size, d.batch_size, d.epochs, d.learning_rate, d.temperature) == (64, 32, 5, 1e-3, 5.0)


@pytest.mark.slow
@pytest.mark.parametrize("script", [pipeline, compression, soft_targets], ids=lambda script: script.__name__)
def test_an_epoch_of_real_mnist(script, mnist_dir, tmp_path):
    settings = next(
        value for value in vars(script).values() if isinstance(value, type) and value.__module__ == script.__name__
    )
    script.main(settings(data="mnist", data_dir=mnist_dir, seeds=1, epochs=1, out=tmp_path / "out"))
    record = json.loads((tmp_path / "out" / "results.json").read_text())["seeds"][0]
    assert min(record[network]["accuracy"] for network in ("teacher", "alone", "distilled")) > 0.8
