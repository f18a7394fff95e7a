"""Every loss trains: 100 steps on it alone, on real digits, and its value falls on digits that the student never saw.

Only the student learns here. A connector that learnt beside it could lower the value where nothing reaches the student.

`python tests/test_losses_train.py` prints the values before and after as a table.
"""

from typing import Any

import jax
import numpy as np
import optax
import pytest
from trials import APPLY, HELD_OUT, INIT, LOSSES, TRIALS, Trial, arrays, batches_of, teacher

from kdjax import connectors, init_state, make_train_step, weighted_sum
from kdjax.batches import take
from kdjax.training import train_only


def train(trial: Trial, seed: int = 0, apply: Any = APPLY, steps: int | None = None) -> tuple[float, float]:
    """The loss's mean before and after: on held-out digits, or for CRD, whose bank knows none, on training digits."""
    train, test = arrays()
    measured = {**take(train, np.arange(HELD_OUT)), "margin": test["margin"]} if "crd" in trial.beside else test
    optimizer = train_only(optax.adam(1e-2), "^student")
    step = make_train_step(apply, APPLY, optimizer, connectors=trial.beside)
    objective = weighted_sum(own=(1.0, trial.term))

    def one(state, chosen):
        return step(state, teacher(), objective, take(train, chosen) | {"margin": test["margin"]})[0], None

    def value(params, model_state, rng):
        student, _ = apply(params["student"], model_state["student"], measured["inputs"], train=False)
        taught, _ = APPLY(*teacher(), measured["inputs"], train=False)
        beside = params["connectors"], model_state["connectors"]
        student, taught, _ = connectors.connect(trial.beside, *beside, student, taught, measured, train=False, rng=rng)
        return trial.term(student, taught, measured).mean()

    @jax.jit
    def run(state, batches):
        after, _ = jax.lax.scan(one, state, batches)
        # One memory and one draw for both, so that what fell is the student's doing.
        return tuple(value(params, after.model_state, state.rng) for params in (state.params, after.params))

    first, second = jax.random.split(jax.random.key(100 + seed))
    own = INIT(first, train["inputs"][:1])
    weights = connectors.init_beside(trial.beside, second, APPLY, own, APPLY, teacher(), train["inputs"][:1])
    before, after = run(init_state(weights, optimizer, second), batches_of(steps or trial.steps))
    return float(before), float(after)


def test_every_loss_has_a_trial_and_they_are_all_here():
    assert sorted(TRIALS) == sorted(LOSSES)
    assert all(trial.left < 1 and bool(trial.why) == (trial.left > 0.5) for trial in TRIALS.values())


# One of each kind runs always: on logits, features, relations, chosen outputs, and with what is learnt or remembered.
ALWAYS = ("soft_target_kl", "decoupled_kd", "attention_transfer", "rkd_angle", "fsp", "variational_information", "crd")


@pytest.mark.parametrize(
    "name", [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in LOSSES]
)
def test_the_loss_falls_where_it_is_all_there_is(name):
    before, after = train(TRIALS[name])
    assert np.isfinite([before, after]).all()
    assert 0 < after < TRIALS[name].left * before


@pytest.mark.parametrize("name", [name for name, trial in TRIALS.items() if trial.beside])
def test_a_loss_that_reaches_no_weight_is_found_out(name):
    """The control: what the test above would say where the student is detached from what is made of its outputs."""

    def detached(*arguments, **keywords):
        return jax.lax.stop_gradient(APPLY(*arguments, **keywords))

    before, after = train(TRIALS[name], apply=detached, steps=5)
    assert before == after


def main():
    for name, trial in TRIALS.items():
        pairs = [train(trial, seed) for seed in range(3)]
        print(
            f"{name:26}",
            *(f"{before:10.4g} -> {after:10.4g} ({after / before:.2f})" for before, after in pairs),
            flush=True,
        )


if __name__ == "__main__":
    main()
