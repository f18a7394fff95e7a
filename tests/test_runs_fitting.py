"""One network's training: what happens where it diverges, by each policy, and at a resumption."""

import io
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from rich.console import Console

from kdjax import Weights, cross_entropy, on_logits, weighted_sum
from kdjax.checkpoints import load_weights
from kdjax.losses import soft_target_kl
from kdjax.runs import Recipe, StoppedError, fitting
from kdjax.runs.fitting import fit, keep_weights
from kdjax.runs.recipes import prepare
from kdjax.training import DivergedError

GOAL = weighted_sum(labels=(1.0, cross_entropy))
INPUTS = np.asarray(jax.random.normal(jax.random.key(1), (24, 4)))
DATA = {"inputs": jax.numpy.asarray(INPUTS), "labels": jax.numpy.asarray(INPUTS.argmax(axis=1))}
NETWORK = tiny.network(5, classes=4)


def trained(folder, optimizer, data=DATA, *, network=NETWORK, epochs=4, text=None, stop=None, **settings):
    recipe = Recipe(network, GOAL, lambda updates: optimizer, epochs, 8, name="dense", learning_rate=0.5)
    trainer = prepare(recipe, 24, **settings)
    weights = trainer.init(jax.random.key(0), DATA["inputs"][:1])
    console = Console(file=text or io.StringIO(), width=300)
    return fit(trainer, weights, data, DATA, seed=3, folder=folder, console=console, label="seed 3 own", stop=stop)


def explodes_at(update, factor=1e16):
    """SGD whose learning rate is `factor` times too large from an update on."""
    return optax.sgd(lambda count: jax.numpy.where(count < update, 0.5, 0.5 * factor))


def test_an_explosion_stops_and_says_all_there_is_to_know(tmp_path, monkeypatch):
    with pytest.raises(DivergedError) as seen:
        trained(tmp_path / "a", explodes_at(0))
    said = str(seen.value)
    assert "seed 3 own (dense): training has diverged in epoch 1 of 4: at step " in said
    assert "its term 'labels' is " in said
    assert "more than 1,000,000,000,000 times as much as at the start, " in said
    assert "learning rate 0.5, objective 1.0 × " in said
    assert "cross_entropy" in said
    assert said.endswith("The last good state was not saved: there is none.")
    monkeypatch.setattr(fitting, "SECONDS_BETWEEN_SAVES", 0.0)
    with pytest.raises(DivergedError) as seen:
        trained(tmp_path / "b", explodes_at(7))
    said = str(seen.value)
    assert "in epoch 3 of 4: at step 3 " in said
    assert "(9 of the run)" in said
    assert said.endswith(f"The last good state is that after epoch 2, in {tmp_path / 'b' / 'state'}.")


def test_a_training_that_is_asked_to_stop_goes_on_from_that_step_to_the_same_bits(tmp_path):
    weights, history = trained(tmp_path / "whole", optax.adam(0.1))
    for calls, step in ((2, 2), (3, 5), (1, 6)):  # within an epoch, over its end, and at the end of one
        stops = iter([False] * (calls - 1) + [True])
        with pytest.raises(
            StoppedError, match=rf"seed 3 own: stopped after step {step} of 12, as asked; .*parts/state"
        ):
            trained(tmp_path / "parts", optax.adam(0.1), stop=lambda own=stops: next(own))
    again, resumed = trained(tmp_path / "parts", optax.adam(0.1))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, weights, again)))
    wanted, found = ([one | {"seconds": 0} for one in each] for each in (history, resumed))
    assert found == wanted
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == resumed


def test_a_stop_says_what_is_saved_and_saves_nothing_that_has_diverged(tmp_path):
    with pytest.raises(StoppedError, match=r"after step 2 of 12, as asked; nothing of it is saved\."):
        trained(tmp_path / "a", optax.adam(0.1), stop=iter([False, True]).__next__, diverged="lower_rate")
    with pytest.raises(StoppedError, match=r"after step 5 of 12, as asked; what it was after step 3 is saved in "):
        trained(tmp_path / "a", optax.adam(0.1), stop=iter([False] * 4 + [True]).__next__, diverged="lower_rate")
    with pytest.raises(DivergedError, match="after step 3 its weights are not all finite"):
        trained(tmp_path / "b", explodes_at(2, np.inf), stop=iter([False, False, True]).__next__)
    assert not [one for one in (tmp_path / "b" / "state").iterdir() if one.name.isdigit()]
    infinite = DATA | {"inputs": DATA["inputs"] * 1e38}
    with pytest.raises(StoppedError, match=r"after step 1 of 12, as asked; it is saved"):
        trained(tmp_path / "c", optax.sgd(0.5), infinite, stop=lambda: True, diverged="skip")


def test_what_is_infinite_from_the_first_is_no_divergence_and_what_becomes_so_is(tmp_path):
    init, apply = NETWORK

    def masked(params, model_state, inputs, **others):
        outputs, _ = apply(params, {}, inputs, **others)
        return outputs._replace(logits=outputs.logits + jnp.maximum(model_state["mask"], -50.0)[None]), model_state

    def begun(key, inputs):
        return Weights(init(key, inputs).params, {"mask": jnp.array([0.0, 0.0, 0.0, -jnp.inf])})

    data = DATA | {"labels": jnp.minimum(DATA["labels"], 2)}
    weights, history = trained(tmp_path / "a", optax.sgd(0.1), data, network=(begun, masked))
    assert history[-1]["train"]["loss"] < history[0]["train"]["loss"]
    assert weights.model_state["mask"].tolist() == [0.0, 0.0, 0.0, -np.inf]
    with pytest.raises(DivergedError, match="after step 3 its weights are not all finite"):
        trained(tmp_path / "b", explodes_at(11, np.inf), data, network=(begun, masked))


def test_weights_that_are_damaged_are_written_again_and_whole_ones_stay(tmp_path):
    weights = NETWORK[0](jax.random.key(0), DATA["inputs"][:1])
    path = tmp_path / "weights"
    for _ in range(2):
        keep_weights(path, weights, {"seed": 3})
    assert [one.name for one in tmp_path.iterdir()] == ["weights"]
    file = path / "record" / "metadata"
    file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))
    with pytest.warns(RuntimeWarning, match=r"weights .*Its weights are written again\."):
        keep_weights(path, weights, {"seed": 3})
    assert sorted(one.name for one in tmp_path.iterdir()) == ["damaged-weights", "weights"]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, weights, load_weights(path, weights))))
    other = jax.tree.map(lambda leaf: leaf + 1, weights)
    with pytest.warns(RuntimeWarning, match=r"weights holds other weights .*Its weights are written again\."):
        keep_weights(path, other, {"seed": 3})
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, other, load_weights(path, weights))))
    with pytest.raises(
        ValueError, match="like must have the architecture"
    ):  # of another network: not to be overwritten
        keep_weights(path, weights._replace(params={}), {})


def test_the_temperature_is_in_the_message():
    soft = weighted_sum(soft=(0.7, on_logits(soft_target_kl, temperature=4.0)))
    recipe = Recipe(NETWORK, soft, lambda updates: optax.sgd(0.1), 1, 8)
    trainer = prepare(recipe, 24)
    said = fitting.diverged_message(trainer, "own", DivergedError("x", 2), 0, 3, 1.0, Path("f"), 0)
    assert "'temperature': 4.0" in said
    assert "0.7" in said
    assert "learning rate" not in said


def test_the_last_updates_weights_are_looked_at_too(tmp_path):
    """The loss of the last step is that before its update: nobody would see what the update did."""
    with pytest.raises(DivergedError, match=r"in epoch 4 of 4: after step 3 its weights are not all finite"):
        trained(tmp_path, explodes_at(11, np.inf))


def test_skipping_leaves_out_what_is_not_finite_and_no_more(tmp_path):
    broken = DATA | {"inputs": DATA["inputs"].at[5].set(np.nan)}
    with pytest.raises(DivergedError):
        trained(tmp_path / "stop", optax.sgd(0.5), broken)
    _, history = trained(tmp_path / "skip", optax.sgd(0.5), broken, diverged="skip")
    assert [round(one["train"]["skipped"], 6) for one in history] == [round(1 / 3, 6)] * 4
    assert history[-1]["train"]["loss"] < history[0]["train"]["loss"] < 5
    assert history[-1]["test"]["accuracy"] > history[0]["test"]["accuracy"]


def test_a_lower_rate_goes_back_one_epoch_and_is_kept_at_a_resumption(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "LOWER", 1e-16)  # what makes up for the factor
    optimizer, text = explodes_at(6), io.StringIO()
    weights, history = trained(tmp_path / "whole", optimizer, text=text, diverged="lower_rate")
    rates = [one.get("rate", 1.0) for one in history]
    assert rates[:2] == [1.0, 1.0]
    assert rates[2:] == [1e-16, 1e-16]
    assert text.getvalue().count("Going back, with 1e-16 × the rate.") == 1
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [one["epoch"] for one in lines] == [1, 2, 3, 4]
    assert lines == history
    # Stopped after the third epoch, and gone on with.
    saved = fitting.save_state

    def stopping(run, step, *others):
        saved(run, step, *others)
        if step == 9:  # 3 updates an epoch
            raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "save_state", stopping)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", optimizer, diverged="lower_rate")
    monkeypatch.setattr(fitting, "save_state", saved)
    again, resumed = trained(tmp_path / "parts", optimizer, diverged="lower_rate")
    assert [one.get("rate", 1.0) for one in resumed] == rates
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, weights, again)))


def test_a_rate_that_cannot_be_low_enough_stops(tmp_path):
    with pytest.raises(DivergedError, match=r"learning rate 0\.0005, objective"):
        trained(tmp_path, optax.sgd(np.inf), epochs=1, diverged="lower_rate")
