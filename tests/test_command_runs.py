"""A comparison by command: trained, verified, exported."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import kdjax.runs.compare  # noqa: F401  (so that no report is written)
from kdjax.command import _recipes, main
from kdjax.command._networks import network
from kdjax.command._settings import Compare, settings_of
from kdjax.data import load, unit_range
from kdjax.export import from_safetensors, open_stablehlo

ROOT = Path(__file__).parents[1]
TINY = ["--teacher", "cnn_tiny", "--student", "cnn_tiny", "--data", "digits", "--epochs", "1", "--print-every", "0"]
DATA = tuple(load("digits", split) for split in ("train", "test"))


def settings(**changes):
    return Compare(**{"teacher": ("cnn_tiny",), "student": "cnn_tiny", "data": "digits", **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["compare", *TINY, "--seeds", "1", "--temperature", "8:2", "--out", str(out)]) == 0
    return out


def test_a_path_in_which_weights_would_be_lost_is_refused_before_training(tmp_path, capsys):
    out = tmp_path / "[red]run"
    assert main(["compare", *TINY, "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert str(out) in " ".join(said.out.split())
    assert "brackets" in said.err
    assert "epoch" not in said.out.replace("each shuffled epoch", "")


@pytest.fixture
def edited(finished):
    """What is changed in the run is put back."""
    file = finished / "results.json"
    before = file.read_bytes()

    def edit(change):
        results = json.loads(before)
        change(results["seeds"][0])
        file.write_text(json.dumps(results))

    yield edit
    file.write_bytes(before)


def test_sigterm_saves_after_the_step_and_the_code_says_that_it_can_be_gone_on_with(tmp_path):
    """A real process; that the bits are those of an unbroken run, test_runs_fitting.py asks."""
    out = tmp_path / "run"
    words = ["compare", *TINY[:-3], "400", "--print-every", "1", "--seeds", "1", "--out", str(out)]
    command = [sys.executable, "-u", "-m", "kdjax", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        while "seed 0 teacher" not in process.stdout.readline():
            assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert re.search(
        r"kdjax: seed 0 teacher: stopped after step \d+ of 7600, as asked; it is saved in .*/state\.", said
    )
    assert said.endswith("The same command with --resume goes on from there.\n")
    (state,) = (out / "seed-0" / "teacher" / "state").iterdir()
    assert f"after step {state.name} of" in said


def test_a_run_records_what_it_takes_to_build_it_again(finished):
    config = json.loads((finished / "config.json").read_text())
    assert settings_of(config, finished) == settings(seeds=1, epochs=1, temperature="8:2")
    assert "numbers=(8.0, 2.0, 19.0)" in config["distilled_recipe"]["objective"]["soft"]  # 1,257 // 64 updates


def test_online_the_teacher_s_network_learns_beside_the_student():
    online = settings(online=True)
    made = _recipes.recipes(online, DATA)
    peer = made["distilled"].peer
    assert peer.name == "cnn_tiny"
    assert peer.objective.terms.keys() == {"labels", "soft"}
    assert made["alone"].peer is None
    assert online.recorded()["online"]
    assert "online" not in settings().recorded()  # so that older runs can be gone on with
    assert settings_of(online.recorded(), Path("run")) == online


def test_a_run_is_verified(finished, capsys):
    assert main(["verify", str(finished)]) == 0
    said = capsys.readouterr().out
    assert "Confirmed: 8 measures of 3 saved networks" in said


def test_a_report_is_written_again_and_named(finished, capsys):
    assert main(["report", str(finished)]) == 0
    assert capsys.readouterr().out == f"Report: {finished / 'report.html'}\n"
    assert "cnn_tiny from cnn_tiny" in (finished / "report.html").read_text()


def test_other_results_than_the_networks_give_are_named(finished, edited, capsys):
    edited(lambda seed: seed["distilled"].update(accuracy=seed["distilled"]["accuracy"] + 1 / 360))
    assert main(["verify", str(finished)]) == 1
    said = capsys.readouterr().out
    assert "seed 0 distilled, accuracy: recorded" in said
    assert "Not confirmed: 1 of 8 measures" in said


def test_damaged_weights_are_named_and_the_others_are_verified(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    # Not a byte of the arrays: Orbax leaves some in there that nobody reads.
    (run / "seed-0" / "alone" / "weights" / "arrays" / "_METADATA").write_bytes(b"")
    assert main(["verify", str(run)]) == 1
    said = capsys.readouterr().out
    assert f"seed 0 alone, weights. The checkpoint {run / 'seed-0' / 'alone' / 'weights'}" in said
    assert "Not confirmed: 1 of 6 measures of 3 networks" in said


def test_seeds_that_the_results_lack_are_named(finished, capsys):
    file = finished / "config.json"
    before = file.read_text()
    file.write_text(json.dumps(json.loads(before) | {"seeds": 2}))
    try:
        assert main(["verify", str(finished)]) == 1
        assert "lacks 1 of the 2 seeds" in capsys.readouterr().out
    finally:
        file.write_text(before)


def test_the_student_is_exported_and_never_over_another_file(finished, tmp_path, capsys):
    program, weights = tmp_path / "student.stablehlo", tmp_path / "student.safetensors"
    assert main(["export", str(finished), "--to", str(program)]) == 0
    assert str(program) in capsys.readouterr().out
    init, apply = network("cnn_tiny", 10)
    saved = _recipes.saved(finished / "seed-0" / "distilled" / "weights", "cnn_tiny", DATA)
    expected, _ = apply(*saved, unit_range(DATA[1].inputs[:7]), train=False)
    call, record = open_stablehlo(program)
    np.testing.assert_allclose(call(DATA[1].inputs[:7]), expected.logits, atol=1e-5)
    assert record["class_names"] == list("0123456789")
    assert main(["export", str(finished), "--format", "safetensors", "--to", str(weights)]) == 0
    again, said = from_safetensors(weights, _recipes.shapes(init, DATA))
    jax.tree.map(np.testing.assert_array_equal, again, saved)
    assert said["network"] == "cnn_tiny"
    capsys.readouterr()
    assert main(["export", str(finished), "--to", str(program)]) == 1
    assert "exists already" in capsys.readouterr().err


def npz(path, data, class_names):
    parts = zip(("train", "test"), data, strict=True)
    arrays = {f"{axis}_{split}": one for split, part in parts for axis, one in zip("xy", part[:2], strict=True)}
    np.savez(path, class_names=class_names, **arrays)
    return f"npz:{path}"


@pytest.mark.parametrize("command", ["verify", "export"])
def test_other_data_and_other_words_for_the_classes_are_refused(finished, command, tmp_path, capsys):
    """A program takes its range and its words from them; with the same arrays and names it is written."""
    arrays = [(part.inputs, part.labels) for part in DATA]
    same = npz(tmp_path / "same.npz", arrays, list("0123456789"))
    brighter = npz(tmp_path / "brighter.npz", [(inputs + 1, labels) for inputs, labels in arrays], list("0123456789"))
    renamed = npz(tmp_path / "renamed.npz", arrays, list("9876543210"))
    words = [command, str(finished), *(["--to", str(tmp_path / "out")] if command == "export" else [])]
    assert main([*words, "--data", brighter]) == 1
    assert "data must be those of the run; the train data have another digest" in capsys.readouterr().err
    assert main([*words, "--data", renamed]) == 1
    assert "data must have the class names of the run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--data", same]) == 0


def test_a_resumption_keeps_the_words_for_the_classes(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    config = json.loads((run / "config.json").read_text())
    assert config["class_names"] == list("0123456789")
    words = ["compare", *TINY, "--seeds", "1", "--temperature", "8:2", "--out", str(run), "--resume"]
    (run / "config.json").write_text(json.dumps(config | {"class_names": list("9876543210")}))
    assert main(words) == 1
    assert "class_names was ['9', '8'" in capsys.readouterr().err
    del config["class_names"]  # as an older kdjax wrote it
    (run / "config.json").write_text(json.dumps(config))
    assert main(words) == 0


def test_all_teachers_and_starts_are_asked_what_they_were_trained_on(finished, tmp_path, capsys):
    """Of one teacher `compare` asks; several, and a start, went by unasked."""
    teacher = str(finished / "seed-0" / "teacher" / "weights")
    arrays = [(part.inputs, part.labels) for part in DATA]
    moved = npz(tmp_path / "moved.npz", arrays, list("0123456789"))
    words = ["compare", *TINY, "--data", moved, "--out", str(tmp_path / "out")]
    assert main([*words, "--given-teacher", teacher, "--given-teacher", teacher]) == 1
    assert "--given-teacher must have been trained with data 'npz:" in capsys.readouterr().err
    floats = [(inputs / np.float32(16), labels) for inputs, labels in arrays]
    words[-3] = npz(tmp_path / "floats.npz", floats, list("0123456789"))
    assert main([*words, "--start", teacher]) == 1
    said = capsys.readouterr().err
    assert "--start must have been trained with preprocess 'as_given'" in said
    assert "says 'unit_range'" in said


def test_what_is_exported_is_said_to_be_what_it_is(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16", "student": "cnn"}))
    assert main(["export", str(run), "--network", "teacher", "--format", "safetensors"]) == 0
    init, _ = network("cnn_tiny", 10)
    assert from_safetensors(run / "teacher-0.safetensors", _recipes.shapes(init, DATA))[1]["network"] == "cnn_tiny"
    capsys.readouterr()
    assert main(["export", str(run), "--network", "teacher"]) == 0
    assert "It computes in float32; the run measured the network in bfloat16." in capsys.readouterr().out


def test_runs_of_others_are_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    for command in ("verify", "export"):
        assert main([command, str(tmp_path)]) == 1
        assert "kdjax compare" in capsys.readouterr().err
        assert main([command, str(tmp_path / "none")]) == 1
        assert "there is no" in capsys.readouterr().err


def test_several_teachers_a_pretrained_student_and_mse(finished, tmp_path, capsys):
    given = [finished / "seed-0" / name / "weights" for name in ("teacher", "alone")]
    words = [*TINY, "--seeds", "1", "--loss", "mse", "--out", str(tmp_path / "out"), "--start", str(given[1])]
    words += ["--given-teacher", str(given[0]), "--given-teacher", str(given[1])]
    assert main(["compare", *words]) == 0
    assert main(["compare", *words]) == 1  # the folder is taken
    assert "--resume" in capsys.readouterr().err
    assert main(["compare", *words, "--resume"]) == 0
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert main(["export", str(tmp_path / "out"), "--network", "teacher"]) == 1
    assert "was given its teacher" in capsys.readouterr().err


def test_a_run_of_pictures_and_a_given_teacher_is_verified_where_they_have_moved_to(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for split, part in zip(("train", "test"), DATA, strict=True):
        for index, (picture, label) in enumerate(zip(part.inputs[:70], part.labels[:70], strict=True)):
            folder = tmp_path / "pictures" / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture[..., 0]).save(folder / f"{index}.png")
    words = ["compare", *TINY, "--data", "folder:pictures", "--size", "8", "--seeds", "1"]
    assert main([*words, "--out", "first"]) == 0
    assert main([*words, "--out", "second", "--given-teacher", "first/seed-0/teacher/weights"]) == 0
    (tmp_path / "pictures").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert main(["verify", "../second"]) == 1
    assert str(tmp_path / "pictures") in capsys.readouterr().err
    assert main(["verify", "../second", "--data", f"folder:{tmp_path / 'moved'}"]) == 0


def test_home_is_meant_wherever_a_path_is_named(finished, tmp_path, monkeypatch, capsys):
    """A shell expands ``--out ~/run``, and leaves ``--out=~/run`` as it is."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "first").symlink_to(finished)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    weights = "~/first/seed-0/teacher/weights"
    words = ["compare", *TINY, "--seeds=1", "--out=~/second", f"--given-teacher={weights}", f"--start={weights}"]
    assert main(words) == 0
    assert main([*words, "--resume"]) == 0
    for words in (["verify", "~/second"], ["report", "~/second"], ["export", "~/second", "--to=~/student"]):
        assert main(words) == 0
    assert {one.name for one in (tmp_path / "home").iterdir()} == {"first", "second", "student", "student.json"}
    assert [one.name for one in tmp_path.iterdir()] == ["home"]
    assert settings(data_dir=Path("~/mnist")).data_dir == tmp_path / "home" / "mnist"
    with pytest.raises(ValueError, match="~nobody-here/run must begin with somebody's home folder"):
        settings(out=Path("~nobody-here/run"))


def test_a_student_may_start_from_its_teacher(finished):
    teacher = finished / "seed-0" / "teacher" / "weights"
    same = _recipes.saved(teacher, "cnn_tiny", DATA)
    lines = []
    own = settings(start="teacher", given_teacher=(teacher,))
    init, _ = _recipes.started(own, network("cnn_tiny", 10), DATA, lines.append)
    start = init(jax.random.key(3), jnp.zeros((1, 8, 8, 1)))
    jax.tree.map(np.testing.assert_array_equal, start, same)
    # A copy: the step may take the start's arrays for its own.
    assert not jax.tree.leaves(start)[0].is_deleted()
    assert jax.tree.leaves(start)[0] is not jax.tree.leaves(same)[0]
    assert sum("copied" in line for line in lines) == 8
