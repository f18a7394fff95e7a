"""The benchmark runs on a machine without PyTorch, and what it writes down are measurements."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "steps.py"


@pytest.mark.slow
def test_a_quick_trial_measures_every_kind_of_step(tmp_path):
    out = tmp_path / "steps.json"
    subprocess.run([sys.executable, str(SCRIPT), "--quick", "--out", str(out)], check=True, capture_output=True)
    result = json.loads(out.read_text())
    times = {row["work"]: row["quartiles_ms"] for row in result["rows"] if row["who"] == "kdjax"}
    assert times.keys() == {"teacher", "distillation", "student"}
    for low, middle, high in times.values():
        assert 0 < low <= middle <= high
    assert times["student"][1] < times["teacher"][1]  # 30 times fewer parameters
    assert result["cores"] >= 1
    assert result["versions"]["jax"]
