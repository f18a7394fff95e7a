"""Strategies on features and relations: every one of them runs on a slice of digits and ends with the student alone."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments import _setting, _strategies_features
from experiments._networks import make_model
from kdjax.data import load, on_device, unit_range
from kdjax.networks import from_linen


@pytest.fixture(scope="module")
def setting():
    return _setting.Setting(
        {name: array[:64] for name, array in on_device(load("digits", "train"), unit_range).items()},
        student=from_linen(make_model("digits_student")),
        assistant=from_linen(make_model("digits_student", widths=(6, 8), hidden=12)),
        teacher=from_linen(make_model("digits_teacher", widths=(6, 8), hidden=12)),
        epochs=2,
        teacher_epochs=1,
        batch_size=32,
        learning_rate=1e-2,
        temperature=4.0,
        alpha=0.3,
    )


@pytest.fixture(scope="module")
def teachers(setting):
    """Untrained: whom the student learns from does not matter here."""
    return [setting.fresh(setting.teacher, 0, 100)] * 3


# Those unlike each other run always.
ALWAYS = ("hints through 1×1 adapters", "progressive: shallow first", "memory of past batches")


@pytest.mark.parametrize(
    "name",
    [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in _strategies_features.FEATURES],
)
def test_a_strategy_ends_with_the_student_alone_and_has_moved_all_of_it(name, setting, teachers):
    weights = _strategies_features.FEATURES[name](setting)(0, teachers)
    fresh = setting.fresh(setting.student, 0, 0)
    assert jax.tree.map(np.shape, weights) == jax.tree.map(np.shape, fresh)
    for own, before in zip(*map(jax.tree.leaves, (weights, fresh)), strict=True):
        assert np.isfinite(own).all()
        assert (own != before).any()


def test_labels_reach_the_probe_and_not_the_student(setting, teachers):
    def learned(labels):
        seen = replace(setting, train=setting.train | {"labels": labels})
        return _strategies_features.self_supervised(seen)(0, teachers).params

    labels = setting.train["labels"]
    first, other = learned(labels), learned((labels + 1) % 10)
    for layer in ("stage1", "stage2", "hidden"):
        jax.tree.map(np.testing.assert_array_equal, first[layer], other[layer])
    # Every class is called by the next one's name, and so is its column of the probe.
    np.testing.assert_allclose(np.roll(first["logits"]["kernel"], 1, axis=1), other["logits"]["kernel"], atol=1e-2)
    assert (np.abs(first["logits"]["kernel"] - other["logits"]["kernel"]) > 0.1).any()
