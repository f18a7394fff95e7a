"""What all strategies share: a setting, one run of training, and a seed's teachers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from experiments._loop import EVALUATION_BATCH, Arrays

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import (
    Apply,
    Objective,
    Outputs,
    TrainState,
    Weights,
    _checks,
    connectors,
    cross_entropy,
    init_state,
    make_train_step,
    on_logits,
    weighted_sum,
)
from kdjax.batches import epoch_indices, evaluation_indices, take
from kdjax.losses import soft_target_kl
from kdjax.training.phases import Phase, bounds, make_planned_step, plan

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
        return self.adam(epochs * self.updates)

    def adam(self, updates: int) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(self.learning_rate, updates))

    def fresh(self, network: Network, seed: int, number: int) -> Weights:
        return network[0](jax.random.fold_in(jax.random.key(seed), number), self.train["inputs"][:1])

    def objective(self, **more: Any) -> Objective:
        soft = on_logits(soft_target_kl, temperature=self.temperature)
        return weighted_sum(labels=(self.alpha, cross_entropy), soft=(1.0 - self.alpha, soft), **more)

    def taught(self, apply: Apply, weights: Weights, *features: str) -> Arrays:
        """The data with what a teacher says of it: its logits, and the features that are named."""
        return self.train | {"teacher": said(apply, weights, self.train["inputs"], *features)}

    def batches(self, seed: int, epochs: int) -> Any:
        for epoch in range(epochs):
            yield from np.asarray(epoch_indices(len(self.train["labels"]), self.batch_size, seed=seed, epoch=epoch))


def said(apply: Apply, weights: Weights, inputs: jax.Array, *features: str) -> Outputs:
    """In pieces: a layer's maps of all images at once may be larger than the memory."""
    pieces, _ = map(np.asarray, evaluation_indices(len(inputs), EVALUATION_BATCH))
    parts = [_said(apply, features, weights, inputs, piece) for piece in pieces]
    return jax.tree.map(lambda *rows: jnp.concatenate(rows)[: len(inputs)], *parts)


@partial(jax.jit, static_argnums=(0, 1))
def _said(apply: Apply, features: tuple[str, ...], weights: Weights, inputs: jax.Array, piece: jax.Array) -> Outputs:
    outputs, _ = apply(*weights, inputs[piece], train=False)
    return Outputs(outputs.logits, {name: _checks.feature("network", outputs, name) for name in features})


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


def one_student(
    setting: Setting, objective: Objective, *, beside: dict[str, Any] | None = None
) -> Callable[[int, Arrays], Weights]:
    """``learn(seed, arrays) -> weights``: the student from data that hold what a teacher says; connectors stay behind."""
    learn = one_run(setting, setting.student[1], objective, epochs=setting.epochs, beside=beside)

    def run(seed: int, arrays: Arrays) -> Weights:
        weights = setting.fresh(setting.student, seed, 0)
        if beside is None:
            return weights_of(learn(weights, arrays, seed))
        return connectors.student_of(learn(with_connectors(setting, beside, weights, arrays, seed), arrays, seed))

    return run


def with_connectors(setting: Setting, beside: dict[str, Any], weights: Weights, arrays: Arrays, seed: int) -> Weights:
    """The student's weights and those of the connectors beside it, for data that hold what a teacher says."""
    key, inputs = jax.random.key(seed), arrays["inputs"][:1]
    return connectors.init_beside(
        beside, key, setting.student[1], weights, None, take(arrays, np.arange(1))["teacher"], inputs
    )


def in_phases(
    setting: Setting, beside: dict[str, Any], features: tuple[str, ...], *phases: Phase
) -> Callable[[int, list[Weights]], Weights]:
    """``learn(seed, teachers) -> weights``: the student with connectors, through a plan of phases."""
    phases = plan(*phases)

    def made(phase: Phase) -> Any:
        step = make_train_step(setting.student[1], None, phase.optimizer, connectors=beside)

        @partial(jax.jit, donate_argnums=0)
        def advance(state, teacher, objective, batch):
            return step(state, teacher, objective, take(batch["arrays"], batch["chosen"]))

        return advance

    step = make_planned_step(phases, made)

    def run(seed: int, teachers: list[Weights]) -> Weights:
        arrays = setting.taught(setting.teacher[1], teachers[0], *features)
        weights = with_connectors(setting, beside, setting.fresh(setting.student, seed, 0), arrays, seed)
        state = init_state(weights, phases[0].optimizer, jax.random.key(seed))
        for number, chosen in zip(range(bounds(phases)[-1]), setting.batches(seed, setting.epochs), strict=True):
            state, _ = step(number, state, None, {"arrays": arrays, "chosen": chosen})
        return connectors.student_of(state)

    return run


def teacher_of(setting: Setting) -> Callable[[int, int], Weights]:
    """``train(seed, number)``: the seed's teachers, of one architecture and different initial weights."""
    learn = one_run(setting, setting.teacher[1], LABELS, epochs=setting.teacher_epochs)
    return lambda seed, number: weights_of(
        learn(setting.fresh(setting.teacher, seed, 100 + number), setting.train, seed)
    )


def weights_of(state: TrainState) -> Weights:
    return Weights(state.params, state.model_state)
