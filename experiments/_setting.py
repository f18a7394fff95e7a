"""What all strategies share: a setting, one run of training, and a seed's teachers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from experiments._loop import Arrays

import jax
import numpy as np
import optax

from kdjax import (
    Apply,
    Objective,
    TrainState,
    Weights,
    cross_entropy,
    init_state,
    make_train_step,
    on_logits,
    weighted_sum,
)
from kdjax.data import epoch_indices, take
from kdjax.losses import soft_target_kl

LABELS = weighted_sum(labels=(1.0, cross_entropy))
Network = tuple[Callable[..., Weights], Apply]


@dataclass(frozen=True)
class Setting:
    """What all strategies have in common."""

    train: Arrays
    student: Network
    assistant: Network
    teacher: Network
    epochs: int
    teacher_epochs: int
    batch_size: int
    learning_rate: float
    temperature: float
    alpha: float

    @property
    def updates(self) -> int:
        return len(self.train["labels"]) // self.batch_size

    def optimizer(self, epochs: int) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(self.learning_rate, epochs * self.updates))

    def fresh(self, network: Network, seed: int, number: int) -> Weights:
        return network[0](jax.random.fold_in(jax.random.key(seed), number), self.train["inputs"][:1])

    def objective(self, **more: Any) -> Objective:
        soft = on_logits(soft_target_kl, temperature=self.temperature)
        return weighted_sum(labels=(self.alpha, cross_entropy), soft=(1.0 - self.alpha, soft), **more)

    def taught(self, apply: Apply, weights: Weights) -> Arrays:
        """The data with what a teacher says of it, features and all: they are small here."""
        return self.train | {"teacher": said(apply, weights, self.train["inputs"])}

    def batches(self, seed: int, epochs: int) -> Any:
        for epoch in range(epochs):
            yield from np.asarray(epoch_indices(len(self.train["labels"]), self.batch_size, seed=seed, epoch=epoch))


@partial(jax.jit, static_argnums=0)
def said(apply: Apply, weights: Weights, inputs: jax.Array) -> Any:
    return apply(*weights, inputs, train=False)[0]


def one_run(
    setting: Setting,
    apply: Apply,
    objective: Objective,
    *,
    epochs: int,
    teacher_apply: Apply | None = None,
    beside: dict[str, Any] | None = None,
    wrapped: Callable[..., Any] = lambda step: step,
) -> Callable[..., TrainState]:
    """``learn(weights, arrays, seed, teacher=None) -> state``; compiled at its first call, once for all seeds."""
    optimizer = setting.optimizer(epochs)
    step = wrapped(make_train_step(apply, teacher_apply, optimizer, connectors=beside))

    @partial(jax.jit, donate_argnums=0)
    def advance(state, teacher, arrays, chosen):
        return step(state, teacher, objective, take(arrays, chosen) | {"indices": chosen})[0]

    def learn(weights: Weights, arrays: Arrays, seed: int, teacher: Weights | None = None) -> TrainState:
        state = init_state(weights, optimizer, jax.random.key(seed))
        for chosen in setting.batches(seed, epochs):
            state = advance(state, teacher, arrays, chosen)
        return state

    return learn


def teacher_of(setting: Setting) -> Callable[[int, int], Weights]:
    """``train(seed, number)``: the seed's teachers, of one architecture and different initial weights."""
    learn = one_run(setting, setting.teacher[1], LABELS, epochs=setting.teacher_epochs)
    return lambda seed, number: weights_of(
        learn(setting.fresh(setting.teacher, seed, 100 + number), setting.train, seed)
    )


def weights_of(state: TrainState) -> Weights:
    return Weights(state.params, state.model_state)
