"""The command: what it says, its exit codes, and what is said in the place of a traceback."""

import importlib
import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from kdjax.command import _main, _packages, main

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def gone(monkeypatch, module):
    """As where it is not installed."""
    for name in [module, *(name for name in sys.modules if name.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)


def test_help_comes_at_once_and_from_python_m_too():
    def seconds() -> float:
        started = os.times()
        said = subprocess.run(
            [sys.executable, "-W", "error", "-m", "kdjax", "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert all(name in said.stdout for name in ("compare", "report", "verify", "export", "doctor"))
        ended = os.times()
        return ended.children_user + ended.children_system - started.children_user - started.children_system

    # Of the processor, since other processes may have it; the least of several, since they share its caches too.
    assert min(seconds() for _ in range(2)) < 1.5


def test_the_command_s_modules_load_nothing_heavy():
    code = (
        "import sys\nfrom kdjax.command import main\ntry:\n    main(['compare', '--help'])\nexcept SystemExit:\n    pass\n"
        "print({'flax', 'orbax', 'matplotlib', 'sklearn', 'tensorflow_datasets'} & sys.modules.keys())"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == "set()"


def test_doctor_runs_with_the_core_alone():
    code = (
        "import sys\nfrom kdjax.command._packages import OPTIONAL\n"
        "sys.modules.update({package.module: None for package in OPTIONAL})\n"
        "from kdjax.command import main\nprint(main(['doctor']), main(['report', 'run']))"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == "0 1"
    assert 'pip install "kdjax[runs]"' in said.stderr


def test_the_entry_point_is_the_function():
    module, function = PROJECT["scripts"]["kdjax"].split(":")
    assert getattr(importlib.import_module(module), function) is main


def test_every_optional_package_stands_in_its_extra():
    for package in _packages.OPTIONAL:
        wanted = PROJECT["optional-dependencies"][package.extra]
        assert any(line.startswith(package.distribution) for line in wanted), package
    assert {line.split(">=")[0].split("<")[0] for line in PROJECT["dependencies"]} | {"jaxlib"} == set(_packages.CORE)


def test_doctor_says_versions_devices_and_which_extra_brings_what_is_missing(capsys, monkeypatch):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for name in ("jax", "optax", "tyro", "flax"):
        assert version(name) in said
    assert "4 × cpu" in said  # the tests' devices
    monkeypatch.setattr("kdjax.command._doctor.version_of", lambda name: None)
    gone(monkeypatch, "tyro")
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert 'pip install "kdjax[models]"' in said
    assert 'pip install "kdjax[runs]"' in said


def test_doctor_fails_where_jax_finds_no_device(capsys, monkeypatch):
    def none():
        raise RuntimeError("no GPU and no CPU")

    monkeypatch.setattr("jax.devices", none)
    assert main(["doctor"]) == 1
    assert "no GPU and no CPU" in capsys.readouterr().out


def test_an_error_is_one_sentence_and_a_traceback_where_it_is_asked_for(capsys, tmp_path):
    run = tmp_path / "[bold]run"
    assert main(["report", str(run)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("kdjax: error: ")
    assert "[bold]run" in said
    assert "Traceback" not in said
    with pytest.raises(FileNotFoundError):
        main(["report", str(run), "--debug"])


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def broken(words):
        raise KeyError("ours")

    monkeypatch.setattr(_main, "_run", broken)
    with pytest.raises(KeyError):
        main(["report"])


def test_ctrl_c_ends_as_shells_expect(capsys, monkeypatch):
    def stopped(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(_main, "_run", stopped)
    assert main(["compare"]) == 130
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "module", "extra"),
    [
        (["report", "run"], "tyro", "runs"),
        (["compare", "--teacher", "cnn", "--student", "cnn", "--data", "digits"], "sklearn", "data"),
        (["compare", "--teacher", "cnn", "--student", "cnn", "--data", "digits"], "rich", "runs"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(words, module, extra, capsys, monkeypatch):
    gone(monkeypatch, module)
    assert main(words) == 1
    said = capsys.readouterr().err
    assert f'pip install "kdjax[{extra}]"' in said
    assert "Traceback" not in said


def test_a_missing_package_is_found_behind_another_error():
    behind = ImportError("This needs 'flatbuffers'.")
    behind.__cause__ = ModuleNotFoundError("No module named 'flatbuffers'", name="flatbuffers")
    assert 'pip install "kdjax[export]"' in _packages.missing(behind)
    assert _packages.missing(ImportError("cannot import name 'one'")) is None
    said = _packages.missing(ModuleNotFoundError("No module named 'nobodys'", name="nobodys.part"))
    assert "nobodys.part" in said
    assert "no extra" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--student", "cnn_tyni"], "cnn_tiny"),
        (["--teacher", "cnn_tyni"], "cnn_tiny"),
        (["--epochs", "0"], "--epochs"),
        (["--learning-rate", "-1"], "--learning-rate"),
        (["--loss", "mse", "--temperature", "4"], "mse has none"),
        (["--teacher", "cnn"], "once for each"),
        (["--start", "teacher"], "--given-teacher"),
        (["--online", "--given-teacher", "weights"], "which would teach nothing"),
    ],
)
def test_words_that_make_no_comparison_are_refused_before_any_work(changes, said, capsys):
    words = ["compare", "--teacher", "cnn_tiny", "--student", "cnn_tiny", "--data", "digits"]
    with pytest.raises(SystemExit) as stopped:
        main([*words, *changes])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
