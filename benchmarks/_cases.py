"""Distillation steps of all sizes, as they are timed and profiled: a pair of networks, some batches, one compiled step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _kdjax_side import LABELS_ONLY, WITH_TEACHER
from _work import LEARNING_RATE, Batches

from kdjax import Objective, Outputs, TrainState, Weights, init_state, make_train_step
from kdjax.networks import from_linen
from kdjax.training import TrainStep, jit_step

IMAGE = np.zeros((1, 28, 28, 1), np.float32)


class Case(NamedTuple):
    """A compiled step and what it is called with; it takes its state's memory."""

    step: Any
    state: TrainState
    teacher: Weights | None
    objective: Objective
    batches: list[dict]

    def compiled(self) -> jax.stages.Compiled:
        return self.step.lower(self.state, self.teacher, self.objective, self.batches[0]).compile()

    def runner(self) -> Callable[[int], None]:
        """Makes so many updates and waits until they are done."""
        step, state, teacher, objective, batches = self

        def run(count: int) -> None:
            nonlocal state
            for number in range(count):
                state, metrics = step(state, teacher, objective, batches[number % len(batches)])
            jax.block_until_ready((state, metrics))

        return run


def make(
    student: Any,
    teacher: Any | None,
    batches: Batches,
    *,
    cached: bool = False,
    compiled: Callable[[TrainStep], Any] = jit_step,
    axis_name: str | None = None,
) -> Case:
    """The step of `student` with `teacher`, two Linen networks, or of the student alone.

    Both are untrained: the time of a step does not depend on what they know. With `cached` the teacher's logits come with
    the batch, and the step does not run it. All arrays lie on the device.
    """
    init, apply = from_linen(student)
    optimizer = optax.adam(LEARNING_RATE)
    state = init_state(jax.jit(init)(jax.random.key(1), IMAGE), optimizer, jax.random.key(0))
    placed = jax.device_put([{"inputs": images, "labels": labels} for images, labels in batches])
    weights, teacher_apply = None, None
    if teacher is not None:
        teacher_init, teacher_apply = from_linen(teacher)
        weights = jax.jit(teacher_init)(jax.random.key(0), IMAGE)
    if cached:
        shape = (*jax.tree.leaves(placed[0]["labels"])[0].shape, 10)
        placed = [batch | {"teacher": Outputs(jnp.zeros(shape), {})} for batch in placed]
        weights, teacher_apply = None, None
    step = compiled(make_train_step(apply, teacher_apply, optimizer, axis_name=axis_name))
    objective = WITH_TEACHER if teacher is not None else LABELS_ONLY
    return Case(step, state, weights, objective, jax.block_until_ready(placed))
