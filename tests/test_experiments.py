"""The comparisons as their users run them: results, resumption, bad settings named first, and clear help."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import tyro

from experiments import (
    _settings,
    common_mistakes,
    digits,
    hinton2015,
    many_labels,
    model_compression,
    pipeline,
    pixels,
    precision,
    search,
    soft_targets,
    strategies,
    tokens,
    transformers,
)
from kdjax.runs import fitting
from kdjax.training import DivergedError

SCRIPTS = Path(__file__).parents[1] / "experiments"
SHORT = digits.Digits(seeds=2, teacher_epochs=2, epochs=3, batch_size=128)


@pytest.fixture
def dense(monkeypatch):
    monkeypatch.setattr(digits, "network", lambda model, data: tiny.network())


def test_a_script_writes_its_settings_and_results_and_goes_on_where_it_was_stopped(
    dense, tmp_path, monkeypatch, capsys
):
    append, appended = fitting.append_json_line, []

    def stop(path, record):
        if len(appended) == 4:
            raise KeyboardInterrupt
        appended.append(record)
        append(path, record)

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    digits.main(replace(SHORT, out=whole))
    monkeypatch.setattr(fitting, "append_json_line", stop)
    with pytest.raises(SystemExit):
        digits.main(replace(SHORT, out=stopped))
    assert f"--resume --out {stopped} goes on from where it was" in capsys.readouterr().out
    monkeypatch.setattr(fitting, "append_json_line", append)
    digits.main(replace(SHORT, out=stopped, resume=True))
    found = [json.loads((out / "results.json").read_text()) for out in (whole, stopped)]
    assert found[0]["config"]["temperature"] == 4.0
    assert {"jax", "flax", "optax", "orbax-checkpoint"} <= found[0]["versions"].keys()
    for first, second in zip(*(results["seeds"] for results in found), strict=True):
        for phase in ("teacher", "alone", "distilled"):
            assert {**first[phase], "seconds": 0} == {**second[phase], "seconds": 0}


def test_a_resumption_of_nothing_and_of_other_settings_is_refused(dense, tmp_path):
    with pytest.raises(ValueError, match=r"--resume needs a run to go on with; there is no folder .*nowhere"):
        digits.main(replace(SHORT, out=tmp_path / "nowhere", resume=True))
    digits.main(replace(SHORT, seeds=1, epochs=1, teacher_epochs=1, out=tmp_path))
    with pytest.raises(ValueError, match=r"--resume needs the settings.*temperature was 4\.0 and is now 5\.0"):
        digits.main(replace(SHORT, seeds=1, epochs=1, teacher_epochs=1, out=tmp_path, resume=True, temperature=5.0))


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


SETTINGS = {
    script.__name__: next(
        value
        for value in vars(script).values()
        if dataclasses.is_dataclass(value) and value.__module__ == script.__name__
    )
    for script in (
        *(digits, model_compression, pipeline, soft_targets),
        *(many_labels, pixels, tokens, transformers),
        *(common_mistakes, hinton2015, precision, search, strategies),
    )
}


def test_every_script_is_known():
    assert {name.removeprefix("experiments.") for name in SETTINGS} == {path.stem for path in SCRIPTS.glob("[a-z]*.py")}


@pytest.mark.parametrize("name", SETTINGS)
def test_help_tells_types_defaults_and_meaning(name, capsys):
    with pytest.raises(SystemExit):
        tyro.cli(SETTINGS[name], args=["--help"])
    text = capsys.readouterr().out
    for option in ("--data STR", "--data-dir", "--size", "--seeds INT", "--epochs", "--out", "--resume"):
        assert option in text, option
    assert "(default:" in text


def test_a_script_is_called_by_its_path():
    command = [sys.executable, str(SCRIPTS / "digits.py"), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "What does distillation buy" in text


def test_the_articles_settings_are_the_defaults():
    a, c, d = pipeline.Pipeline(), model_compression.ModelCompression(), soft_targets.SoftTargets()
    assert (a.batch_size, a.epochs, a.learning_rate, a.temperature, a.alpha) == (128, 5, 1e-2, 4.0, 0.5)
    assert (c.batch_size, c.epochs, c.learning_rate, c.temperature, c.alpha) == (32, 6, 1e-4, 7.0, 0.3)
    assert (d.teacher_batch_size, d.batch_size, d.epochs, d.learning_rate, d.temperature) == (64, 32, 5, 1e-3, 5.0)


@pytest.mark.slow
@pytest.mark.parametrize("script", [pipeline, model_compression, soft_targets], ids=lambda script: script.__name__)
def test_an_epoch_of_real_mnist(script, mnist_dir, tmp_path):
    settings = SETTINGS[script.__name__]
    script.main(settings(data="mnist", data_dir=mnist_dir, seeds=1, epochs=1, out=tmp_path / "out"))
    record = json.loads((tmp_path / "out" / "results.json").read_text())["seeds"][0]
    assert min(record[network]["accuracy"] for network in ("teacher", "alone", "distilled")) > 0.8


@pytest.mark.parametrize("dev_mode", [False, True])
def test_what_people_can_mend_is_one_line_and_an_exit_code(dev_mode, monkeypatch, capsys):
    def main(settings):
        raise DivergedError(f"training of {settings.data} has diverged")

    monkeypatch.setattr(sys, "argv", ["experiments/digits.py", "--data", "digits"])
    monkeypatch.setattr(_settings.sys, "flags", SimpleNamespace(dev_mode=dev_mode))
    with pytest.raises(DivergedError if dev_mode else SystemExit) as stopped:
        _settings.start(main, digits.Digits, "What it does.")
    if not dev_mode:
        assert stopped.value.code == 1
        assert capsys.readouterr().err == "digits.py: error: training of digits has diverged\n"
