"""Temperatures and weights that adapt: by a schedule, by how the student does, and learnt against it.

Each strategy is a small function, as those of `experiments._strategies`, and is merged with them there.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from experiments._loop import Arrays, evaluator
from experiments._setting import Setting, with_connectors

import jax
import numpy as np
import optax

from kdjax import (
    Objective,
    TrainState,
    Weights,
    connectors,
    cross_entropy,
    init_state,
    make_train_step,
    on_logits,
    on_outputs,
    scaled,
    schedules,
    weighted_sum,
)
from kdjax.batches import take
from kdjax.losses import soft_target_kl
from kdjax.training import clip_while

Learn = Callable[[int, list[Weights]], Weights]


def falling(setting: Setting) -> Learn:
    """T falls from twice to half of the setting's, the soft weight from 0.9 to 0.7; gradients are clipped while T > 3."""
    steps = setting.epochs * setting.updates
    temperature = schedules.cosine(2 * setting.temperature, setting.temperature / 2, steps=steps)
    objective = weighted_sum(
        labels=(schedules.linear(0.1, 0.3, steps=steps), cross_entropy),
        soft=(schedules.linear(0.9, 0.7, steps=steps), on_logits(soft_target_kl, temperature=temperature)),
    )
    optimizer = optax.chain(clip_while(1.0, temperature, above=3.0), setting.optimizer(setting.epochs))
    learn = _one_run(setting, objective, optimizer, {})
    return lambda seed, teachers: connectors.student_of(learn(seed, setting.taught(setting.teacher[1], teachers[0])))


def by_the_gap(setting: Setting) -> Learn:
    """T and the soft weight by the accuracy on every tenth example, on which the student is not trained.

    The teacher was trained on them, so that the gap to it is nearly the gap to no error at all.
    """
    every = np.arange(len(setting.train["labels"]))
    validation = take(setting.train, every[every % 10 == 9])
    setting = replace(setting, train=take(setting.train, every[every % 10 != 9]))
    objective = weighted_sum(
        labels=(1.0, scaled(cross_entropy, by="student.control_rest")),
        soft=(1.0, scaled(_soft("student.control_temperature"), by="student.control_weight")),
    )
    beside = {"control": connectors.controlled(setting.temperature, weight=(0.9, 0.7), patience=5)}
    learn = _one_run(setting, objective, setting.optimizer(setting.epochs), beside)
    of_student, of_teacher = evaluator(setting.student[1]), evaluator(setting.teacher[1])

    def run(seed: int, teachers: list[Weights]) -> Weights:
        best = of_teacher(teachers[0], validation)["accuracy"]

        def told(state: TrainState) -> TrainState:
            now = of_student(connectors.student_of(state), validation)["accuracy"]
            return connectors.observe(state, "control", accuracy=now, teacher_accuracy=best)

        return connectors.student_of(learn(seed, setting.taught(setting.teacher[1], teachers[0]), told))

    return run


def against_the_student(setting: Setting) -> Learn:
    """T is learnt to make the task harder (arXiv 2211.16231), the more so the longer the first 10 epochs have run."""
    objective = weighted_sum(
        labels=(setting.alpha, cross_entropy), soft=(1.0 - setting.alpha, _soft("student.temperature"))
    )
    curriculum = schedules.cosine(0.0, 1.0, steps=10 * setting.updates)
    beside = {"temperature": connectors.learnt_temperature(curriculum, initial=setting.temperature)}
    # SGD, as the paper's: Adam would divide by the size of the gradient, and so by the curriculum.
    optimizer = optax.partition(
        {"student": setting.optimizer(setting.epochs), "connectors": optax.sgd(0.05, momentum=0.9)},
        {"student": "student", "connectors": "connectors"},
    )
    learn = _one_run(setting, objective, optimizer, beside)
    return lambda seed, teachers: connectors.student_of(learn(seed, setting.taught(setting.teacher[1], teachers[0])))


def _soft(temperature: str) -> Any:
    return on_outputs(soft_target_kl, "student.logits", "teacher.logits", temperature=temperature)


def _one_run(
    setting: Setting, objective: Objective, optimizer: optax.GradientTransformation, beside: dict[str, Any]
) -> Callable[..., TrainState]:
    """``learn(seed, arrays, told) -> state``: the student with connectors, and what `told` makes of it after each epoch."""
    step = make_train_step(setting.student[1], None, optimizer, connectors=beside)

    @partial(jax.jit, donate_argnums=0)
    def advance(state, arrays, chosen):
        return step(state, None, objective, take(arrays, chosen))[0]

    def learn(seed: int, arrays: Arrays, told: Callable[[TrainState], TrainState] = lambda state: state) -> TrainState:
        weights = with_connectors(setting, beside, setting.fresh(setting.student, seed, 0), arrays, seed)
        state = init_state(weights, optimizer, jax.random.key(seed))
        for number, chosen in enumerate(setting.batches(seed, setting.epochs), 1):
            state = advance(state, arrays, chosen)
            if number % setting.updates == 0:
                state = told(state)
        return state

    return learn


ADAPTIVE: dict[str, Callable[[Setting], Learn]] = {
    "T falls, weight 0.9 to 0.7": falling,
    "T and weight by the gap": by_the_gap,
    "T learnt against the student": against_the_student,
}
