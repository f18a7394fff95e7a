"""The benchmarks run on a machine without PyTorch, and what they write down are measurements."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kdjax import losses

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
NO_LOSSES = {"Bank", "init_bank", "draw_negatives", "negative_margin", "standardize_logits"}


def quick_trial(script, out, *options):
    command = [sys.executable, str(SCRIPTS / script), "--quick", "--out", str(out), *options]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--apart",)], ids=["together", "apart"])
def test_a_quick_trial_measures_every_kind_of_step(tmp_path, options):
    result = quick_trial("steps.py", tmp_path / "steps.json", *options)
    assert result["config"]["apart"] == bool(options)
    times = {row["work"]: row["quartiles_ms"] for row in result["rows"] if row["who"] == "kdjax"}
    assert times.keys() == {"teacher", "distillation", "student"}
    for low, middle, high in times.values():
        assert 0 < low <= middle <= high
    assert times["student"][1] < times["teacher"][1]  # 30 times fewer parameters
    assert result["cores"] >= 1
    assert result["versions"]["jax"]


@pytest.mark.slow
def test_a_quick_trial_measures_every_loss(tmp_path):
    result = quick_trial("losses.py", tmp_path / "losses.json")
    assert {row["loss"].split(",")[0] for row in result["costs"]} == set(losses.__all__) - NO_LOSSES
    for row in result["costs"] + result["at_64"]:
        low, middle, high = row["quartiles_ms"]
        assert 0 < low <= middle <= high
        assert row["temporary_mb"] >= 0
    for row in result["memory"]:
        assert 0 < row["temporary_mb"] + row["results_mb"] < row["limit_mb"]
        assert row["process_mb"] is None or 0 < row["process_mb"] < row["limit_mb"]
    assert {row["case"] for row in result["memory"]} == {"rkd_angle, block=8", "neuron_selectivity", "crd"}
    assert len(result["ratios_at_64"]) == 3
    assert all(target["met"] == (target["is"] <= target["limit"]) for target in result["targets"])


@pytest.mark.slow
def test_a_quick_trial_measures_both_ways_to_train_many_students(tmp_path):
    result = quick_trial("sweep.py", tmp_path / "sweep.json")
    cases = {
        (row["network"], row["teacher"], row["way"], row["students"]): row["quartiles_ms"] for row in result["rows"]
    }
    assert len(cases) == 2 * 2 * 2 * 2
    for low, middle, high in cases.values():
        assert 0 < low <= middle <= high
    # The teacher's forward pass is most of an MLP student's step.
    assert cases["MLP", "online", "vmap", 1][1] > cases["MLP", "cached", "vmap", 1][1]
    assert result["device"]
