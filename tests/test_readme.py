"""The README's code runs as it stands."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def run(block):
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    return names


def test_all_examples_are_found():
    assert len(BLOCKS) == 3


def test_one_loss_has_a_gradient():
    names = run(BLOCKS[0])
    assert names["gradient"].shape == names["student"].shape
    assert float(names["loss"]) > 0
    assert float(abs(names["gradient"]).max()) > 0


def test_own_model_and_data_are_compared_and_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run(BLOCKS[1])
    assert [seed["seed"] for seed in names["results"]["seeds"]] == [0, 1]
    assert all(seed["teacher"]["accuracy"] > 0.5 for seed in names["results"]["seeds"])
    assert "distilled − alone" in capsys.readouterr().out
    again = run(BLOCKS[1])["results"]
    for first, second in zip(names["results"]["seeds"], again["seeds"], strict=True):
        assert all(first[name]["accuracy"] == second[name]["accuracy"] for name in ("teacher", "alone", "distilled"))


def test_a_loop_of_ones_own_learns():
    names = run(BLOCKS[2])
    assert names["state"].step == 80
    assert names["measured"]["cross_entropy"] < 1.09


def test_the_comparison_is_at_most_25_lines():
    lines = [line for line in BLOCKS[1].splitlines() if line.strip()]
    assert len(lines) <= 25


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)h][^)]*)\)", README))
def test_links_lead_somewhere(link):
    assert (Path(__file__).parents[1] / link).exists()
