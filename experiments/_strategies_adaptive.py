"""Temperatures and weights that adapt: by a schedule, by how the student does, and learnt against it.

Each strategy is a small function, as those of `experiments._strategies`, and is merged with them there.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import optax

from experiments._setting import Learn, Setting, one_student
from kdjax import TrainState, Weights, connectors, cross_entropy, on_logits, on_outputs, scaled, schedules, weighted_sum
from kdjax.batches import take
from kdjax.losses import soft_target_kl
from kdjax.training import clip_while, make_evaluation, weights_of


def falling(setting: Setting) -> Learn:
    """T falls from twice to half of the setting's, the soft weight from 0.9 to 0.7; gradients are clipped while T > 3."""
    steps = setting.epochs * setting.updates
    temperature = schedules.cosine(2 * setting.temperature, setting.temperature / 2, steps=steps)
    objective = weighted_sum(
        labels=(schedules.linear(0.1, 0.3, steps=steps), cross_entropy),
        soft=(schedules.linear(0.9, 0.7, steps=steps), on_logits(soft_target_kl, temperature=temperature)),
    )
    optimizer = optax.chain(clip_while(1.0, temperature, above=3.0), setting.optimizer(setting.epochs))
    learn = one_student(setting, objective, optimizer=optimizer)
    return lambda seed, teachers: learn(seed, setting.taught(setting.teacher[1], teachers[0]))


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
    learn = one_student(setting, objective, beside=beside)
    of_student, of_teacher = (make_evaluation(apply) for _, apply in (setting.student, setting.teacher))

    def run(seed: int, teachers: list[Weights]) -> Weights:
        best = of_teacher(teachers[0], validation)["accuracy"]

        def told(state: TrainState) -> TrainState:
            now = of_student(weights_of(state), validation)["accuracy"]
            return connectors.observe(state, "control", accuracy=now, teacher_accuracy=best)

        return learn(seed, setting.taught(setting.teacher[1], teachers[0]), told)

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
    learn = one_student(setting, objective, beside=beside, optimizer=optimizer)
    return lambda seed, teachers: learn(seed, setting.taught(setting.teacher[1], teachers[0]))


def _soft(temperature: str) -> Any:
    return on_outputs(soft_target_kl, "student.logits", "teacher.logits", temperature=temperature)


ADAPTIVE: dict[str, Callable[[Setting], Learn]] = {
    "T falls, weight 0.9 to 0.7": falling,
    "T and weight by the gap": by_the_gap,
    "T learnt against the student": against_the_student,
}
