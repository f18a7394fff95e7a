"""The notebook: its source runs as a script, with few epochs, and its page shows the source's code."""

import re
from pathlib import Path

import jax
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "docs" / "notebooks"
SOURCE = (NOTEBOOKS / "four_tutorials.py").read_text()
PAGE = (NOTEBOOKS / "four_tutorials.md").read_text()
WHOLE, SHORT = (f"TEACHER_EPOCHS, EPOCHS, SEEDS = {numbers}\n" for numbers in ("20, 60, 4", "2, 1, 2"))


def test_the_notebook_runs(monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "agg")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    assert SOURCE.count(WHOLE) == 1
    names: dict = {"__name__": "notebook"}
    with jax.numpy_rank_promotion("allow"):
        exec(compile(SOURCE.replace(WHOLE, SHORT), "four_tutorials.py", "exec"), names)
    pyplot.close("all")
    said = capsys.readouterr().out
    assert list(names["found"]) == ["alone", "soft targets", "logits", "no labels", "schedules", "from the teacher",
                                    "features", "relations"]  # fmt: skip
    assert "transfer rate" in said
    assert names["of_teacher"][-1]["test"]["accuracy"] > 0.3  # chance is 0.1
    assert {name: len(lines) for name, lines in names["curves"].items()} == {"teacher": 2, "alone": 1, "distilled": 1}


def test_the_page_shows_the_source_and_every_figure_has_words():
    cells = re.findall(r"^# %%(?! \[markdown\]).*\n((?:(?!# %% ?).*\n)*)", SOURCE, flags=re.MULTILINE)
    shown = re.findall(r"```python\n(.*?)\n```", PAGE, flags=re.DOTALL)
    assert [cell.strip().replace("# %matplotlib", "%matplotlib") for cell in cells] == [one.strip() for one in shown]
    figures = re.findall(r"!\[(.*?)\]\((.*?)\)", PAGE)
    assert len(figures) == SOURCE.count("# %% alt=") > 4
    for words, file in figures:
        assert len(words) > 20, file
        assert (NOTEBOOKS / file).exists()
    assert "Traceback" not in PAGE
    assert not re.search(r"/(tmp|home|root|usr)/", PAGE)
