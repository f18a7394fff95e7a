"""Scripts with a plan of their own: stopped and gone on with, they end in the same results; nothing is overwritten."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from rich.console import Console

from experiments import _setting, _settings, common_mistakes, precision, search, strategies
from kdjax.runs import records

SHORT = {"seeds": 2, "epochs": 1, "teacher_epochs": 1, "batch_size": 256}
SCRIPTS = {
    "search": (search, search.Search(**SHORT, temperatures=(4.0, 8.0), alphas=(0.3,), test_seeds=1)),
    "precision": (precision, precision.Precision(**SHORT)),
    "common_mistakes": (common_mistakes, common_mistakes.CommonMistakes(**SHORT, only="masked zero")),
    "strategies": (strategies, strategies.Strategies(**SHORT, only="offline, no labels")),
}


@pytest.fixture(autouse=True, scope="module")
def dense():
    with pytest.MonkeyPatch.context() as patch:
        for module in (search, common_mistakes, strategies):
            patch.setattr(module, "make_model", tiny.make_model)
        yield


@pytest.fixture(params=SCRIPTS)
def script(request):
    return request.param


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of an unbroken run, by script."""
    made = {}

    def of(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("runs") / name
            run(name, out=made[name])
        return made[name]

    return of


def run(name, **changes):
    module, settings = SCRIPTS[name]
    module.main(replace(settings, **changes))


def results(out):
    return json.loads((out / "results.json").read_text())


def numbers(out):
    """The seeds' records without the seconds."""

    def of(value):
        if isinstance(value, dict):
            return {name: of(one) for name, one in value.items() if name != "seconds"}
        return value

    return of(dict(enumerate(results(out)["seeds"])))


def test_a_stopped_run_goes_on_to_the_same_results(script, finished, tmp_path, monkeypatch, capsys):
    out, whole, write, written = tmp_path / "out", finished(script), records.write_json, []

    def stop(path, value):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, value)

    monkeypatch.setattr(records, "write_json", stop)
    with pytest.raises(SystemExit):
        run(script, out=out)
    assert f"--resume --out {out} goes on" in capsys.readouterr().out
    before = results(out)
    monkeypatch.setattr(records, "write_json", write)
    run(script, out=out, resume=True)
    assert numbers(out) == numbers(whole)
    entries = [value for seed in before["seeds"] for value in seed.values()]
    assert len(entries) == 2
    # Nothing of it was trained again, and who made it is told.
    assert [value for seed in results(out)["seeds"] for value in seed.values()][: len(entries)] == entries
    assert results(out)["before"][0]["config"]["resume"] is False
    assert {"command", "config", "data", "versions", "hardware", "commit"} <= results(out).keys()


def test_a_folder_may_be_called_anything(script, tmp_path, capsys):
    """Rich would take the name for markup, at the very end of the run."""
    run(script, out=tmp_path / "run[/b]", seeds=1)
    assert results(tmp_path / "run[/b]")["seeds"]
    assert script == "search" or f"Results: {tmp_path}/run[/b]" in capsys.readouterr().out


def test_a_finished_run_trains_nothing_and_grows_by_seeds(script, finished, tmp_path, no_training, monkeypatch):
    import shutil

    out = tmp_path / "copy"
    shutil.copytree(finished(script), out)
    run(script, out=out, resume=True)
    assert numbers(out) == numbers(finished(script))
    with pytest.raises(ValueError, match="--resume needs at least the 2 seeds of before; got 1"):
        run(script, out=out, resume=True, seeds=1)
    with pytest.raises(pytest.fail.Exception, match="trained"):
        run(script, out=out, resume=True, seeds=3)


@pytest.fixture
def no_training(monkeypatch):
    def make_epoch(step):
        return lambda *arguments, **keywords: pytest.fail("a network was trained")

    for module in (_setting, search, common_mistakes):
        monkeypatch.setattr(module, "make_epoch", make_epoch)


def test_what_is_wrong_with_the_folder_is_said_before_training(script, finished, tmp_path, no_training):
    with pytest.raises(PermissionError, match="out cannot be written to: /proc/kdjax"):
        run(script, out=Path("/proc/kdjax"))
    with pytest.raises(ValueError, match=r"--resume needs a run to go on with; there is no folder .*nowhere"):
        run(script, out=tmp_path / "nowhere", resume=True)
    with pytest.raises(FileExistsError, match=r"out is not empty.*--resume"):
        run(script, out=finished(script))
    with pytest.raises(ValueError, match=r"--resume needs the settings.*epochs was 1 and is now 2"):
        run(script, out=finished(script), resume=True, epochs=2)


def test_other_data_are_refused_at_a_resumption(script, finished, no_training, monkeypatch):
    load = _settings.load

    def other(*arguments, **keywords):
        data = load(*arguments, **keywords)
        return replace(data, labels=data.labels[::-1].copy())

    monkeypatch.setattr(_settings, "load", other)
    with pytest.raises(ValueError, match=r"--resume needs the settings.*data_digests\['train'\] was '"):
        run(script, out=finished(script), resume=True)


def test_another_test_split_is_refused_at_a_resumption_of_the_search(finished, no_training, monkeypatch):
    load = _settings.load

    def other(source, split, **keywords):
        data = load(source, split, **keywords)
        return replace(data, labels=data.labels[::-1].copy()) if split == "test" else data

    monkeypatch.setattr(_settings, "load", other)
    with pytest.raises(ValueError, match="the test split is another"):
        run("search", out=finished("search"), resume=True)


def test_the_way_of_the_search_is_kept_on_another_platform(finished, tmp_path, monkeypatch):
    assert results(finished("search"))["way"] == "one_by_one"
    monkeypatch.setattr(search.jax, "default_backend", lambda: "gpu")
    assert [search.way_of(way) for way in ("auto", "vmap", "one_by_one")] == ["vmap", "vmap", "one_by_one"]
    run("search", out=finished("search"), resume=True)
    assert results(finished("search"))["way"] == "one_by_one"
    with pytest.raises(ValueError, match="way was 'auto' and is now 'vmap'"):
        run("search", out=finished("search"), resume=True, way="vmap")


def test_both_ways_of_the_search_train_the_same_students(finished, tmp_path):
    run("search", out=tmp_path / "out", way="vmap", test_seeds=1)
    ways = [np.array(results(out)["search"]["validation_accuracy"]) for out in (finished("search"), tmp_path / "out")]
    np.testing.assert_allclose(*ways, atol=0.02)  # of 180 digits, a few on the edge


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("common_mistakes", {"only": "zzz"}, "only must be part of a wrong form's name: .*; got 'zzz'"),
        ("strategies", {"only": "zzz"}, "only must be part of a strategy's name: alone, .*; got 'zzz'"),
        ("strategies", {"alpha": 7.0}, "alpha must lie between 0 and 1, .*; got 7.0"),
        ("strategies", {"temperature": 0.0}, "temperature must be a finite number greater than 0; got 0.0"),
        ("strategies", {"learning_rate": 0.0}, "learning_rate must be a finite number greater than 0; got 0.0"),
        ("strategies", {"examples": 0}, "examples must be a whole number, 1 or greater; got 0"),
        ("strategies", {"batch_size": 5000}, "batch_size must be at most the 1257 examples; got 5000"),
        ("common_mistakes", {"temperature": -1.0}, "temperature must be a finite number, 0 or greater; got -1.0"),
        ("common_mistakes", {"batch_size": 5000}, "batch_size must be at most the 1257 examples; got 5000"),
        ("search", {"temperatures": ()}, "temperatures must hold one number at least; got none"),
        ("search", {"temperatures": (4.0, 0.0)}, "temperatures must be a finite number greater than 0; got 0.0"),
        ("search", {"alphas": (1.5,)}, "alphas must lie between 0 and 1, .*; got 1.5"),
        ("search", {"seeds": 0}, "seeds must be a whole number, 1 or greater; got 0"),
        ("search", {"batch_size": 5000}, "batch_size must be at most the 1257 examples; got 5000"),
        ("precision", {"epochs": 0}, "epochs must be a whole number, 1 or greater; got 0"),
        ("precision", {"data": "digit"}, "Did you mean 'digits'"),
    ],
)
def test_bad_settings_are_named_before_training_and_leave_nothing(name, changes, message, tmp_path, no_training):
    with pytest.raises(ValueError, match=message):
        run(name, out=tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_every_script_takes_a_folder_of_pictures_of_any_size(script, tmp_path):
    from PIL import Image

    noise = np.random.default_rng(0)
    for number, split in enumerate(["train", "validation", "test"] * 20):
        folder = tmp_path / "pictures" / split / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 255, (9 + number % 3, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    changes = {"examples": 12} if script == "strategies" else {}
    data = {"data": f"folder:{tmp_path / 'pictures'}", "size": 8}
    run(script, out=tmp_path / "out", seeds=1, batch_size=8, **data, **changes)
    assert results(tmp_path / "out")["data"]["train"]


def test_a_line_is_in_the_file_as_soon_as_it_is_printed():
    class File(io.StringIO):
        flushed = ""

        def flush(self):
            self.flushed = self.getvalue()

    file = File()
    Console(file=file).print("seed 0")
    assert file.flushed == "seed 0\n"
