"""Every loss trains: 100 steps on it alone, on real digits, and its value falls on digits that the student never saw.

Only the student learns here. A connector that learnt beside it could lower the value where nothing reaches the student.

`python tests/test_losses_train.py` prints the values before and after as a table.
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from kdjax import (
    Outputs,
    Weights,
    computed,
    connectors,
    cross_entropy,
    init_state,
    losses,
    make_train_step,
    on_feature,
    on_logits,
    on_outputs,
    weighted_sum,
)
from kdjax.batches import epoch_indices, take
from kdjax.data import load, on_device, unit_range
from kdjax.networks import from_linen
from kdjax.training import train_only

STEPS, BATCH, HELD_OUT = 100, 64, 128


class Network(nn.Module):
    """Two convolutions of 2 × 2 patches and two dense layers; its features are taken before their ReLUs."""

    @nn.compact
    def __call__(self, images):
        bottom = nn.Dense(6)(patches(images))
        top = nn.Dense(8)(patches(nn.relu(bottom)))
        embedding = nn.Dense(12)(nn.relu(top).reshape(len(images), -1))
        rows = bottom.reshape(len(images), 4, -1)
        return Outputs(
            nn.Dense(10)(nn.relu(embedding)), {"bottom": bottom, "top": top, "embedding": embedding, "rows": rows}
        )


def patches(maps):
    """[batch, height, width, channels] to [batch, height/2, width/2, 4 channels]."""
    batch, height, width, channels = maps.shape
    blocks = maps.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
    return blocks.reshape(batch, height // 2, width // 2, 4 * channels)


class Trial(NamedTuple):
    """How a loss is lifted, and how much of its value may be left.

    Attributes:
      term: the loss, lifted.
      left: the most that may be left, as a share of the value before. Half, where three seeds left 40 % or less.
      why: where more may be left.
      beside: its connectors by name, which stay as they were initialised but for what they remember.
    """

    term: Any
    left: float = 0.5
    why: str = ""
    beside: Mapping[str, connectors.Connector] = {}


TRIALS = {
    **{
        loss.__name__: Trial(on_logits(loss))
        for loss in (
            losses.soft_target_kl,
            losses.soft_target_bce,
            losses.logit_mse,
            losses.reverse_kl,
            losses.jensen_shannon,
            losses.target_class_kd,
            losses.non_target_class_kd,
            losses.decoupled_kd,
            losses.normalized_kd,
            losses.dist,
            losses.standardized_kd,
        )
    },
    **{
        loss.__name__: Trial(on_feature(loss, feature))
        for loss, feature in (
            (losses.hint, "top"),
            (losses.cosine, "top"),
            (losses.attention_transfer, "top"),
            (losses.factor_transfer, "top"),
            (losses.neuron_selectivity, "top"),
            (losses.activation_boundary, "top"),
            (losses.hierarchical_context, "bottom"),
            (losses.sequence_angles, "rows"),
            (losses.rkd_distance, "embedding"),
            (losses.rkd_angle, "embedding"),
            (losses.similarity_preserving, "embedding"),
            (losses.correlation_congruence, "embedding"),
            (losses.kernel_congruence, "embedding"),
            (losses.kernel_alignment, "embedding"),
            (losses.pkt, "embedding"),
            (losses.info_nce, "embedding"),
        )
    },
    "top_k_kl": Trial(on_outputs(losses.top_k_kl, "student.logits", "batch.top_values", "batch.top_indices")),
    "overhaul": Trial(on_outputs(losses.overhaul, "student.top", "teacher.top", margin="batch.margin")),
    "fsp": Trial(on_outputs(losses.fsp, "student.bottom", "student.top", "teacher.bottom", "teacher.top")),
    "variational_information": Trial(
        on_outputs(
            losses.variational_information, "student.vid", "teacher.vid", raw_variance="student.vid_raw_variance"
        ),
        left=0.8,
        why="three random layers stand between the student's feature and the teacher's, and the variance stays",
        beside={"vid": connectors.variational("top", start_variance=0.5)},
    ),
    "similarity_graph": Trial(
        on_feature(losses.similarity_graph, "embedding"),
        left=0.85,
        why="partners of one class compete with each other: with k of them, at least log k stays",
    ),
    "similarity_distribution": Trial(
        on_outputs(
            losses.similarity_distribution,
            "student.embedding",
            "teacher.embedding",
            "teacher.seed_queue",
            temperatures=(0.2, 0.1),
        ),
        left=0.9,
        why="a cross-entropy: the teacher's entropy stays",
        beside={"seed": connectors.queue("embedding", size=128)},
    ),
    "crd": Trial(
        computed("crd"),
        left=0.7,
        why="in one half of it the teacher's embeddings look for the student's in the bank, which is one for both",
        beside={"crd": connectors.contrast("embedding", size=1257, dim=12, negatives=64)},
    ),
}


INIT, APPLY = from_linen(Network())


@functools.cache
def digits() -> tuple[dict, dict]:
    """All training digits, and the held-out ones."""
    train, test = (on_device(load("digits", split), unit_range) for split in ("train", "test"))
    return train, take(test, np.arange(HELD_OUT))


@functools.cache
def teacher() -> Weights:
    """Trained for 600 steps on the labels; once a session."""
    train, _ = digits()
    optimizer = optax.adam(1e-2)
    step = make_train_step(APPLY, None, optimizer)
    objective = weighted_sum(labels=(1.0, cross_entropy))
    state = init_state(INIT(jax.random.key(0), train["inputs"][:1]), optimizer, jax.random.key(0))
    state, metrics = jax.jit(
        lambda state, batches: jax.lax.scan(
            lambda s, chosen: step(s, None, objective, take(train, chosen)), state, batches
        )
    )(state, batches_of(600))
    assert metrics["accuracy"][-10:].mean() > 0.97
    return Weights(state.params, state.model_state)


def batches_of(steps: int) -> jax.Array:
    an_epoch = len(digits()[0]["labels"]) // BATCH
    epochs = [epoch_indices(len(digits()[0]["labels"]), BATCH, seed=0, epoch=e) for e in range(-(-steps // an_epoch))]
    return jnp.concatenate(epochs)[:steps]


@functools.cache
def arrays() -> tuple[dict, dict]:
    """What a batch may hold, of the training digits and of the held-out ones, and what belongs to no example."""

    def told(part):
        outputs = APPLY(*teacher(), part["inputs"], train=False)[0]
        top_values, top_indices = jax.lax.top_k(jax.nn.log_softmax(outputs.logits), 4)
        stored = {"top_values": top_values, "top_indices": top_indices, "indices": jnp.arange(len(part["labels"]))}
        return part | stored, outputs.features["top"]

    teacher()  # before anything is traced
    (train, top), (test, _) = map(jax.jit(told), digits())
    margin = losses.negative_margin(*(statistic(top, axis=(0, 1, 2)) for statistic in (jnp.std, jnp.mean)))
    return train, test | {"margin": margin}


def train(trial: Trial, seed: int = 0, apply: Any = APPLY, steps: int = STEPS) -> tuple[float, float]:
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
    before, after = run(init_state(weights, optimizer, second), batches_of(steps))
    return float(before), float(after)


# A loss is what takes the student first; what else is exported serves one.
LOSSES = [
    name
    for name, exported in ((name, getattr(losses, name)) for name in losses.__all__)
    if inspect.isfunction(exported) and next(iter(inspect.signature(exported).parameters)).startswith("student")
]


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
