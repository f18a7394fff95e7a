"""The record of the long run obeys its law, and the law is one that can be broken; `make long` measures it again."""

import json
from pathlib import Path

import long_run
import numpy as np
import pytest

RECORD = json.loads((Path(__file__).parent / "long_run.json").read_text())
PAGE = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text()


def test_the_record_is_of_100000_steps_and_obeys_the_law():
    assert RECORD["steps"] == 100_000
    assert long_run.broken(RECORD) == []
    assert RECORD["saves"] > 5


def test_the_page_has_the_records_figures():
    growth, spread = RECORD["growth_mb_per_100000_steps"], RECORD["growth_interval"]
    assert f"{growth:.1f} ± {spread:.1f} MB" in PAGE
    assert f"{100 * RECORD['share_of_saving']:.2f} %" in PAGE


@pytest.mark.parametrize("law", ["memory", "speed", "saving", "files"])
def test_what_grows_is_seen(law):
    step, resident = np.arange(1, 101) * 100, np.full(100, 5e8)
    clock, files = step / 1e4, np.full(100, 40.0)
    saving = [0.1] * 6
    if law == "memory":
        resident = resident + step * 500.0
    elif law == "speed":
        clock = clock * (1 + step / 5e4)
    elif law == "saving":
        saving = [10.0]
    else:
        files = files + step
    rows = list(zip(step, clock, resident, files, strict=True))
    assert long_run.broken(long_run.figures(rows, saving, 100.0, 0)) == [law]
    assert long_run.slope_of(np.arange(20.0), 3.0 * np.arange(20.0))[0] == pytest.approx(3.0)


def test_a_short_run_is_measured_as_the_long_one():
    found = long_run.measured(2_500)
    assert found["steps"] == 2_500
    assert found["saves"] >= 3
    assert 0 < found["share_of_saving"] < 1
