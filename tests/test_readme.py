"""The README's code runs as it stands."""

import re
from pathlib import Path

import jax
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def run(block):
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    return names


def test_both_examples_are_found():
    assert len(BLOCKS) == 2


def test_one_loss_has_a_gradient():
    names = run(BLOCKS[0])
    assert names["gradient"].shape == names["student"].shape
    assert float(names["loss"]) > 0
    assert float(abs(names["gradient"]).max()) > 0


def test_own_model_and_data_learn():
    names = run(BLOCKS[1])
    assert names["state"].step == 100
    step, teacher, objective = names["step"], names["teacher"], names["objective"]
    fresh = names["init_state"](
        names["init_student"](jax.random.key(1), names["inputs"]), names["optimizer"], jax.random.key(2)
    )
    batch = {"inputs": names["inputs"], "labels": names["labels"]}
    first = step(fresh, teacher, objective, batch)[1]["loss"]
    assert float(names["metrics"]["loss"]) < 0.7 * float(first)


def test_the_example_is_about_20_lines():
    lines = [line for line in BLOCKS[1].splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 20


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)h][^)]*)\)", README))
def test_links_lead_somewhere(link):
    assert (Path(__file__).parents[1] / link).exists()
