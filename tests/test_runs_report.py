import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from kdjax._files import write_json
from kdjax.runs.report import comparison, comparison_lines, comparison_table
from kdjax.runs.report._numbers import rows

NAMES = [f"class{index}" for index in range(10)]
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)


def results_of(teacher, alone, distilled, *, agreement=0.97):
    all_of = {"teacher": teacher, "alone": alone, "distilled": distilled}.items()
    seeds = [
        {name: {"accuracy": values[seed], "agreement": agreement, "seconds": 2.0 + seed} for name, values in all_of}
        for seed in range(len(alone))
    ]
    return {"experiment": "digits", "parameters": {"teacher": 12345, "alone": 678, "distilled": 678}, "seeds": seeds}


def printed(results) -> str:
    text = io.StringIO()
    comparison(results, Console(file=text, width=100))
    return text.getvalue()


def test_the_table_says_mean_interval_parameters_and_seconds(tmp_path):
    results = results_of([0.99, 0.98, 0.985], [0.96, 0.96, 0.96], [0.97, 0.98, 0.975])
    write_json(tmp_path / "results.json", results)
    text = printed(json.loads((tmp_path / "results.json").read_text()))
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in text.splitlines() if line.startswith("│")}
    # t(0.975; 2) = 4.302653 times 0.5 / √3
    assert [cell.strip() for cell in rows["teacher"]] == ["12,345", "98.50 ± 1.24", "", "3.0"]
    assert [cell.strip() for cell in rows["alone"]] == ["678", "96.00 ± 0.00", "97.00 ± 0.00", "3.0"]
    assert [cell.strip() for cell in rows["distilled"]] == ["678", "97.50 ± 1.24", "97.00 ± 0.00", "3.0"]
    assert "over 3 seeds" in text
    assert "digits" in text


@pytest.mark.parametrize(
    ("alone", "distilled", "said"),
    [
        (
            [0.96, 0.965, 0.955],
            [0.97, 0.974, 0.966],
            "+1.00 ± 0.25 points (95 %, 3 paired seeds): clear of zero, the teacher helped",
        ),
        (
            [0.97, 0.974, 0.966],
            [0.96, 0.965, 0.955],
            "-1.00 ± 0.25 points (95 %, 3 paired seeds): clear of zero, the teacher hurt",
        ),
        (
            [0.96, 0.97],
            [0.97, 0.965],
            "+0.25 ± 9.53 points (95 %, 2 paired seeds): zero lies within, these seeds show no difference",
        ),
        (
            [0.96, 0.95, 0.93],
            [0.98, 0.97, 0.95],
            "+2.00 points in each of 3 paired seeds: no spread was seen, hence no interval",
        ),
        ([0.96, 0.95], [0.96, 0.95], "+0.00 points in each of 2 paired seeds: no spread was seen, hence no interval"),
        ([0.96], [0.97], "+1.00 points with 1 seed, hence no interval: this shows nothing yet"),
    ],
    ids=["helped", "hurt", "unclear", "all alike", "none in any", "one seed"],
)
def test_the_difference_is_judged_by_its_interval(alone, distilled, said):
    first, _ = comparison_lines(results_of([0.99] * len(alone), alone, distilled))
    assert first == f"distilled − alone: {said}"


def test_one_teacher_for_all_seeds_has_no_interval_and_no_seconds():
    results = results_of([0.9875] * 3, [0.96, 0.97, 0.965], [0.97, 0.972, 0.975])
    for seed in results["seeds"]:
        seed["teacher"]["seconds"] = 0.0
    row = next(line for line in printed(results).splitlines() if "teacher " in line and "12,345" in line)
    assert "98.75" in row
    assert "±" not in row
    assert "given" in row


def test_the_transfer_rate_is_told_only_of_a_teacher_that_leads():
    def rate(teacher):
        return comparison_lines(results_of([teacher] * 2, [0.95, 0.96], [0.965, 0.965]))[1]

    assert rate(0.985) == "accuracy transfer rate: 33.33 % of the teacher's lead of 3.00 points over the student alone"
    for teacher, lead in ((0.955, "+0.00"), (0.94, "-1.50")):
        assert rate(teacher) == (
            f"accuracy transfer rate: none, since the teacher does not lead the student alone ({lead} points)"
        )


def test_what_was_not_measured_is_said_and_no_seed_is_an_error():
    assert printed(results_of([0.9], [0.8], [0.85], agreement=None)).count("not measured") == 2
    assert "one seed: no interval" in printed(results_of([0.9], [0.8], [0.85]))
    for render in (comparison_table, comparison_lines):
        with pytest.raises(ValueError, match="at least one seed; got none"):
            render(results_of([], [], []))


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
@pytest.mark.parametrize("percent", [True, False])
@pytest.mark.parametrize("network", ["teacher", "alone", "distilled"])
def test_what_is_not_finite_was_not_measured(network, percent, value):
    results = results_of([0.99] * 2, [0.95, 0.96], [0.965, 0.965])
    results["measure"] = {"name": "accuracy", "percent": percent, "lower_is_better": False}
    results["seeds"][1][network]["accuracy"] = value
    text = printed(results)
    assert text.count("not measured") == 2
    assert "distilled − alone: accuracy was not measured in every network and seed" in text
    assert "nan" not in text
    values = {title: own for title, _, own in rows(results, None)}
    assert values[f"test accuracy{', %' if percent else ''}"][network] == "not measured"
    assert "transfer rate, %" not in values


@pytest.mark.parametrize("missing", ["teacher", "alone", "distilled"])
def test_a_measure_that_one_network_lacks_is_shown_of_the_others(missing):
    """It is null in the file where it was NaN, as a perplexity that is infinite."""
    results = results_of([0.99] * 2, [0.95, 0.96], [0.965, 0.965])
    for number, seed in enumerate(results["seeds"]):
        for name in ("teacher", "alone", "distilled"):
            lacks = name == missing and number == 0
            seed[name] |= {"loss": 0.5, "perplexity": None if lacks else 2.5, "recall": 0.25, "iou": [0.5, None]}
    found = [(title, values) for title, _, values in rows(results, None) if title.startswith("test ")]
    assert [title for title, _ in found] == ["test accuracy, %", "test loss", "test perplexity", "test recall"]
    values = dict(found)
    assert values["test perplexity"].pop(missing) == "not measured"
    assert set(values["test perplexity"].values()) == {"2.5 ± 0"}
    for seed in results["seeds"]:
        for name in ("teacher", "alone", "distilled"):
            seed[name]["perplexity"] = None
    assert "test perplexity" not in [title for title, _, _ in rows(results, None)]


def test_what_a_teacher_came_to_is_no_measure():
    results = results_of([0.99] * 2, [0.95, 0.96], [0.965, 0.965])
    for seed in results["seeds"]:
        seed["teacher"] |= {"rate": 0.5, "skipped": 0.25, "loss": 0.125}
    titles = [title for title, _, _ in rows(results, None) if title.startswith("test ")]
    assert titles == ["test accuracy, %", "test loss"]


def test_importing_the_modules_imports_no_matplotlib_and_no_rich():
    code = (
        "import sys, kdjax.runs.report, kdjax.runs.pictures; sys.exit(bool({'matplotlib', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0


def test_a_users_own_names_are_no_markup():
    """What was trained for hours is not lost to a bracket in a name."""
    seed = {"teacher": {"own [/b]": 0.9}, "alone": {"own [/b]": 0.7}, "distilled": {"own [/b]": 0.8}}
    measure = {"name": "own [/b]", "percent": False, "lower_is_better": False}
    results = {"seeds": [seed], "parameters": dict.fromkeys(seed, 1), "measure": measure, "experiment": "[/i] run[/b]"}
    text = io.StringIO()
    comparison(results, Console(file=text, width=200))
    assert "[/i] run[/b]" in text.getvalue()
    assert "test own [/b]" in text.getvalue()
    assert "own [/b] transfer rate" in text.getvalue()


def test_what_diverged_and_was_mended_is_said_under_the_table():
    seed = {"teacher": {"accuracy": 0.9}, "alone": {"accuracy": 0.7}, "distilled": {"accuracy": 0.8}}
    lowered = seed | {"distilled": {"accuracy": 0.8, "rate": 0.01}, "alone": {"accuracy": 0.7, "skipped": 0.25}}
    assert len(comparison_lines({"seeds": [seed, seed]})) == 2
    *_, alone, distilled = comparison_lines({"seeds": [seed, lowered]})
    assert "Beware: alone diverged in 1 of 2 seeds" in alone
    assert "without this share of its updates: 0.25" in alone
    assert (
        "Beware: distilled diverged in 1 of 2 seeds and was then trained with its learning rate times 0.01" in distilled
    )
