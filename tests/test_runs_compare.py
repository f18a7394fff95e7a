"""Teacher, student alone and student distilled, by one call: resumed to the bit, never overwritten, on any devices."""

import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
import tiny
from rich.console import Console

from kdjax import connectors, cross_entropy, on_feature, on_logits, weighted_sum
from kdjax.caching import StaleError
from kdjax.checkpoints import load_weights, read_description, save_weights
from kdjax.data import load, unit_range
from kdjax.losses import hint, soft_target_kl
from kdjax.runs import Recipe, compare, fitting, open_folder
from kdjax.training import loop

compare_module = __import__("sys").modules["kdjax.runs.compare"]
DATA = [load("digits", split) for split in ("train", "test")]
WIDTHS = {"teacher": 16, "alone": 6, "distilled": 6}
LABELS = weighted_sum(labels=(1.0, cross_entropy))
SOFT = weighted_sum(labels=(0.3, cross_entropy), soft=(0.7, on_logits(soft_target_kl, temperature=4.0)))
NETWORKS = {width: tiny.network(width) for width in (6, 16)}


def recipe(phase, objective=LABELS, epochs=2, batch_size=128, **others):
    network = NETWORKS[WIDTHS[phase]]
    # Not Adam: it scales gradients that are rounding noise up to full steps.
    optimizer = optax.sgd(0.3, momentum=0.9)
    return Recipe(network, objective, lambda updates: optimizer, epochs, batch_size, name=f"dense {phase}", **others)


RECIPES = {"teacher": recipe("teacher"), "alone": recipe("alone"), "distilled": recipe("distilled", SOFT)}


def run(out, text=None, **changes):
    settings = {"data": DATA, "seeds": 1, **RECIPES, **changes}
    return compare(out, console=Console(file=text or io.StringIO()), **settings)


def weights_in(folder, phase):
    init, _ = NETWORKS[WIDTHS[phase]]
    return load_weights(folder, jax.eval_shape(init, jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32)))


def numbers(out, phase, seed=0):
    weights = weights_in(out / f"seed-{seed}" / phase / "weights", phase)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(weights)])


def lines(out, phase, seed=0):
    return [json.loads(line) for line in (out / f"seed-{seed}" / phase / "metrics.jsonl").read_text().splitlines()]


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
    monkeypatch.setattr(compare_module, "free_memory", lambda: memory)
    monkeypatch.setattr(compare_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=disk))
    text = io.StringIO()
    one = compare_module._Run(tmp_path, DATA, unit_range, "auto", 1, "float32", None, 0, Console(file=text))
    assert one.place_of_cache(one.prepared(RECIPES)["teacher"]) == place
    assert words.format(out=tmp_path) in text.getvalue()


def test_a_finished_run_grows_by_seeds_and_is_not_trained_again(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    before = (tmp_path / "copy" / "seed-0" / "alone" / "metrics.jsonl").read_text()
    results = run(tmp_path / "copy", seeds=3, resume=True)
    assert (tmp_path / "copy" / "seed-0" / "alone" / "metrics.jsonl").read_text() == before
    assert len(results["seeds"]) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds must be a whole number"),
        ({"devices": 5}, "devices must be at most the 4 there are; got 5"),
        ({"dtype": "float16"}, "dtype"),
        ({"data": DATA[:1]}, "data must be two data sets"),
        ({"alone": recipe("alone", batch_size=5000)}, "batch_size must be at most the 1257 examples; got 5000"),
        ({"devices": 4, "alone": recipe("alone", batch_size=130)}, "batch_size of alone must divide by the 4 devices"),
        ({"print_every": -1}, "print_every must be a whole number of 0 or more; got -1"),
        ({"data": [DATA[0], replace(DATA[1], class_names=tuple("abcdefghij"))]}, "data must have the same class names"),
        (
            {"distilled": recipe("distilled", weighted_sum(hint=(1.0, on_feature(hint, "embeding"))))},
            "distilled cannot be trained on these data: .*embeding.*Did you mean 'embedding'",
        ),
        ({"alone": recipe("alone", SOFT)}, "alone cannot be trained on these data: .*teacher"),
        (
            {"alone": Recipe(tiny.network(6, classes=7), LABELS, lambda updates: optax.sgd(0.1), 1, 128)},
            "alone cannot be trained .*network must return a logit for each of the 10 classes",
        ),
    ],
)
def test_what_is_wrong_is_said_before_any_training_and_leaves_nothing(changes, message, tmp_path, no_training):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(compare_module, "fit", lambda *arguments, **keywords: pytest.fail("a network was trained"))


def test_a_folder_in_use_is_never_written_into(finished, tmp_path, no_training):
    before = sorted(path.name for path in finished.rglob("*"))
    with pytest.raises(FileExistsError, match=r"out is not empty.*--resume"):
        run(finished, seeds=2)
    with pytest.raises(
        ValueError, match=r"--resume needs the settings.*alone_recipe was .*'epochs': 2.* and is now .*3"
    ):
        run(finished, seeds=2, resume=True, alone=recipe("alone", epochs=3))
    other = replace(DATA[0], labels=DATA[0].labels[::-1].copy())
    with pytest.raises(ValueError, match=r"--resume needs the settings.*data_digests was"):
        run(finished, seeds=2, resume=True, data=[other, DATA[1]])
    with pytest.raises(ValueError, match="needs at least the 2 seeds of before; got 1"):
        run(finished, seeds=1, resume=True)
    assert sorted(path.name for path in finished.rglob("*")) == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(FileExistsError, match=r"holds no run that could be gone on with.*thesis\.txt"):
            run(foreign, resume=resume)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(NotADirectoryError, match="out must be a folder"):
        run(file)
    assert file.read_text() == "mine"
    with pytest.raises(PermissionError, match="out cannot be written to: /proc/kdjax"):
        run("/proc/kdjax")


def with_other(phase, **changes):
    return {phase: replace(RECIPES[phase], **changes)}


def squashed(params, model_state, inputs, *, train, rng=None):
    outputs, model_state = NETWORKS[6][1](params, model_state, inputs, train=train, rng=rng)
    return outputs._replace(logits=jax.numpy.tanh(outputs.logits)), model_state


@pytest.mark.parametrize(
    "changes",
    [
        with_other("alone", optimizer=lambda updates: optax.sgd(0.2, momentum=0.9)),
        with_other("distilled", network=(NETWORKS[6][0], squashed)),
        with_other(
            "teacher",
            network=(lambda rng, x: jax.tree.map(lambda one: 2 * one, NETWORKS[16][0](rng, x)), NETWORKS[16][1]),
        ),
        with_other("alone", objective=weighted_sum(labels=(lambda step: 0.5, cross_entropy))),
        {"preprocess": lambda inputs: unit_range(inputs) / 2},
        {"config": {"teacher": "of one's own"}, **with_other("teacher", epochs=3)},
    ],
    ids=["optimizer", "network", "start", "schedule", "preprocess", "epochs beside a setting of that name"],
)
def test_a_resumption_that_would_compute_something_else_is_refused(changes, finished, no_training):
    with pytest.raises(ValueError, match="--resume needs the settings"):
        run(finished, seeds=2, resume=True, **changes)


def test_a_given_teacher_must_stay_the_same(finished, tmp_path, no_training):
    teachers = [finished / f"seed-{seed}" / "teacher" / "weights" for seed in range(2)]
    with pytest.raises(pytest.fail.Exception):  # stopped where training would begin
        run(tmp_path / "out", given_teacher=teachers[0])
    for other in (teachers[1], None):
        with pytest.raises(ValueError, match="given_teacher_digest was"):
            run(tmp_path / "out", given_teacher=other, resume=True)


def test_what_else_differs_between_the_students_is_said(tmp_path):
    text = io.StringIO()
    run(tmp_path, text, alone=recipe("alone", epochs=1, batch_size=256))
    said = text.getvalue()
    assert "epochs of alone is 1 and of distilled 2" in said
    assert "batch_size of alone is 256 and of distilled 128" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number of 1 or more; got 0"),
        ({"batch_size": -8}, "batch_size must be a whole number of 1 or more; got -8"),
    ],
)
def test_a_recipe_that_is_none_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(RECIPES["alone"], **change)


# In a process without the tests' checker of types, which is there before them.
OF_A_WRONG_TYPE = """
import optax
from kdjax import cross_entropy, weighted_sum
from kdjax.data import load
from kdjax.runs import Recipe, compare

data = load("digits", "test")
good = {
    "network": (lambda rng, inputs: None, lambda params, model_state, inputs, *, train, rng=None: None),
    "objective": weighted_sum(labels=(1.0, cross_entropy)),
    "optimizer": lambda updates: optax.sgd(0.1), "epochs": 1, "batch_size": 8,
}
recipes = dict.fromkeys(("teacher", "alone", "distilled"), Recipe(**good))

for call, name, value in (
    (Recipe, "network", 1), (Recipe, "network", (1, 2)), (Recipe, "objective", cross_entropy),
    (Recipe, "optimizer", optax.sgd(0.1)), (Recipe, "epochs", 1.5), (Recipe, "batch_size", "8"),
    (compare, "data", data), (compare, "data", "digits"), (compare, "data", [(1, 2), (3, 4)]), (compare, "cache", None),
    (compare, "dtype", 32), (compare, "print_every", "x"), (compare, "seeds", True),
):
    try:
        call(**(good | {name: value}) if call is Recipe else {"out": "out", "data": [data] * 2, **recipes, name: value})
        print(name, value, "no error")
    except ValueError as error:
        assert str(error).startswith(f"{name} must be"), error
"""


def test_what_is_of_a_wrong_type_is_named(tmp_path):
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", OF_A_WRONG_TYPE]
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    assert not [*tmp_path.iterdir()]


def test_two_runs_never_share_a_folder(finished):
    with (finished / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="out is being written by another process"):
            run(finished, seeds=2, resume=True)


def test_a_run_that_was_stopped_before_it_wrote_anything_is_begun_and_a_damaged_one_is_named(tmp_path):
    for name in (".lock", ".lock.0a1b2c3d", ".config.json.0a1b2c3d"):
        (tmp_path / name).touch()
    for resume in (False, True):
        with open_folder(tmp_path, {"epochs": 1}, resume=resume) as folder:
            assert json.loads((folder / "config.json").read_text()) == {"epochs": 1}
    for damaged, what in ((b"{", "damaged"), (b"\xff", "damaged"), (b"[]", "a list")):
        (tmp_path / "config.json").write_bytes(damaged)
        with (
            pytest.raises(ValueError, match=rf"config\.json must hold .*{what}"),
            open_folder(tmp_path, {}, resume=True),
        ):
            pass


def test_a_teacher_of_another_kind_is_refused(finished, tmp_path, no_training):
    student = finished / "seed-0" / "distilled" / "weights"
    with pytest.raises(ValueError, match=r"trained with model 'dense teacher'.*says 'dense distilled'"):
        run(tmp_path / "out", given_teacher=student)
    save_weights(tmp_path / "unsaid", weights_in(student, "distilled"))
    with pytest.raises(ValueError, match="kernel"):
        run(tmp_path / "out", given_teacher=tmp_path / "unsaid")
    teacher = finished / "seed-0" / "teacher" / "weights"
    with pytest.raises(ValueError, match=r"trained with data 'other'; .* says 'digits'"):
        run(tmp_path / "out", given_teacher=teacher, data=[replace(one, name="other") for one in DATA])
    weights = weights_in(teacher, "teacher")
    weights.params["Dense_0"]["bias"] = weights.params["Dense_0"]["bias"].at[3].set(np.nan)
    save_weights(tmp_path / "broken", weights)
    with pytest.raises(ValueError, match=r"teacher must hold finite numbers.*\['Dense_0'\]\['bias'\]"):
        run(tmp_path / "out", given_teacher=tmp_path / "broken")
    assert not (tmp_path / "out").exists()


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
