"""What the words of a command line become: networks, and numbers that may change over all updates."""

import jax
import jax.numpy as jnp
import pytest

from kdjax.command import _recipes
from kdjax.command._networks import NETWORKS, network
from kdjax.command._settings import Compare
from kdjax.losses import logit_mse
from kdjax.objectives.schedules import at


def chosen(**changes):
    return Compare(teacher=("cnn_tiny",), student="cnn_tiny", data="digits", **changes)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("4", (4.0, 4.0, 4.0)),
        ("8:2", (8.0, 5.0, 2.0)),
        ("8:2:linear", (8.0, 5.0, 2.0)),
        ("8:2:cosine", (8.0, 5.0, 2.0)),
    ],
)
def test_temperature_and_weight_may_change_over_all_updates(text, values):
    objective = _recipes.objective_of(chosen(temperature=text, alpha="0.5:0.1"), 10)
    for step, value in zip((0, 5, 10), values, strict=True):
        now = at(objective, step)
        assert float(now.terms["soft"].numbers["temperature"]) == pytest.approx(value)
        weights = {name: float(weight) for name, weight in now.weights.items()}
        assert weights["labels"] == pytest.approx(0.5 - 0.04 * step)
        assert sum(weights.values()) == pytest.approx(1.0)


def test_mse_is_of_the_logits():
    assert _recipes.objective_of(chosen(loss="mse"), 10).terms["soft"].loss is logit_mse


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"temperature": "warm"}, "--temperature must be NUMBER"),
        ({"temperature": "4:2:1"}, "--temperature must be NUMBER"),
        ({"temperature": "4:0"}, "--temperature"),
        ({"temperature": "nan"}, "--temperature"),
        ({"alpha": "1.5"}, "--alpha"),
        ({"alpha": "0.1:-0.1"}, "--alpha"),
    ],
)
def test_numbers_that_are_none_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        _recipes.objective_of(chosen(**changes), 10)


@pytest.mark.parametrize("name", ["cnn_tiny", "cnn_large", "wrn_10_1"])
def test_a_name_is_a_network_of_as_many_classes_as_the_data(name):
    assert name in NETWORKS
    outputs, _ = jax.eval_shape(lambda: _outputs(name))
    assert outputs.logits.shape == (1, 7)


def _outputs(name):
    init, apply = network(name, 7)
    inputs = jnp.zeros((1, 32, 32, 3))
    return apply(*init(jax.random.key(0), inputs), inputs, train=False)
