"""Compiler options of a run: written down, kept at a resumption and a re-measurement; an older run has none."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from comparisons import DATA, RECIPES, numbers, run

from kdjax.runs import _options, recipes, remeasure
from kdjax.training import compiler_options

ASKED = {name: replace(recipe, compile_for="residual") for name, recipe in RECIPES.items()}
HERE = compiler_options("residual")
NOW = {"teacher": HERE, "alone": {}, "distilled": HERE}


@pytest.fixture
def given(monkeypatch):
    """The options that networks are prepared with, one after the other."""
    seen, prepare = [], recipes.prepare

    def told(recipe, *rest, **settings):
        trainer = prepare(recipe, *rest, **settings)
        seen.append(trainer.options)
        return trainer

    monkeypatch.setattr("kdjax.runs._seeds.prepare", told)
    return seen


def forget(out):
    """What a run of before there were options looks like."""
    config = json.loads((out / "config.json").read_text())
    del config["chosen"]["compiler_options"]
    (out / "config.json").write_text(json.dumps(config))


def test_a_run_writes_down_its_options_and_stays_with_them(given, tmp_path, monkeypatch):
    out = tmp_path / "run"
    results = run(out, **ASKED | {"alone": RECIPES["alone"]})
    assert results["compiler_options"] == NOW
    assert json.loads((out / "results.json").read_text())["compiler_options"] == NOW
    before = numbers(out, "distilled")
    # Another table, of a later kdjax: the run that is gone on with keeps its own, another one that begins does not.
    shutil.copytree(out, tmp_path / "old")
    monkeypatch.setattr(recipes.training, "compiler_options", lambda network: {})
    assert run(out, **ASKED, seeds=2, resume=True)["compiler_options"] == NOW
    assert given[-3:] == list(NOW.values())
    np.testing.assert_array_equal(numbers(out, "distilled"), before)
    assert not any(one.problem for one in remeasure(out, data=DATA, **ASKED))
    assert given[-3:] == list(NOW.values())
    monkeypatch.undo()
    # An older version's run had none.
    forget(tmp_path / "old")
    assert run(tmp_path / "old", **ASKED, resume=True)["compiler_options"] == {name: {} for name in ASKED}


def test_options_that_this_jaxlib_does_not_know_give_way_to_its_own(tmp_path):
    found = {"teacher": {"xla_of_another_version": True}, "alone": {"xla_of_another_version": True}}
    assert _options.kept(found, NOW, tmp_path) == NOW | {"distilled": {}}
    of_other_value = dict.fromkeys(HERE, 5)
    assert _options.kept({"teacher": of_other_value}, NOW, tmp_path)["teacher"] == HERE
    (tmp_path / "config.json").write_text(json.dumps({"chosen": {"compiler_options": json.dumps(found)}}))
    said = []
    assert _options.begun_with(tmp_path, NOW, said.append) == NOW | {"distilled": {}}
    assert [line[:34] for line in said] == ["Beware: the teacher network began ", "Beware: the alone network began wi"]
    assert "{'xla_of_another_version': True}, which are not known here" in said[0]
    assert "it is none" in said[1]


@pytest.mark.parametrize("found", ["[]", "{", '{"teacher": 1}', "[" * 9999])
def test_damaged_options_are_named(found, tmp_path):
    config = {"chosen": {"compiler_options": found}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json must hold compiler options by network, as the run wrote them"):
        _options.begun_with(tmp_path, NOW, print)


def test_a_recipe_for_no_known_kind_of_network_is_refused():
    with pytest.raises(ValueError, match="compile_for must be one of residual; got 'cnn'"):
        replace(RECIPES["alone"], compile_for="cnn")
