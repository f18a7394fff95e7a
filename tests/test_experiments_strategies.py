"""The comparison of strategies: every one of them runs, from the same weights, and teaches what its name says."""

import json

import jax
import numpy as np
import pytest

from experiments import _setting, _strategies, strategies
from experiments._networks import make_model
from kdjax.data import load, on_device, unit_range
from kdjax.networks import from_linen


@pytest.fixture(scope="module")
def setting():
    return _setting.Setting(
        {name: array[:96] for name, array in on_device(load("digits", "train"), unit_range).items()},
        student=from_linen(make_model("digits_student")),
        assistant=from_linen(make_model("digits_student", widths=(6, 8), hidden=12)),
        teacher=from_linen(make_model("digits_teacher", widths=(6, 8), hidden=12)),
        epochs=4,
        teacher_epochs=4,
        batch_size=32,
        learning_rate=1e-2,
        temperature=4.0,
        alpha=0.3,
    )


def test_a_run_is_a_function_of_its_seed_and_its_teacher(setting):
    train_teacher = _setting.teacher_of(setting)
    teachers = [train_teacher(0, number) for number in range(2)]
    learn = _strategies.offline(setting)
    first, again, other = learn(0, teachers), learn(0, teachers), learn(0, teachers[::-1])
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True))


def test_two_stages_end_with_the_student_alone(setting):
    teacher = _setting.teacher_of(setting)(0, 0)
    weights = _strategies.two_stages(setting)(0, [teacher])
    fresh = setting.fresh(setting.student, 0, 0)
    assert jax.tree.structure(weights) == jax.tree.structure(fresh)
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (weights.params, fresh.params)), strict=True))


@pytest.mark.slow
def test_all_strategies_run_and_are_recorded(tmp_path, capsys):
    strategies.main(strategies.Strategies(seeds=2, epochs=16, teacher_epochs=3, out=tmp_path / "out"))
    seeds = json.loads((tmp_path / "out" / "results.json").read_text())["seeds"]
    assert [set(record) for record in seeds] == [{"teacher", *strategies.STRATEGIES}] * 2
    assert all(30 < record[name]["accuracy"] <= 100 for record in seeds for name in record)
    assert "offline: one frozen teacher" in capsys.readouterr().out


def test_a_strategy_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"only must be part of a strategy's name: alone, .*; got 'ofline'"):
        strategies.Strategies(only="ofline")
    with pytest.raises(ValueError, match="seeds must be a whole number, 1 or greater; got 0"):
        strategies.Strategies(seeds=0)
