"""The fault suite finds what is wrong, a seeded sample of it passes, and the kept page is that of the kept record."""

import json
import os
import subprocess
import sys
from pathlib import Path

import faults
import faults_bytes
import faults_calls
import faults_kills
import faults_page
import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability-faults.md"
# Orbax reads leaves side by side, and leaves all errors but one for the garbage collector to find.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def test_the_kept_page_is_that_of_the_kept_record_in_which_nothing_failed():
    record = json.loads(faults.RECORD.read_text())
    assert PAGE.read_text() == faults_page.page(record)
    assert faults_page.total(record) >= 50_000
    assert record["seconds"] < 30 * 60
    for one in record["groups"]:
        assert one["failures"] == []
        assert one["injected"] == sum(count for *_, count in one["outcomes"]) > 0
    # Nothing that is to be struck was left out.
    wanted = [(kind, name) for kind, name, _ in faults.jobs()]
    assert sorted((one["kind"], one["name"]) for one in record["groups"]) == sorted(wanted)


def test_a_reader_that_believes_its_file_is_found(monkeypatch):
    def write(folder):
        (folder / "record.json").write_text('{"accuracy": 0.5}')

    def read(folder):
        assert json.loads((folder / "record.json").read_text())["accuracy"] == 0.5
        return "right"

    monkeypatch.setitem(faults_bytes.KEPT, "careless", faults_bytes.Kept(write, read))
    found = faults_bytes.run("careless")
    assert found["injected"] == 17 * 9 + 1
    assert any("other data" in failure for failure in found["failures"])
    assert any("unclear: JSONDecodeError" in failure for failure in found["failures"])
    assert any("unclear: KeyError" in failure for failure in found["failures"])


@pytest.mark.parametrize(
    ("name", "share"), [("weights", 0.002), ("training states", 0.002), ("a teacher's cache", 0.01)]
)
def test_a_sample_of_damage_is_told_or_changes_nothing(name, share):
    found = faults_bytes.run(name, share=share, seed=1)
    assert found["injected"] > 5
    assert found["failures"] == []


def test_a_training_that_is_killed_before_some_steps_ends_in_the_same_bits():
    found = faults_kills.at_each_step("online, two students", share=0.02, seed=2)
    assert found["injected"] > 0
    assert found["failures"] == []


STRUCK = """
import json, pathlib
import faults_calls
from faults_records import SAVES
from faults_saves import Save

def save(folder):
    try:
        (folder / "file").write_text("new")
    except OSError:
        pass

def check(folder):
    return "after" if (folder / "file").read_text() == "new" else "before"

SAVES["careless"] = Save(lambda folder: (folder / "file").write_text("old"), save, check, save)
names = ("careless", "results.json", "a line of metrics.jsonl", "a run's folder and config.json")
print(json.dumps({name: faults_calls.run(name) for name in names}))
"""


def test_calls_that_fail_are_told_and_a_careless_save_is_found(tmp_path):
    shim = faults_calls.compiled(tmp_path)
    if shim is None:
        pytest.skip("needs a C compiler")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"LD_PRELOAD": str(shim), "PYTHONPATH": paths, "PYTHONWARNINGS": "ignore"}
    said = subprocess.run([sys.executable, "-c", STRUCK], capture_output=True, text=True, env=environment, check=True)
    found = json.loads(said.stdout.splitlines()[-1])
    careless = found.pop("careless")
    assert any("returned, and the folder is before" in failure for failure in careless["failures"])
    for one in found.values():
        assert one["failures"] == []
        assert one["injected"] >= 12
