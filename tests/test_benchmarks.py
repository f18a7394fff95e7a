"""The benchmarks run on a machine without PyTorch, and what they write down are measurements."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from cases import NOT_LOSSES

from kdjax import losses

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
LOSSES = set(losses.__all__) - set(NOT_LOSSES)


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
    assert result["hardware"]["cores"] >= 1
    assert result["versions"]["jax"]


@pytest.mark.slow
def test_a_quick_trial_measures_every_loss(tmp_path):
    result = quick_trial("losses.py", tmp_path / "losses.json")
    assert {row["loss"].split(",")[0] for row in result["costs"]} == LOSSES
    for row in result["costs"] + result["at_64"]:
        low, middle, high = row["quartiles_ms"]
        assert 0 < low <= middle <= high
        assert row["temporary_mb"] >= 0
    for row in result["memory"]:
        assert 0 < row["temporary_mb"] + row["results_mb"] < row["limit_mb"]
        assert row["process_mb"] is None or 0 < row["process_mb"] < row["limit_mb"]
    assert {row["case"] for row in result["memory"]} == {"rkd_angle, block=8", "neuron_selectivity", "crd"}
    assert len(result["ratios_at_64"]) == 3
    beside = result["beside_pytorch"]
    assert {row["loss"] for row in beside} == LOSSES
    for row in beside:
        assert min(row["kdjax_ms"]) > 0
        assert row["agree"] is not False, row
        assert (row["pytorch_ms"] is None) == (row["agree"] is None) == (result["versions"]["torch"] is None)
    for target in result["targets"]:
        if target["is"] is None:
            assert target["met"] is None
        else:
            is_met = target["is"] >= target["least"] if "least" in target else target["is"] <= target["limit"]
            assert target["met"] == is_met


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
    assert result["hardware"]["device"]
    assert {(row["network"], row["teacher"]) for row in result["compared"]} == {(case[0], case[1]) for case in cases}
    for row in result["compared"]:
        assert row["slower_over_faster"] >= 1.0


@pytest.mark.slow
def test_a_quick_trial_measures_all_axes(tmp_path):
    result = quick_trial("scaling.py", tmp_path / "scaling.json", "--figures", str(tmp_path))
    for axis, sizes in {"batch": {32, 64}, "students": {1, 2}, "devices": {1, 2}, "teacher": {0.25, 0.5}}.items():
        assert {row["at"] for row in result["axes"][axis]} == sizes
        for row in result["axes"][axis]:
            assert 0 < row["limit_ms"] < row["quartiles_ms"][1]  # nothing is faster than its arithmetic
        assert (tmp_path / f"scaling-{axis}-cpu.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_profile_sums_to_the_step(tmp_path):
    result = quick_trial("profile_step.py", tmp_path / "profile.json", "--figure", str(tmp_path / "profile.png"))
    assert [row["work"] for row in result["rows"]] == ["teacher", "distillation", "student"]
    for row in result["rows"]:
        parts = {(entry["part"], entry["kind"]): entry["ms"] for entry in row["parts"]}
        assert sum(parts.values()) == pytest.approx(row["traced_ms"][1])
        assert all(time > 0 for (part, _), time in parts.items() if part != "dispatch and host")
        assert (("teacher forward", "convolution") in parts) == (row["work"] == "distillation")
        assert parts["student backward", "convolution"] > 0
    assert (tmp_path / "profile.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_quick_trial_runs_all_of_article_c(tmp_path, mnist_dir):
    result = quick_trial("article.py", tmp_path / "article.json", "--data-dir", str(mnist_dir))
    (run,) = result["runs"]
    for phase in ("teacher", "alone", "distilled"):
        measured = run["kdjax"][phase]
        assert len(measured["epochs_s"]) == 2
        assert 0 < sum(measured["epochs_s"]) < measured["seconds"]
        assert 0 <= measured["test_accuracy"] <= 1
    assert run["kdjax"]["teacher"]["test_accuracy"] > 0.3  # a guess is right one time in ten
    # By hand: forwards, backwards to the kernels, and to the second layer's inputs, 640 images.
    layers = [28 * 28 * 9 * 64, 14 * 14 * 9 * 64 * 256, 7 * 7 * 256 * 10]
    assert result["teachers_training"]["flop_an_epoch"] == 640 * 2 * (3 * sum(layers) - layers[0])


@pytest.mark.slow
def test_a_quick_trial_measures_a_step_of_wide_residual_networks(tmp_path):
    result = quick_trial("wrn.py", tmp_path / "wrn.json")
    row = result["rows"][0]
    low, middle, high = row["quartiles_ms"]
    assert 0 < low <= middle <= high
    assert 0 < row["share_of_measured_peak"] < 1.2
    assert row["images_per_second"] == pytest.approx(8000 / middle)
    # The literature gives WRN-40-2 and WRN-16-2 0.33 and 0.10 thousand million multiplications an image.
    assert result["gflop_a_step"] == pytest.approx(2 * 8 * (0.33 + 3 * 0.10), rel=0.02)


@pytest.mark.slow
def test_a_quick_trial_measures_every_part_of_a_start(tmp_path):
    rows = {row["what"]: row for row in quick_trial("startup.py", tmp_path / "startup.json")["rows"]}
    targets = {name: row["target"] for name, row in rows.items() if row["target"] is not None}
    assert targets == {
        "import kdjax adds": 0.1,
        "experiment --help": 1.5,
        "first step, cold": 4.0,
        "first step, cached": 1.0,
    }
    seconds = {name: row["quartiles_s"][1] for name, row in rows.items()}
    assert seconds["first step, cached"] < seconds["first step, cold"]
    assert all(row["met"] == (seconds[name] <= row["target"]) for name, row in rows.items() if row["target"])


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_a_quick_trial_measures_memory_that_is_kept(tmp_path):
    result = quick_trial("kept_memory.py", tmp_path / "kept_memory.json")
    (row,) = result["rows"]
    assert row["pages"]["kept"] < row["pages"]["given back"] / 2
    assert row["mb"]["kept"] > 0
    assert 0 < row["ratio"] < 2
    for low, middle, high in row["quartiles_ms"].values():
        assert 0 < low <= middle <= high
