"""What all strategies share: a setting, one run of training, and a seed's teachers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax

from experiments._stopping import until_asked
from kdjax import (
    Apply,
    Objective,
    TrainState,
    Weights,
    connectors,
    cross_entropy,
    init_state,
    make_train_step,
    on_logits,
    weighted_sum,
)
from kdjax.batches import epoch_indices, take
from kdjax.caching import cache_teacher
from kdjax.losses import soft_target_kl
from kdjax.training import DivergenceWatch, make_epoch, weights_of
from kdjax.training.phases import Phase, enter, make_planned_step, objectives_of, plan, stretches

LABELS = weighted_sum(labels=(1.0, cross_entropy))
Arrays = dict[str, Any]  # a data set on the device: "inputs", "labels", and "teacher" where its outputs are cached
Network = tuple[Callable[..., Weights], Apply]
Learn = Callable[[int, list[Weights]], Weights]


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

    def __post_init__(self) -> None:
        if not self.updates:
            raise ValueError(
                f"batch_size must be at most the {len(self.train['labels'])} examples; got {self.batch_size}."
            )

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
        return self.train | cache_teacher(apply, weights, self.train["inputs"], features=features)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        return np.asarray(epoch_indices(len(self.train["labels"]), self.batch_size, seed=seed, epoch=epoch))

    def loop(self, step: Callable[..., Any], objective: Any, epochs: int) -> Callable[..., Any]:
        """``learn(state, arrays, seed, teacher=None, told=…) -> state``, what `told` makes of it after each epoch."""
        epoch = make_epoch(step)

        def learn(state, arrays, seed, teacher=None, told=lambda state: state):
            diverging = DivergenceWatch()
            watch = until_asked(diverging)
            for number in range(epochs):
                state, means = epoch(state, teacher, objective, arrays, self.order(seed, number), watch=watch)
                diverging.finish(means)
                state = told(state)
            return state

        return learn


def one_run(
    setting: Setting,
    apply: Apply,
    objective: Objective,
    *,
    epochs: int,
    teacher_apply: Apply | None = None,
    beside: dict[str, Any] | None = None,
    optimizer: optax.GradientTransformation | None = None,
    wrapped: Callable[..., Any] = lambda step: step,
) -> Callable[..., Weights]:
    """``learn(weights, arrays, seed, …) -> weights``, as `Setting.loop`'s; compiled once for all seeds."""
    optimizer = optimizer or setting.optimizer(epochs)
    step = wrapped(make_train_step(apply, teacher_apply, optimizer, connectors=beside))
    learn = setting.loop(step, objective, epochs)
    return lambda weights, arrays, seed, *more: weights_of(
        learn(init_state(weights, optimizer, jax.random.key(seed)), arrays, seed, *more)
    )


def one_student(
    setting: Setting,
    objective: Objective,
    *,
    beside: dict[str, Any] | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> Callable[..., Weights]:
    """``learn(seed, arrays, …) -> weights``: the student from data that hold what a teacher says; connectors stay behind."""
    learn = one_run(setting, setting.student[1], objective, epochs=setting.epochs, beside=beside, optimizer=optimizer)

    def run(seed: int, arrays: Arrays, told: Callable[[TrainState], TrainState] = lambda state: state) -> Weights:
        weights = setting.fresh(setting.student, seed, 0)
        if beside is not None:
            weights = with_connectors(setting, beside, weights, arrays, seed)
        return learn(weights, arrays, seed, None, told)

    return run


def with_connectors(setting: Setting, beside: dict[str, Any], weights: Weights, arrays: Arrays, seed: int) -> Weights:
    """The student's weights and those of the connectors beside it, for data that hold what a teacher says."""
    key, inputs = jax.random.key(seed), arrays["inputs"][:1]
    return connectors.init_beside(
        beside, key, setting.student[1], weights, None, take(arrays, np.arange(1))["teacher"], inputs
    )


def in_phases(setting: Setting, beside: dict[str, Any], features: tuple[str, ...], *phases: Phase) -> Learn:
    """The student with connectors, through a plan of phases."""
    phases = plan(*phases)
    epoch = make_epoch(
        make_planned_step(
            phases, lambda phase: make_train_step(setting.student[1], None, phase.optimizer, connectors=beside)
        )
    )

    def run(seed: int, teachers: list[Weights]) -> Weights:
        arrays = setting.taught(setting.teacher[1], teachers[0], *features)
        weights = with_connectors(setting, beside, setting.fresh(setting.student, seed, 0), arrays, seed)
        state = enter(phases, 0, init_state(weights, phases[0].optimizer, jax.random.key(seed)))
        diverging = DivergenceWatch()
        for number in range(setting.epochs):
            for index, rows in stretches(phases, number * setting.updates, setting.order(seed, number)):
                state = state if index == state.phase else enter(phases, index, state)
                state, means = epoch(state, None, objectives_of(phases), arrays, rows, watch=until_asked(diverging))
                diverging.finish(means)
        return weights_of(state)

    return run


def teacher_of(setting: Setting) -> Callable[[int, int], Weights]:
    """``train(seed, number)``: the seed's teachers, of one architecture and different initial weights."""
    learn = one_run(setting, setting.teacher[1], LABELS, epochs=setting.teacher_epochs)
    return lambda seed, number: learn(setting.fresh(setting.teacher, seed, 100 + number), setting.train, seed)
