"""The folder of a run: begun or gone on with whatever a killed process left, and strangers' links are not followed."""

import json

import pytest

from kdjax.runs import open_folder
from kdjax.runs.folders import tidy


def test_a_run_that_was_stopped_before_it_wrote_anything_is_begun_and_a_damaged_one_is_named(tmp_path):
    for name in (".lock", ".lock.0a1b2c3d", ".config.json.0a1b2c3d"):
        (tmp_path / name).touch()
    for resume in (False, True):
        with open_folder(tmp_path, {"epochs": 1}, resume=resume) as folder:
            assert json.loads((folder / "config.json").read_text()) == {"kdjax_format": 1, "epochs": 1}
    left = [tmp_path / "seed-0" / ".outputs.0a1b2c3d.tmp" / "logits.bin", tmp_path / "seed-0" / ".x.json.0a1b2c3d.tmp"]
    mine = [tmp_path / "seed-0" / ".mine", tmp_path / "seed-0" / "x.0a1b2c3d.tmp"]
    for path in (*left, *mine):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with open_folder(tmp_path, {"epochs": 1}, resume=True):
        assert sorted(tmp_path.rglob("*")) == sorted(
            [tmp_path / ".lock", tmp_path / "config.json", mine[0].parent, *mine]
        )
    for damaged, what in ((b"{", "damaged"), (b"\xff", "damaged"), (b"[]", "a list")):
        (tmp_path / "config.json").write_bytes(damaged)
        with (
            pytest.raises(ValueError, match=rf"config\.json must hold .*{what}"),
            open_folder(tmp_path, {}, resume=True),
        ):
            pass


def test_a_run_does_not_follow_a_strangers_links(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    with open_folder(tmp_path / "run", {"epochs": 1}, resume=False) as folder:
        (folder / "inside").mkdir()
    (folder / "seed-1").symlink_to("inside")
    with open_folder(folder, {"epochs": 1}, resume=True):
        pass
    (folder / "seed-0").symlink_to("../outside")
    said = pytest.raises(ValueError, match=r"seed-0 is a symbolic link that leads out of it")
    with said, open_folder(folder, {"epochs": 1}, resume=True):
        pass
    assert not list(outside.iterdir())


def test_a_lock_that_is_a_link_empties_nothing(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    with open_folder(tmp_path / "run", {"epochs": 1}, resume=False) as folder:
        pass
    for target, said in (("../precious", "a symbolic link that leads out of it"), ("config.json", "a symbolic link")):
        (folder / ".lock").unlink()
        (folder / ".lock").symlink_to(target)
        before = (folder / "config.json").read_text()
        with pytest.raises(ValueError, match=rf"\.lock is {said}"), tidy(folder):
            pass
        with pytest.raises(ValueError, match=rf"\.lock is {said}"), open_folder(folder, {"epochs": 1}, resume=True):
            pass
        assert (precious.read_text(), (folder / "config.json").read_text()) == ("kept", before)


def test_a_damaged_record_of_another_jax_is_named(tmp_path):
    with open_folder(tmp_path / "run", {"jax": "0.1", "programs": {}}, resume=False) as folder:
        pass
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"programs": [1]}))
    said = pytest.raises(ValueError, match=r"config\.json must hold the programs of the run, .* got \[1\]")
    with said, pytest.warns(RuntimeWarning), open_folder(folder, {"jax": "0.2", "programs": {}}, resume=True):
        pass
